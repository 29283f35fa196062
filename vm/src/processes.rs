//! The processes of a VM, as the host sees them.
//!
//! A process belongs to a VM if it is in the pid namespace of the VM's pid 1. Where that cannot be asked (a process that may
//! not be traced) its parent decides.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// A process of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id on the host.
    pub pid: i32,
    /// Its id in the VM.
    pub inner_pid: i32,
    /// Its parent's id on the host.
    pub parent: i32,
    /// Its short name, at most 15 bytes.
    pub name: String,
    /// Its command line; empty of a process that has none any more.
    pub command: Vec<OsString>,
    /// The user on the host that it runs as.
    pub uid: u32,
    /// As in `ps(1)`: `R`, `S`, `D`, `T`, `t`, `Z` and so on.
    pub state: char,
    /// Processor time spent in the program, in milliseconds.
    pub user_ms: u64,
    /// Processor time spent in the kernel for it, in milliseconds.
    pub kernel_ms: u64,
}

/// What `/proc/<pid>/stat` tells.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: char,
    parent: i32,
    user_ticks: u64,
    kernel_ticks: u64,
}

/// The processes of the VM whose pid 1 is `init` on the host, by id; without pid 1 itself, which is ours.
///
/// # Errors
/// If `/proc` cannot be read. A VM that has ended has no processes.
pub fn processes(init: i32) -> io::Result<Vec<Process>> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(wanted) = namespace(init) else { return Ok(Vec::new()) };
    let mut all: BTreeMap<i32, (Stat, Option<PathBuf>)> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Whatever vanishes while it is looked at has ended.
        if let Some(stat) = fs::read(format!("/proc/{pid}/stat")).ok().and_then(|bytes| parse_stat(&bytes)) {
            all.insert(pid, (stat, namespace(pid)));
        }
    }
    let belongs = |pid: i32| {
        let ancestors = std::iter::successors(Some(pid), |pid| all.get(pid).map(|(stat, _)| stat.parent));
        let mut known = ancestors.take(all.len() + 1).map_while(|pid| Some((pid, all.get(&pid)?.1.as_ref())));
        known.find_map(|(pid, found)| if pid == init { Some(true) } else { found.map(|found| *found == wanted) }).unwrap_or(false)
    };
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let found = all.iter().filter(|(pid, _)| **pid != init && belongs(**pid));
    Ok(found.filter_map(|(pid, (stat, _))| describe(*pid, stat, ticks)).collect())
}

fn describe(pid: i32, stat: &Stat, ticks: u64) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let inner_pid = field("NSpid:").and_then(|ids| ids.split_whitespace().next_back()?.parse().ok()).unwrap_or(0);
    let uid = field("Uid:").and_then(|ids| ids.split_whitespace().nth(1)?.parse().ok());
    let uid = uid.or_else(|| fs::metadata(format!("/proc/{pid}")).ok().map(|meta| meta.uid()))?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = line.strip_suffix(b"\0").unwrap_or(&line);
    let command = if command.is_empty() { Vec::new() } else { command.split(|byte| *byte == 0).map(|part| OsString::from_vec(part.to_vec())).collect() };
    let (user_ms, kernel_ms) = (stat.user_ticks.saturating_mul(1000) / ticks, stat.kernel_ticks.saturating_mul(1000) / ticks);
    Some(Process { pid, inner_pid, parent: stat.parent, name: stat.name.clone(), command, uid, state: stat.state, user_ms, kernel_ms })
}

/// The name stands in parentheses and may hold anything, also parentheses.
fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let text = String::from_utf8_lossy(bytes);
    let (start, end) = (text.find('(')?, text.rfind(')')?);
    let fields: Vec<&str> = text.get(end + 1..)?.split_whitespace().collect();
    Some(Stat {
        name: text.get(start + 1..end)?.to_owned(),
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        user_ticks: fields.get(11)?.parse().ok()?,
        kernel_ticks: fields.get(12)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let stat = parse_stat(b"7 (a) R (b) S 3 7 7 0 -1 4194560 1 2 3 4 55 66 0 0 20 0 1 0 9 1 2").unwrap();
        assert_eq!(stat, Stat { name: "a) R (b".into(), state: 'S', parent: 3, user_ticks: 55, kernel_ticks: 66 });
        assert_eq!(parse_stat(b"7 (short"), None);
        assert_eq!(parse_stat(b"7 (short) S"), None);
    }

    #[test]
    fn our_own_namespace_has_us() {
        // Not pid 1 of it, but some process whose namespace is ours: this process's parent.
        let parent = std::os::unix::process::parent_id() as i32;
        let me = std::process::id() as i32;
        let found = processes(parent).unwrap().into_iter().find(|process| process.pid == me).unwrap();
        assert_eq!((found.parent, found.uid), (parent, rustix::process::geteuid().as_raw()));
        assert!(!found.command.is_empty());
    }
}
