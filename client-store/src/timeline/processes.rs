//! Which processes read from the images, by the thread ids that the kernel tells with each request.

use std::collections::HashMap;

use layer_format::recording::{MAX_NAME_LEN, MAX_PROCESSES, Process};
use parking_lot::Mutex;

#[derive(Debug, Default)]
struct Table {
    numbers: HashMap<u32, u16>,
    list: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    process: Process,
    /// How often it asked, and at which count its name is read again.
    asked: u32,
    next_look: u32,
}

/// Processes and threads, in order of appearance.
#[derive(Debug, Default)]
pub(super) struct Processes(Mutex<Table>);

/// What `/proc` tells of a thread.
struct Status {
    name: String,
    group: u32,
    parent: u32,
}

impl Processes {
    /// The number of the thread `pid`, which is alive, since it waits for the answer.
    pub(super) fn number(&self, pid: u32, now_us: impl FnOnce() -> u64) -> Option<u16> {
        if pid == 0 {
            return None;
        }
        let mut table = self.0.lock();
        if let Some(number) = table.numbers.get(&pid).copied() {
            let known = table.list.get_mut(usize::from(number))?;
            known.asked += 1;
            if known.asked >= known.next_look {
                known.next_look = known.asked.saturating_mul(2);
                drop(table);
                let name = name(pid);
                if let (Some(name), Some(known)) = (name, self.0.lock().list.get_mut(usize::from(number))) {
                    known.process.name = name;
                }
            }
            return Some(number);
        }
        let start_us = now_us();
        // The main thread first, so that threads have somewhere to belong.
        let status = status(pid);
        let group = status.as_ref().map_or(pid, |status| status.group);
        let starter = status.as_ref().and_then(|status| table.numbers.get(&status.parent).copied());
        let mut parent = starter;
        if group != pid {
            parent = table.add(group, start_us, starter, false, name(group));
        }
        let name = status.map(|status| status.name);
        let name = if group == pid { self::name(pid).or(name) } else { name };
        table.add(pid, start_us, parent, group != pid && parent.is_some(), name)
    }

    /// All that were seen.
    pub(super) fn list(&self) -> Vec<Process> {
        self.0.lock().list.iter().map(|known| known.process.clone()).collect()
    }
}

impl Table {
    fn add(&mut self, pid: u32, start_us: u64, parent: Option<u16>, is_thread: bool, name: Option<String>) -> Option<u16> {
        if let Some(number) = self.numbers.get(&pid) {
            return Some(*number);
        }
        let number = u16::try_from(self.list.len()).ok().filter(|number| usize::from(*number) < MAX_PROCESSES)?;
        let process = Process { start_us, parent, is_thread, name: name.unwrap_or_default() };
        self.numbers.insert(pid, number);
        self.list.push(Known { process, asked: 1, next_look: 2 });
        Some(number)
    }
}

/// The base name of a process's program, else the name that it gave itself.
fn name(pid: u32) -> Option<String> {
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let base = program.as_ref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().trim_end_matches(" (deleted)").to_owned());
    base.filter(|name| !name.is_empty()).or_else(|| status(pid).map(|status| status.name)).map(cut)
}

fn status(pid: u32) -> Option<Status> {
    let text = String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/status")).ok()?).into_owned();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    Some(Status { name: cut(field("Name")?.to_owned()), group: field("Tgid")?.parse().ok()?, parent: field("PPid")?.parse().ok()? })
}

fn cut(mut name: String) -> String {
    let mut end = name.len().min(MAX_NAME_LEN);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_belong_to_their_process_and_names_are_those_of_programs() {
        let processes = Processes::default();
        let own = std::process::id();
        let main = processes.number(own, || 5);
        assert_eq!((main, processes.number(own, || 6)), (Some(0), Some(0)));
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let started = processes.number(child.id(), || 9);
        // It is `sleep` once the kernel has replaced the program: looked at again, sooner or later.
        for _ in 0..1 << 12 {
            processes.number(child.id(), || 10);
            if processes.list()[1].name == "sleep" {
                break;
            }
            std::thread::yield_now();
        }
        let _ = child.kill();
        let _ = child.wait();
        let list = processes.list();
        assert_eq!(started, Some(1));
        assert_eq!((list[1].parent, list[1].is_thread, list[1].start_us, list[1].name.as_str()), (Some(0), false, 9, "sleep"));
        assert!(!list[0].name.is_empty() && list[0].parent.is_none());
        let (ready, tell) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        let thread = std::thread::spawn(move || {
            let _ = ready.0.send(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned());
            let _ = tell.1.recv();
        });
        let number = processes.number(ready.1.recv().unwrap(), || 20);
        drop(tell.0);
        thread.join().unwrap();
        let list = processes.list();
        assert_eq!((number, list[2].parent, list[2].is_thread), (Some(2), Some(0), true));
        assert_eq!(processes.number(0, || 0), None);
        // One that is gone has a number and no name.
        assert_eq!(processes.number(u32::MAX - 1, || 1), Some(3));
    }
}
