//! Secrets from files: a variable `NAME_FILE` holds the path of a file that holds what `NAME` would.
//!
//! Container tools and systemd hand secrets over as files (`/run/secrets`, `$CREDENTIALS_DIRECTORY`). The program reads them and
//! starts itself again with the variables set: its environment is then what it would have been without the files, for every library
//! that looks there. The process keeps its id.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Variables that may come from a file. Not every name with this ending: `AWS_SHARED_CREDENTIALS_FILE` is a variable of its own.
const SECRETS: &[&str] = &["TURBO_REGISTRY_DATABASE_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
const ENDING: &str = "_FILE";
/// Most bytes of a secret.
const MAX_LEN: u64 = 64 << 10;

/// Starts the program again if secrets are to be read; else returns.
///
/// # Errors
/// If a file cannot be read, or a secret is given twice.
pub(crate) fn resolve() -> Result<()> {
    let secrets = read(|name| std::env::var_os(name))?;
    if secrets.is_empty() {
        return Ok(());
    }
    let program = std::env::current_exe().context("could not find this program, to start it with its secrets")?;
    let mut command = Command::new(program);
    for name in SECRETS {
        command.env_remove(format!("{name}{ENDING}"));
    }
    let error = command.args(std::env::args_os().skip(1)).envs(secrets).exec();
    Err(error).context("could not start this program again with its secrets")
}

/// The secrets that files hold.
fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Vec<(&'static str, String)>> {
    let mut secrets = Vec::new();
    for name in SECRETS {
        let of_file = format!("{name}{ENDING}");
        let Some(path) = variable(&of_file).filter(|path| !path.is_empty()).map(PathBuf::from) else { continue };
        ensure!(variable(name).is_none(), "both {name} and {of_file} are set: keep one");
        let len = std::fs::metadata(&path).with_context(|| format!("could not read {of_file}={}", path.display()))?.len();
        ensure!(len <= MAX_LEN, "{} ({of_file}) has {len} bytes: a secret has at most {MAX_LEN}", path.display());
        let text = std::fs::read_to_string(&path).with_context(|| format!("could not read {of_file}={}", path.display()))?;
        let secret = text.trim_end_matches(['\r', '\n']).to_owned();
        ensure!(!secret.is_empty(), "{} ({of_file}) is empty", path.display());
        ensure!(!secret.contains('\0'), "{} ({of_file}) has a zero byte", path.display());
        secrets.push((*name, secret));
    }
    Ok(secrets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_variables() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("url");
        let ask = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> = set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            read(|name| set.iter().find(|(other, _)| other == name).map(|(_, value)| value.into()))
        };
        let of_file = [("TURBO_REGISTRY_DATABASE_URL_FILE", path.to_str().unwrap())];
        assert!(format!("{:#}", ask(&of_file).unwrap_err()).contains("url"), "a file that is not there");
        std::fs::write(&path, "postgres://a:b@c/d\n").unwrap();
        assert_eq!(ask(&of_file).unwrap(), [("TURBO_REGISTRY_DATABASE_URL", "postgres://a:b@c/d".to_owned())]);
        assert!(ask(&[of_file[0], ("TURBO_REGISTRY_DATABASE_URL", "x")]).is_err(), "said twice");
        assert_eq!(ask(&[("AWS_SHARED_CREDENTIALS_FILE", path.to_str().unwrap())]).unwrap(), [], "a variable of its own");
        assert_eq!(ask(&[("AWS_ACCESS_KEY_ID_FILE", "")]).unwrap(), [], "set to nothing");
        std::fs::write(&path, "\n").unwrap();
        assert!(ask(&of_file).is_err(), "empty");
    }
}
