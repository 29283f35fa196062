//! A pseudo-terminal that belongs to the user, for a program to run on.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, fcntl_getfl, fcntl_setfl, openat};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

pub(crate) struct Terminal {
    controller: OwnedFd,
    name: String,
    device: File,
}

impl Terminal {
    pub(crate) fn open(user: Option<u32>) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        let _ = grantpt(&controller);
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
        chown(&name, user, None).unwrap();
        let device = openat(CWD, &name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let flags = fcntl_getfl(&controller).unwrap();
        fcntl_setfl(&controller, flags | OFlags::NONBLOCK).unwrap();
        Self { controller, name, device: device.into() }
    }

    /// The command with this as its standard input and controlling terminal, in a session of its own.
    pub(crate) fn attach(&self, command: Command) -> Command {
        // setsid(1) makes the terminal on its standard input the controlling one.
        let mut attached = Command::new("/usr/bin/setsid");
        attached.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        attached.stdin(self.device.try_clone().unwrap());
        if let Some(dir) = command.get_current_dir() {
            attached.current_dir(dir);
        }
        let owner = std::fs::metadata(&self.name).map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).unwrap();
        if rustix::process::getuid().is_root() && owner != 0 {
            attached.uid(owner).gid(owner);
        }
        attached
    }

    /// Whether the text was written to the terminal since the last call.
    pub(crate) fn has_received(&self, text: &str) -> bool {
        let mut got = Vec::new();
        let mut bytes = [0; 1024];
        while let Ok(len @ 1..) = rustix::io::read(&self.controller, &mut bytes) {
            got.extend_from_slice(&bytes[..len]);
        }
        String::from_utf8_lossy(&got).contains(text)
    }
}
