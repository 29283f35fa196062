//! What `turbo login` keeps: for each registry a name and a secret, in `turbo/credentials.toml` in the XDG configuration folder,
//! which no one else may read.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// The file.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Credentials {
    /// By URL, without a slash at the end.
    hubs: BTreeMap<String, Credential>,
}

/// What is kept for a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Credential {
    /// A user's login: tokens are got for it.
    Login {
        /// The user.
        name: String,
        /// Not to be shown.
        secret: String,
    },
    /// A key, which is sent as it is.
    Key {
        /// The key's name.
        name: String,
        /// Not to be shown.
        secret: String,
    },
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl Credential {
    /// Whose it is.
    pub fn name(&self) -> &str {
        match self {
            Self::Login { name, .. } | Self::Key { name, .. } => name,
        }
    }
}

impl Credentials {
    /// Reads the file; one that does not exist is empty.
    ///
    /// # Errors
    /// If others may read it, or it is not such a file.
    pub fn read(path: &Path) -> Result<Self> {
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        if metadata.permissions().mode() & 0o077 != 0 {
            bail!("others may read {0}, in which secrets are: `chmod 600 {0}`, and `turbo login` again if others are about", path.display());
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        // The parser's message shows a part of the text: not of this one.
        toml::from_str(&text).map_err(|_| anyhow::anyhow!("{} is not valid: remove it, and `turbo login` again", path.display()))
    }

    /// What is kept for this registry.
    pub fn get(&self, hub: &str) -> Option<&Credential> {
        self.hubs.get(hub)
    }

    /// Keeps this for the registry, in place of what was kept.
    pub fn put(&mut self, hub: &str, credential: Credential) {
        self.hubs.insert(hub.to_owned(), credential);
    }

    /// Forgets what was kept for the registry.
    pub fn remove(&mut self, hub: &str) -> Option<Credential> {
        self.hubs.remove(hub)
    }

    /// Replaces the file as a whole, for its owner's eyes alone.
    pub fn write(&self, path: &Path) -> Result<()> {
        let writing = || format!("writing {}", path.display());
        let folder = path.parent().with_context(writing)?;
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        // Made with its mode: at no moment could others open it.
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).with_context(writing)?;
        file.write_all(toml::to_string(self)?.as_bytes()).with_context(writing)?;
        file.sync_all().with_context(writing)?;
        std::fs::rename(&temporary, path).with_context(writing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_for_one_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("turbo/credentials.toml");
        assert!(Credentials::read(&path).unwrap().hubs.is_empty());
        let mut kept = Credentials::default();
        kept.put("https://a.example", Credential::Login { name: "alice".into(), secret: "one".into() });
        kept.put("http://b.example:5000", Credential::Key { name: "ci".into(), secret: "two".into() });
        kept.write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut read = Credentials::read(&path).unwrap();
        assert_eq!(read.get("http://b.example:5000"), kept.get("http://b.example:5000"));
        assert!(read.remove("https://a.example").is_some() && read.get("https://a.example").is_none());
        assert!(!format!("{:?}", kept.hubs).contains("one"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Credentials::read(&path).err().unwrap().to_string().contains("chmod 600"));
        std::fs::write(&path, "secret = [").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!Credentials::read(&path).err().unwrap().to_string().contains("secret"));
    }
}
