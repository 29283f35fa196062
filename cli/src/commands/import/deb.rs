//! `turbo import deb`: packages of Debian and what is derived from it, as one layer at `/`.
//!
//! Maintainer scripts are not run: what they would do to a system (users, caches, services) has no place in a layer. So
//! packages that are more than files may lack something; which scripts there are is told.

mod apt;
mod archive;
mod control;
mod merge;
mod tar_entries;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use chunker::{ImportOptions, Imported};
use client_store::Store;
use layer_format::Digest;
use layer_format::manifest::StartupFile;
use layer_format::reference::ImageReference;

use super::Content;
use super::finish::{Details, finish};
use super::stated::{Options, Stated};
use crate::app::App;
use crate::exit::{Exit, UsageError};
use crate::output::note;
use crate::progress::Bar;
use crate::sink::StoreSink;
use archive::Package;
use merge::{Merge, Merged};

/// Most conflicts that are told one by one.
const SHOWN: usize = 10;

/// Import Debian packages as one layer.
///
/// Files are taken as they are; maintainer scripts are not run. The program that starts is the one with the package's name,
/// or the one that its menu entry names.
#[derive(Debug, clap::Args)]
pub struct Deb {
    /// Package files (with a slash, or ending in .deb), or names of packages that apt fetches.
    #[arg(required = true, value_name = "FILE.deb|PACKAGE")]
    packages: Vec<String>,
    /// Name of the image: [NAMESPACE/]NAME[:RELEASE] [default: the first package's name and version].
    #[arg(short, long, value_name = "IMAGE")]
    name: Option<ImageReference>,
    /// Take in what the packages depend on and this machine lacks, as apt says.
    #[arg(long)]
    with_dependencies: bool,
    #[command(flatten)]
    content: Content,
    #[command(flatten)]
    options: Options,
}

impl Deb {
    /// Imports.
    pub(super) fn run(self, app: &App) -> Result<Exit> {
        let any: ImageReference = "package".parse()?;
        // What is wrong is said before anything is fetched.
        self.options.stated(self.name.as_ref().unwrap_or(&any))?;
        let options = self.content.options()?;
        let folder = tempfile::Builder::new().prefix("turbo-deb-").tempdir().context("making a temporary folder")?;
        let asked = self.packages.iter().map(|text| Asked::parse(text)).collect::<Result<Vec<_>>>()?;
        let (packages, first) = collect(&asked, self.with_dependencies, folder.path())?;
        let main = &packages[first].control;
        let name = match self.name.clone() {
            Some(name) => name,
            None => format!("{}:{}", main.image_name(), main.release()).parse().context("the package's name makes no image name; say --name")?,
        };
        let mut stated = self.options.stated(&name)?;
        describe(&mut stated, &packages, first)?;
        let store = app.store()?;
        let earlier = self.content.earlier(&store, &name)?;
        let (imported, merged) = import(&store, &packages, &options, earlier)?;
        if stated.image.startup_files.iter().all(|file| file.trigger.is_some()) {
            let command = startup_file(&merged, &packages, first);
            stated.image.startup_files.splice(0..0, command.map(|command| StartupFile { command, trigger: None }));
        }
        let details = details(&packages, &merged);
        tell(&packages, &details, self.with_dependencies);
        finish(app, &name, imported, stated, details)
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    File(PathBuf),
    Name(String),
}

impl Asked {
    fn parse(text: &str) -> Result<Self> {
        if text.contains('/') || text.ends_with(".deb") {
            return Ok(Self::File(std::path::absolute(text)?));
        }
        if !apt::is_name(text) {
            bail!(UsageError(format!("`{text}` is neither a .deb file nor the name of a package")));
        }
        Ok(Self::Name(text.into()))
    }
}

/// All packages, lowest first, and which of them is the first that was asked for.
fn collect(asked: &[Asked], with_dependencies: bool, folder: &Path) -> Result<(Vec<Package>, usize)> {
    let mut files = Vec::new();
    for path in asked.iter().filter_map(|asked| if let Asked::File(path) = asked { Some(path) } else { None }) {
        files.push(Package::open(path)?);
    }
    let names: Vec<String> = asked.iter().filter_map(|asked| if let Asked::Name(name) = asked { Some(name.clone()) } else { None }).collect();
    let mut wanted = Vec::new();
    if with_dependencies {
        let arguments = asked.iter().map(|asked| match asked {
            Asked::File(path) => path.to_string_lossy().into_owned(),
            Asked::Name(name) => name.clone(),
        });
        wanted = apt::needed(&arguments.collect::<Vec<_>>())?;
        // Those are here already.
        wanted.retain(|wanted| !files.iter().any(|file| wanted.name.split(':').next() == Some(file.control.package())));
    }
    let plain = |name: &str| name.split([':', '=']).next().unwrap_or_default().to_owned();
    for name in &names {
        // What the host has is no part of the simulation, and is wanted all the same.
        if !wanted.iter().any(|wanted| plain(&wanted.name) == plain(name)) {
            let (name, version) = name.split_once('=').map_or((name.as_str(), None), |(name, version)| (name, Some(version.to_owned())));
            wanted.push(apt::Wanted { name: name.into(), version });
        }
    }
    let mut packages = apt::download(&wanted, folder)?;
    packages.extend(files);
    let main = match &asked[0] {
        Asked::File(path) => packages.iter().position(|package| package.path == *path),
        Asked::Name(name) => packages.iter().position(|package| package.control.package() == plain(name)),
    };
    Ok((packages, main.context("the first package is not among those that were found")?))
}

/// Metadata and architecture, where the command line says nothing else.
fn describe(stated: &mut Stated, packages: &[Package], first: usize) -> Result<()> {
    let main = &packages[first].control;
    let fields = [
        ("title", Some(main.package())),
        ("version", Some(main.version())),
        ("description", main.synopsis()),
        ("website", main.get("homepage")),
        ("maintainer", main.get("maintainer")),
    ];
    for (name, value) in fields.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        stated.image.metadata.entry(name.into()).or_insert_with(|| value.to_owned());
    }
    if !stated.architecture_given {
        let bound = packages.iter().map(|package| package.control.architecture()).find(|architecture| *architecture != "any");
        let architecture = match main.architecture() {
            "any" => bound.unwrap_or("any"),
            own => own,
        };
        stated.image.architecture = architecture.to_owned();
    }
    Ok(())
}

/// Brings the files of all packages into the store.
fn import(store: &Store, packages: &[Package], options: &ImportOptions, earlier: Vec<Digest>) -> Result<(Imported, Merged)> {
    let sink = StoreSink::new(store)?.compress_against(earlier);
    let bar = Bar::spinner("importing");
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    std::thread::scope(|scope| {
        let merging = scope.spawn(move || -> Result<Merged> {
            let mut merge = Merge::new(std::io::BufWriter::with_capacity(256 << 10, writer));
            for (number, package) in packages.iter().enumerate() {
                let added = package.data().and_then(|data| merge.add(number, data));
                added.with_context(|| format!("{} cannot be imported", package.path.display()))?;
            }
            merge.finish()
        });
        let imported = chunker::import_tar(reader, options, &sink, &bar);
        let merged = merging.join().map_err(|_| anyhow::anyhow!("reading the packages failed"))?;
        match (merged, imported) {
            // An import that ended early breaks the pipe: its own error is the cause.
            (Err(error), Err(import)) if is_broken_pipe(&error) => Err(anyhow::Error::new(import).context("the packages were not imported")),
            (Err(error), _) => Err(error),
            (Ok(_), Err(error)) => Err(anyhow::Error::new(error).context("the packages were not imported")),
            (Ok(merged), Ok(imported)) => Ok((imported, merged)),
        }
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe))
}

/// The program of the package's own name, else the one that its menu entry starts.
fn startup_file(merged: &Merged, packages: &[Package], first: usize) -> Option<Vec<String>> {
    let name = packages[first].control.package();
    let own = |folder: &str| {
        let path = format!("{folder}/{name}");
        merged.programs.iter().any(|(package, program)| *package == first && *program == path).then(|| vec![path])
    };
    own("/usr/bin").or_else(|| own("/usr/games")).or_else(|| {
        let entries: Vec<_> = merged.desktop.iter().filter(|(package, ..)| *package == first).collect();
        let named = entries.iter().find(|(_, file, _)| *file == format!("{name}.desktop"));
        let commands: Vec<Vec<String>> = entries.iter().filter_map(|(.., content)| desktop_command(content)).collect();
        named.and_then(|(.., content)| desktop_command(content)).or_else(|| <[Vec<String>; 1]>::try_from(commands).ok().map(|[only]| only))
    })
}

/// The command of a menu entry (`Exec`), without the codes that stand for files.
fn desktop_command(content: &str) -> Option<Vec<String>> {
    let lines = || content.lines().skip_while(|line| line.trim() != "[Desktop Entry]").skip(1).take_while(|line| !line.starts_with('['));
    let field = |name: &str| lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('=')).map(str::trim);
    if field("Type") != Some("Application") || field("NoDisplay") == Some("true") || field("Hidden") == Some("true") {
        return None;
    }
    let words = shell_words::split(field("Exec")?).ok()?;
    let is_code = |word: &String| word.len() == 2 && word.starts_with('%') && word != "%%";
    let command: Vec<String> = words.into_iter().filter(|word| !is_code(word)).map(|word| word.replace("%%", "%")).collect();
    (!command.is_empty()).then_some(command)
}

fn details(packages: &[Package], merged: &Merged) -> Details {
    let package = |package: &Package| {
        let control = &package.control;
        serde_json::json!({"name": control.package(), "version": control.version(), "architecture": control.get("architecture"),
            "depends": control.get("depends"), "conffiles": control.conffiles, "scripts_not_run": control.scripts})
    };
    let name = |number: &usize| packages[*number].control.package().to_owned();
    Details {
        packages: packages.iter().map(package).collect(),
        conflicts: merged.conflicts.iter().map(|(path, numbers)| (path.clone(), numbers.iter().map(name).collect())).collect(),
        files_read: None,
    }
}

/// Says what a person may want to know, once each.
fn tell(packages: &[Package], details: &Details, with_dependencies: bool) {
    let scripts: Vec<String> = packages
        .iter()
        .map(|package| &package.control)
        .filter(|control| !control.scripts.is_empty())
        .map(|control| format!("{} ({})", control.package(), control.scripts.join(", ")))
        .collect();
    if !scripts.is_empty() {
        note(format!("maintainer scripts are not run: {}", scripts.join(", ")));
    }
    let conffiles: Vec<&str> = packages.iter().flat_map(|package| &package.control.conffiles).map(String::as_str).collect();
    if !conffiles.is_empty() {
        let more = if conffiles.len() > SHOWN { format!(" and {} more", conffiles.len() - SHOWN) } else { String::new() };
        note(format!("configuration files: {}{more}", conffiles[..conffiles.len().min(SHOWN)].join(", ")));
    }
    if !with_dependencies {
        for control in packages.iter().map(|package| &package.control) {
            if let Some(depends) = control.get("depends").or(control.get("pre-depends")) {
                note(format!("{} depends on {}; --with-dependencies takes in what this machine lacks", control.package(), depends.replace('\n', " ")));
            }
        }
    }
    for (path, packages) in details.conflicts.iter().take(SHOWN) {
        note(format!("{path} is in {}: the last one's is taken", packages.join(" and in ")));
    }
    if details.conflicts.len() > SHOWN {
        note(format!("{} more files are in several packages", details.conflicts.len() - SHOWN));
    }
}

#[cfg(test)]
#[path = "deb_tests.rs"]
mod tests;
