//! What an image states besides files, as options of `turbo import`.

use anyhow::{Context, Result, bail};
use layer_format::Digest;
use layer_format::manifest::{
    AttributeRule, Attributes, Dependency, EnvMerge, EnvMode, EnvVar, FileMode, FileRule, ImageManifest, IsolationRule, LayerManifest, Manifest, Scripts,
    StartupFile,
};
use layer_format::reference::{ImageReference, Revision};

use super::{condition, parse_mode};
use crate::exit::UsageError;
use crate::releases::Range;
use crate::{environment, startup};

/// See the module.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Options {
    /// Program and arguments that a launch starts, as a shell would read them.
    #[arg(long, value_name = "COMMAND")]
    pub(super) startup_file: Option<String>,
    /// A startup file of the group that `turbo run --trigger NAME` starts; a group may have several, which start together.
    #[arg(long, value_name = "NAME=COMMAND")]
    trigger: Vec<String>,
    /// Program and arguments to run in the container before the startup file.
    #[arg(long, value_name = "COMMAND")]
    startup_script: Vec<String>,
    /// Program and arguments to run in the container after the last process.
    #[arg(long, value_name = "COMMAND")]
    shutdown_script: Vec<String>,
    /// Variable that the application gets; lists of folders such as PATH are put in front of the host's.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Value that is put in front of what the variable has otherwise, with a colon between.
    #[arg(long, value_name = "NAME=VALUE")]
    env_prepend: Vec<String>,
    /// Value that is put behind what the variable has otherwise, with a colon between.
    #[arg(long, value_name = "NAME=VALUE")]
    env_append: Vec<String>,
    /// Whether the host's value of a variable is visible: write-copy (where no image sets one), full (not), or inherit.
    #[arg(long, value_name = "NAME=MODE")]
    env_mode: Vec<String>,
    /// The same for all variables that --env-mode does not name [default: inherit, as the isolation of `/`].
    #[arg(long, value_name = "MODE")]
    env_isolation: Option<String>,
    /// How much of the host a folder shows: full, write-copy, merge or hide. A whole root filesystem states `/=full`.
    #[arg(long, value_name = "PATH=MODE")]
    isolate: Vec<String>,
    /// Mode of a single file: full (never the host's), hide (and not listed), or defaulted (the host's, placed there first).
    #[arg(long, value_name = "PATH=MODE")]
    file_mode: Vec<String>,
    /// What holds for a file or folder, separated by commas: hidden, read-only, no-sync, no-upgrade.
    #[arg(long, value_name = "PATH=LIST")]
    attribute: Vec<String>,
    /// Image that this one needs below it, and which releases will do: `tools/java`, `tools/java:8`, `tools/java >=8 <12`.
    #[arg(long, value_name = "IMAGE[ RANGE]")]
    dependency: Vec<String>,
    /// What the host must have for the image to start, such as kernel:>=6.1, architecture:x86_64 or feature:kvm.
    #[arg(long, value_name = "KEY:VALUE")]
    require: Vec<String>,
    /// Where the layer takes part: KEY:VALUE as for --require, joined by and, or, not and parentheses.
    #[arg(long, value_name = "EXPRESSION")]
    condition: Option<String>,
    /// Working directory of the application.
    #[arg(short, long, value_name = "PATH")]
    working_dir: Option<String>,
    /// Title, description, publisher and the like.
    #[arg(long, value_name = "NAME=VALUE")]
    meta: Vec<String>,
    /// Runs of the image are not learned from: no client sends a trace of one, and no registry takes one.
    #[arg(long)]
    no_profiling: bool,
    /// Processor architecture, as `uname -m` names it, or `any` [default: this machine's, or the package's].
    #[arg(long)]
    architecture: Option<String>,
}

/// What the image states, checked: both manifests, without the tree.
#[derive(Clone, Debug)]
pub(super) struct Stated {
    /// With the layer of [`Self::layer`] to come.
    pub(super) image: ImageManifest,
    /// With the tree to come.
    pub(super) layer: LayerManifest,
    /// Whether the architecture was named, rather than assumed.
    pub(super) architecture_given: bool,
}

impl Options {
    /// Reads the options, and refuses what makes no sense before any work is done.
    pub(super) fn stated(&self, name: &ImageReference) -> Result<Stated> {
        if matches!(name.revision, Revision::Digest(_) | Revision::Prefix(_)) {
            bail!(UsageError(format!("`{name}` names a digest; a new image is named [NAMESPACE/]NAME[:RELEASE]")));
        }
        let (image, layer) = (self.image()?, self.layer()?);
        image.encode().map_err(|error| UsageError(error.to_string()))?;
        layer.encode().map_err(|error| UsageError(error.to_string()))?;
        Ok(Stated { image, layer, architecture_given: self.architecture.is_some() })
    }

    fn image(&self) -> Result<ImageManifest> {
        let architecture = self.architecture.clone().unwrap_or_else(|| std::env::consts::ARCH.into());
        let mut image = ImageManifest::new(architecture, Vec::new());
        if let Some(text) = &self.startup_file {
            image.startup_files.push(StartupFile { command: startup::split(text)?, trigger: None });
        }
        for text in &self.trigger {
            let (name, command) = pair(text, "--trigger is NAME=COMMAND")?;
            image.startup_files.push(StartupFile { command: startup::split(command)?, trigger: Some(name.into()) });
        }
        let commands = |texts: &[String]| texts.iter().map(|text| startup::split(text)).collect::<Result<Vec<_>>>();
        image.scripts = Scripts { startup: commands(&self.startup_script)?, shutdown: commands(&self.shutdown_script)? };
        if image.scripts != Scripts::default() {
            image.requires.push("scripts".into());
        }
        image.working_directory = self.working_dir.clone();
        for text in &self.meta {
            let (name, value) = pair(text, "--meta is NAME=VALUE")?;
            image.metadata.insert(name.into(), value.into());
        }
        image.dependencies = self.dependency.iter().map(|text| dependency(text)).collect::<Result<_>>()?;
        image.requirements = self.require.clone();
        image.no_profiling = self.no_profiling;
        if let Some(wrong) = self.require.iter().find(|text| !condition::is_requirement(text)) {
            bail!(UsageError(format!("`{wrong}`: {}", condition::EXPECTED)));
        }
        Ok(image)
    }

    fn layer(&self) -> Result<LayerManifest> {
        let mut layer = LayerManifest::new(Digest([0; Digest::LEN]), 0, 0);
        for (texts, merge) in [(&self.env, EnvMerge::Replace), (&self.env_prepend, EnvMerge::Prepend), (&self.env_append, EnvMerge::Append)] {
            for text in texts {
                let (name, value) = environment::parse_assignment(text)?;
                layer.environment.push(EnvVar { name, value, merge });
            }
        }
        layer.environment_isolation.mode = self.env_isolation.as_deref().map(env_mode).transpose()?.unwrap_or_default();
        for text in &self.env_mode {
            let (name, mode) = pair(text, "--env-mode is NAME=MODE, such as SSH_AUTH_SOCK=full")?;
            if layer.environment_isolation.variables.insert(name.into(), env_mode(mode)?).is_some() {
                bail!(UsageError(format!("--env-mode names {name} twice")));
            }
        }
        for text in &self.isolate {
            let (path, mode) = path_pair(text, "--isolate is PATH=MODE, such as /=full")?;
            layer.isolation.push(IsolationRule { path, mode: parse_mode(mode)? });
        }
        for text in &self.file_mode {
            let (path, mode) = path_pair(text, "--file-mode is PATH=MODE, such as /etc/app.conf=defaulted")?;
            layer.files.push(FileRule { path, mode: file_mode(mode)? });
        }
        for text in &self.attribute {
            let (path, list) = path_pair(text, "--attribute is PATH=LIST, such as /opt/app=read-only,no-sync")?;
            layer.attributes.push(AttributeRule { path, attributes: attributes(list)? });
        }
        layer.condition = self.condition.as_deref().map(condition::parse).transpose()?;
        Ok(layer.with_features())
    }
}

fn dependency(text: &str) -> Result<Dependency> {
    let (name, range) = match text.trim().split_once(char::is_whitespace) {
        Some((name, range)) => (name, Some(range.trim())),
        None => (text.trim(), None),
    };
    let usage = |error: &dyn std::fmt::Display| UsageError(format!("--dependency `{text}`: {error}"));
    let reference: ImageReference = name.parse().map_err(|error| usage(&error))?;
    if let Some(range) = range {
        Range::parse(range).map_err(|error| usage(&error))?;
        if reference.release().is_none() {
            bail!(usage(&"a digest is one image: a range of releases says nothing more"));
        }
    }
    Ok(Dependency { reference: reference.to_string(), releases: range.map(Into::into), digest: None })
}

fn env_mode(text: &str) -> Result<EnvMode> {
    Ok(match text {
        "inherit" => EnvMode::Inherit,
        "full" => EnvMode::Full,
        "write-copy" | "writecopy" | "cow" => EnvMode::WriteCopy,
        _ => bail!(UsageError(format!("`{text}` is not a mode of a variable: inherit, full or write-copy"))),
    })
}

fn file_mode(text: &str) -> Result<FileMode> {
    Ok(match text {
        "full" => FileMode::Full,
        "hide" => FileMode::Hide,
        "defaulted" => FileMode::Defaulted,
        _ => bail!(UsageError(format!("`{text}` is not a mode of a file: full, hide or defaulted"))),
    })
}

fn attributes(list: &str) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    for name in list.split(',') {
        match name.trim() {
            "hidden" => attributes.hidden = true,
            "read-only" => attributes.read_only = true,
            "no-sync" => attributes.no_sync = true,
            "no-upgrade" => attributes.no_upgrade = true,
            other => bail!(UsageError(format!("`{other}` is not an attribute: hidden, read-only, no-sync or no-upgrade"))),
        }
    }
    Ok(attributes)
}

pub(super) fn pair<'a>(text: &'a str, usage: &str) -> Result<(&'a str, &'a str)> {
    text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| UsageError(format!("`{text}`: {usage}")).into())
}

/// The mode is behind the last `=`, since a path may have one.
fn path_pair<'a>(text: &'a str, usage: &str) -> Result<(String, &'a str)> {
    let (path, value) = text.rsplit_once('=').filter(|(path, _)| !path.is_empty()).with_context(|| UsageError(format!("`{text}`: {usage}")))?;
    if !path.starts_with('/') {
        bail!(UsageError(format!("`{path}`: the path is absolute; {usage}")));
    }
    let plain = path.trim_end_matches('/');
    Ok((if plain.is_empty() { "/".into() } else { plain.into() }, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Result<Stated> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let line = <Line as clap::Parser>::try_parse_from(["import"].iter().chain(arguments))?;
        line.options.stated(&"a/b:1".parse().unwrap())
    }

    #[test]
    fn options_become_manifests() {
        let stated = options(&[
            "--env=PATH=/a",
            "--env-append=X=1",
            "--env-prepend=X=0",
            "--env-mode=SECRET=full",
            "--env-isolation=write-copy",
            "--isolate=/opt/app/=merge",
            "--file-mode=/etc/a=b=defaulted",
            "--attribute=/opt/app=hidden,no-sync",
            "--dependency=tools/java >=8 <12",
            "--dependency=base",
            "--require=kernel:>=5",
            "--condition=os:linux and not env:CI",
            "--startup-script=/bin/first 'a b'",
            "--shutdown-script=/bin/last",
            "--startup-file=/app",
            "--trigger=t=/one",
            "--trigger=t=/two",
        ])
        .unwrap();
        let (layer, image) = (stated.layer, stated.image);
        assert_eq!(layer.requires, ["attributes", "condition", "environment-isolation", "file-modes"]);
        assert_eq!(layer.isolation[0].path, "/opt/app");
        assert_eq!((layer.files[0].path.as_str(), layer.files[0].mode), ("/etc/a=b", FileMode::Defaulted));
        assert!(layer.attributes[0].attributes.hidden && layer.attributes[0].attributes.no_sync && !layer.attributes[0].attributes.read_only);
        let merges: Vec<EnvMerge> = layer.environment.iter().map(|var| var.merge).collect();
        assert_eq!(merges, [EnvMerge::Replace, EnvMerge::Prepend, EnvMerge::Append]);
        assert_eq!(image.dependencies[0].releases.as_deref(), Some(">=8 <12"));
        assert_eq!((image.dependencies[1].reference.as_str(), &image.dependencies[1].releases), ("base", &None));
        assert_eq!(image.scripts.startup, [["/bin/first", "a b"]]);
        assert_eq!(image.startup(Some("t")).count(), 2);
        assert_eq!(image.requires, ["scripts"]);
    }

    #[test]
    fn nonsense_is_wrong_usage() {
        for (argument, says) in [
            ("--isolate=/x=none", "write-copy"),
            ("--isolate=x=full", "absolute"),
            ("--isolate=/x", "PATH=MODE"),
            ("--file-mode=/x=merge", "defaulted"),
            ("--attribute=/x=shiny", "no-upgrade"),
            ("--dependency=Not A Name", "lower case"),
            ("--dependency=java newest", "range"),
            ("--require=kernel", "KEY:VALUE"),
            ("--condition=(os:linux", "parenthesis"),
            ("--env-mode=X=merge", "inherit"),
            ("--env-isolation=hide", "inherit"),
            ("--startup-script=", "empty"),
            ("--startup-file='", "quote"),
        ] {
            let error = options(&[argument]).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(says), "{argument}: {error}");
        }
        let twice = options(&["--isolate=/x=full", "--isolate=/x/=merge"]).unwrap_err();
        assert!(twice.to_string().contains("one rule"), "{twice}");
        let contradiction = options(&["--isolate=/etc=full", "--file-mode=/etc/x=defaulted"]).unwrap_err();
        assert!(contradiction.to_string().contains("defaulted"), "{contradiction}");
    }
}
