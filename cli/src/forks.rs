//! The processes that become part of a VM, forked before any thread exists: one that makes a VM, and one that joins one.
//! Which of them is needed is known later.

use anyhow::{Context, Result};

/// What was forked.
#[derive(Debug, Default)]
pub struct Forks {
    launchers: Vec<vm::Launcher>,
    joiner: Option<vm::Joiner>,
}

impl Forks {
    /// For a command that starts or joins.
    pub fn both() -> Result<Self> {
        Ok(Self { launchers: vec![vm::Launcher::fork()?], joiner: Some(vm::Joiner::fork()?) })
    }

    /// For a command that makes up to `count` VMs.
    pub fn launchers(count: usize) -> Result<Self> {
        Ok(Self { launchers: (0..count).map(|_| vm::Launcher::fork()).collect::<Result<_, _>>()?, joiner: None })
    }

    /// Both.
    pub fn take(mut self) -> Result<(vm::Launcher, vm::Joiner)> {
        Ok((self.take_launcher()?, self.joiner.context("it was just forked")?))
    }

    /// One that makes a VM.
    pub fn take_launcher(&mut self) -> Result<vm::Launcher> {
        self.launchers.pop().context("it was just forked")
    }
}
