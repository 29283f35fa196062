//! What a package says of itself: the fields of its `control` file (deb-control(5)).

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::commands::import) struct Control {
    /// Fields by name, in lower case.
    fields: BTreeMap<String, String>,
    /// Configuration files: absolute paths.
    pub(in crate::commands::import) conffiles: Vec<String>,
    /// Maintainer scripts that the package has.
    pub(in crate::commands::import) scripts: Vec<String>,
}

impl Control {
    /// Parses fields: `Name: value`, lines that start with a space go on with the last one.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut fields: BTreeMap<String, String> = BTreeMap::new();
        let mut last: Option<String> = None;
        for line in text.lines().take_while(|line| !line.trim().is_empty()).filter(|line| !line.starts_with('#')) {
            if line.starts_with([' ', '\t']) {
                let field = last.as_ref().and_then(|name| fields.get_mut(name)).context("the control file begins in the middle of a field")?;
                field.push('\n');
                field.push_str(line.trim());
                continue;
            }
            let (name, value) = line
                .split_once(':')
                .with_context(|| format!("the control file has a line that is no field: {:?}", line.chars().take(80).collect::<String>()))?;
            let name = name.trim().to_ascii_lowercase();
            fields.insert(name.clone(), value.trim().to_owned());
            last = Some(name);
        }
        let control = Self { fields, ..Self::default() };
        let is_name = |name: &str| name.len() >= 2 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
        if !is_name(control.package()) {
            bail!("the control file names no package");
        }
        if !is_version(control.version()) {
            bail!("the control file has no version");
        }
        if control.get("architecture").is_none() {
            bail!("the control file has no architecture");
        }
        Ok(control)
    }

    /// A field, unless it is empty.
    pub(in crate::commands::import) fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Name of the package.
    pub(in crate::commands::import) fn package(&self) -> &str {
        self.get("package").unwrap_or_default()
    }

    /// Version, with its epoch.
    pub(in crate::commands::import) fn version(&self) -> &str {
        self.get("version").unwrap_or_default()
    }

    /// Architecture as `uname -m` names it, `any` for `all`.
    pub(in crate::commands::import) fn architecture(&self) -> &str {
        match self.get("architecture").unwrap_or_default() {
            "all" => "any",
            "amd64" => "x86_64",
            "arm64" => "aarch64",
            "armhf" => "armv7l",
            "armel" => "armv6l",
            "i386" => "i686",
            "loong64" => "loongarch64",
            "mips64el" => "mips64",
            "ppc64el" => "ppc64le",
            same => same,
        }
    }

    /// First line of the description.
    pub(in crate::commands::import) fn synopsis(&self) -> Option<&str> {
        self.get("description").and_then(|text| text.lines().next())
    }

    /// Name for an image: what a reference cannot have is replaced.
    pub(in crate::commands::import) fn image_name(&self) -> String {
        let name = self.package().replace("++", "pp").replace('+', "-plus-");
        let mut parts = Vec::new();
        for part in name.split(['-', '.']).filter(|part| !part.is_empty()) {
            parts.push(part);
        }
        parts.join("-")
    }

    /// Version as a release: without the epoch; `~`, which comes before the version itself, becomes `-`, `+` becomes `.`.
    pub(in crate::commands::import) fn release(&self) -> String {
        let version = self.version();
        let version = version.split_once(':').map_or(version, |(_, version)| version);
        version
            .chars()
            .map(|c| {
                if c == '+' {
                    '.'
                } else if c.is_ascii_alphanumeric() || c == '.' {
                    c
                } else {
                    '-'
                }
            })
            .collect()
    }
}

fn is_version(version: &str) -> bool {
    version.starts_with(|c: char| c.is_ascii_alphanumeric())
        && version.len() <= 100
        && version.chars().all(|c| c.is_ascii_alphanumeric() || ".+-~:".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(package: &str, version: &str) -> Result<Control> {
        Control::parse(&format!("Package: {package}\nVersion: {version}\nArchitecture: amd64\nDescription: short\n long\n .\n more\n\nPackage: ignored\n"))
    }

    #[test]
    fn fields_are_read_and_named_as_images_are() {
        let one = control("g++-12", "4:12.2.0-14+deb12u1~bpo1").unwrap();
        assert_eq!((one.image_name().as_str(), one.release().as_str()), ("gpp-12", "12.2.0-14.deb12u1-bpo1"));
        assert_eq!((one.synopsis(), one.get("description")), (Some("short"), Some("short\nlong\n.\nmore")));
        assert_eq!(one.architecture(), "x86_64");
        for (package, name) in [("libstdc++6", "libstdcpp6"), ("libc6.1", "libc6-1"), ("a+b", "a-plus-b"), ("libfoo+", "libfoo-plus")] {
            let name_of = control(package, "1").unwrap().image_name();
            assert_eq!(name_of, name);
            assert!(name_of.parse::<layer_format::reference::Repository>().is_ok(), "{name_of}");
        }
    }

    #[test]
    fn what_is_no_control_file_is_refused() {
        for (package, version) in [("", "1"), ("../x", "1"), ("UPPER", "1"), ("ok", ""), ("ok", "../1"), ("ok", "1 2"), ("x", "1")] {
            assert!(control(package, version).is_err(), "{package} {version}");
        }
        for text in ["", " continued\n", "no field\n", "Package: ok\nVersion: 1\n"] {
            assert!(Control::parse(text).is_err(), "{text:?}");
        }
    }
}
