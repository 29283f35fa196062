//! A terminal: programs that believe to be used by a person.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A program on a terminal of its own.
#[derive(Debug)]
pub struct Pty {
    master: File,
    slave: OwnedFd,
    child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
    /// Up to where [`Pty::expect`] has looked.
    at: usize,
}

impl Pty {
    /// Starts a program, as the leader of a session whose terminal is a new one.
    pub fn start(command: &Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a terminal");
        let name = ptsname(&master, Vec::new()).expect("a terminal has a name");
        let slave = rustix::fs::open(&*name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("a terminal");
        // Whoever opens it by its name must be allowed to.
        rustix::fs::chmod(&*name, Mode::from_raw_mode(0o666)).expect("a terminal of ours");
        let mut wrapped = Command::new("setsid");
        wrapped.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        wrapped.env_clear().env("TERM", "dumb").envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        wrapped.current_dir(command.get_current_dir().expect("a folder"));
        if let Some((uid, gid)) = crate::binaries::test_user() {
            use std::os::unix::process::CommandExt;
            wrapped.uid(uid).gid(gid);
        }
        let stream = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let child = wrapped.stdin(stream()).stdout(stream()).stderr(stream()).spawn().expect("setsid runs");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let master = File::from(master);
        let (mut reader, kept) = (master.try_clone().expect("a descriptor"), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = reader.read(&mut buffer) {
                kept.lock().expect("no test panics here").extend_from_slice(&buffer[..len]);
            }
        });
        Self { master, slave, child, seen, at: 0 }
    }

    /// Types.
    pub fn send(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Waits until the terminal shows this after what was expected before, and returns what came in between.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            let seen = self.seen.lock().expect("no test panics here").clone();
            let rest = &seen[self.at..];
            if let Some(found) = rest.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.at += found + text.len();
                return String::from_utf8_lossy(&rest[..found]).into_owned();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "`{text}` never came: {}", String::from_utf8_lossy(&seen));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Changes the size of the window.
    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.slave, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).expect("a terminal has a size");
    }

    /// Waits for the end.
    pub fn wait(mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "it never ended: {}", String::from_utf8_lossy(&self.seen.lock().expect("no test panics here")));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
