//! The first administrator of a server that asks for credentials and has no user yet: its password is random, is told once, and
//! lies in a file that only the server's user can read, until the password is changed. There is no default password.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::audit::Actor;
use super::manage::{ManageError, Manager, NewUser, hash_password};
use crate::db::Db;

/// Name of the first administrator.
pub(crate) const FIRST_ADMIN: &str = "admin";
/// File of the first password, in the data folder.
const FILE: &str = "initial-admin-password";
/// What passwords are made of: no letter or digit that looks like another one.
const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
/// Characters of a password: 138 bits.
const LEN: usize = 24;
/// Longest file with a password, in bytes.
const MAX_FILE_LEN: u64 = 4096;

/// Why there is no first administrator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The file with the password cannot be read.
    #[error("could not read the password of the first administrator from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The password cannot be kept for the administrator to find.
    #[error("could not write the password of the first administrator to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The user could not be added.
    #[error("could not add the first administrator")]
    Add(#[from] ManageError),
}

/// The administrator who was added.
#[derive(Clone)]
pub struct FirstAdministrator {
    /// Its name.
    pub name: &'static str,
    /// Its password, if it was made here: to be told once, on the terminal.
    pub password: Option<String>,
    /// Where the password lies, if it was made here.
    pub file: Option<PathBuf>,
}

impl std::fmt::Debug for FirstAdministrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FirstAdministrator").field("name", &self.name).field("file", &self.file).finish_non_exhaustive()
    }
}

fn random_password() -> String {
    use rand::Rng;
    let mut random = rand::rng();
    (0..LEN).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}

/// Adds the administrator, with the password in `given`, or with one of our own that is kept in the folder `data`. `None` if
/// another server of the same database was faster.
pub(crate) async fn first_administrator(db: &Db, data: &Path, given: Option<&Path>) -> Result<Option<FirstAdministrator>, SetupError> {
    let (password, file) = match given {
        Some(path) => (read(path).map_err(|source| SetupError::Read { path: path.into(), source })?, None),
        None => (random_password(), Some(data.join(FILE))),
    };
    let text = password.clone();
    let hash = tokio::task::spawn_blocking(move || hash_password(&text)).await.map_err(|_| ManageError::Password("it could not be hashed".into()))??;
    // The file first: an administrator whose password nobody knows would be of no use.
    if let Some(file) = &file {
        write(file, &password).map_err(|source| SetupError::Write { path: file.clone(), source })?;
    }
    let actor = Actor::console();
    let user = NewUser { name: FIRST_ADMIN, password_hash: &hash, is_admin: true, takes_namespace: true };
    match (Manager { db, actor: &actor }).user_add(user).await {
        Ok(_) => Ok(Some(FirstAdministrator { name: FIRST_ADMIN, password: file.is_some().then_some(password), file })),
        Err(ManageError::UserExists(_)) => {
            forget(data);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes the file with the first password: it is of no use any more.
pub(crate) fn forget(data: &Path) {
    let _ = std::fs::remove_file(data.join(FILE));
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE_LEN).read_to_string(&mut text)?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn write(path: &Path, password: &str) -> std::io::Result<()> {
    // A new file: nothing that lies there, or that a link leads to, decides who may read it.
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{password}")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_and_never_the_same() {
        let (one, other) = (random_password(), random_password());
        assert_ne!(one, other);
        assert_eq!(one.len(), LEN);
    }

    #[test]
    fn the_file_is_for_one_reader() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, "secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap(), "secret");
    }
}
