//! Looking into a container that does not run: its VM is made without the application, and files are reached through it.
//!
//! So that images, sandbox, host and modes come together exactly as for the application, in one implementation.

use std::ffi::OsString;
use std::time::Instant;

use anyhow::{Context, Result};

use super::Launch;
use crate::app::App;
use crate::containers::Locked;
use crate::isolation;
use crate::stack::Stack;
use crate::startup::Startup;

/// A VM without an application, until it is dropped.
#[derive(Debug)]
pub struct Visit {
    // Dropped first: the VM's filesystems need the stack.
    running: vm::Running,
    _stack: Stack,
}

impl Visit {
    /// The VM's pid 1, as a process id of the host.
    pub fn init(&self) -> i32 {
        self.running.pid()
    }
}

impl Launch {
    /// Makes the container's VM. No script and no application runs.
    pub fn visit(&self, app: &App, launcher: vm::Launcher, container: &Locked) -> Result<Visit> {
        let store = app.store()?;
        let stack = Stack::start(app, &store, &self.request(&container.container.stack))?;
        let isolation::Composed { rules, .. } = isolation::rules(&stack, &self.level, app.settings.allow_merge)?;
        let nothing = Startup { command: Vec::new(), beside: Vec::new(), entry_point: String::new(), image: None };
        let mut spec = self.spec(app, container, &stack, &nothing, rules, Instant::now())?;
        spec.idle = true;
        spec.command = Vec::<OsString>::new();
        stack.remember(&store)?;
        let running = launcher.start(spec, stack.layers()).with_context(|| format!("reaching the files of {}", container.container.shown()))?;
        Ok(Visit { running, _stack: stack })
    }
}
