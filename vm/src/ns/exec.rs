//! Becoming the application: working directory, search in `PATH`, `execve`.

use std::ffi::CString;

use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::protocol::{Failure, Plan, Step};
use crate::sys::process::execve;

/// `PATH` where the environment has none.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Replaces this process with this command; returns only if that fails.
pub(crate) fn exec(plan: &Plan, argv: &[Vec<u8>]) -> Failure {
    if let Err(errno) = rustix::process::chdir(&plan.working_dir[..]) {
        let fallback = if plan.working_dir_required { Err(errno) } else { rustix::process::chdir("/") };
        if let Err(errno) = fallback {
            return Failure { path: String::from_utf8_lossy(&plan.working_dir).into_owned(), ..Failure::new(Step::WorkingDir, errno) };
        }
    }
    let strings = |list: &[Vec<u8>]| list.iter().map(|bytes| CString::new(&bytes[..])).collect::<Result<Vec<_>, _>>();
    let name = argv.first().map(Vec::as_slice).unwrap_or_default();
    let failed =
        |errno, interpreter_missing| Failure { path: String::from_utf8_lossy(name).into_owned(), interpreter_missing, ..Failure::new(Step::Exec, errno) };
    let (Ok(argv), Ok(env)) = (strings(argv), strings(&plan.env)) else {
        return failed(Errno::INVAL, false);
    };
    let searched = !name.contains(&b'/');
    // As execvp(3): a file that may not be executed is remembered, but a later one in the path may do.
    let mut worst = Errno::NOENT;
    for candidate in candidates(name, &plan.path) {
        let Ok(program) = CString::new(candidate) else { return failed(Errno::INVAL, false) };
        match execve(&program, &argv, &env) {
            Errno::NOENT if access(program.as_c_str(), Access::EXISTS).is_ok() => return failed(Errno::NOENT, true),
            Errno::NOENT | Errno::NOTDIR => {}
            // A directory of `PATH` that may not be searched does not count.
            Errno::ACCESS if !searched || access(program.as_c_str(), Access::EXISTS).is_ok() => worst = Errno::ACCESS,
            Errno::ACCESS => {}
            errno => return failed(errno, false),
        }
    }
    failed(worst, false)
}

fn candidates(name: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') || name.is_empty() {
        return vec![name.to_vec()];
    }
    let path = if path.is_empty() { DEFAULT_PATH } else { path };
    path.split(|b| *b == b':').map(|dir| [if dir.is_empty() { b"." } else { dir }, name].join(&b'/')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_name_is_searched() {
        assert_eq!(candidates(b"sh", b"/bin::/x"), [b"/bin/sh".to_vec(), b"./sh".to_vec(), b"/x/sh".to_vec()]);
        assert_eq!(candidates(b"./sh", b"/bin"), [b"./sh".to_vec()]);
        assert_eq!(candidates(b"sh", b"").len(), 6);
    }
}
