//! `turbo kill`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::app::App;
use crate::commands::selection::Selection;
use crate::commands::stop::{end_all, report};
use crate::containers::{Container, Containers};
use crate::control::Op;
use crate::control::client::Client;
use crate::exit::{Exit, UsageError};

/// End containers at once, without giving them time.
///
/// What was written is kept, and a state is captured, as after any end. A turbo that does not answer is killed itself; the
/// sandbox is whole then, too, and the next start captures its state.
#[derive(Debug, clap::Args)]
pub struct Kill {
    #[command(flatten)]
    selection: Selection,
    /// Send only this signal, by name or number, to the application; it may go on.
    #[arg(short, long, value_parser = parse_signal)]
    signal: Option<i32>,
}

impl Kill {
    /// Kills them.
    pub fn run(self, app: &App) -> Result<Exit> {
        let containers = app.containers();
        let found = self.selection.find(&containers, |container| containers.is_running(container))?;
        if let Some(signal) = self.signal {
            for container in &found {
                let mut client = client(&containers, container)?.with_context(|| format!("{} is busy and takes no signals", container.shown()))?;
                client.ask::<()>(Op::Signal { signal })?;
            }
            app.output.result(&found, |out| found.iter().try_for_each(|container| writeln!(out, "{}", container.shown())))?;
            return Ok(Exit::Success);
        }
        let mut willing = Vec::new();
        for container in found {
            if client(&containers, &container)?.is_some_and(|mut client| client.status().is_ok()) {
                willing.push(container);
            } else {
                kill_supervisor(&containers, &container)?;
                app.output.result(&container, |out| writeln!(out, "{}", container.shown()))?;
            }
        }
        report(app, &end_all(&containers, willing, &Op::Stop { signal: libc::SIGKILL, time_s: 0 })?)
    }
}

fn client(containers: &Containers, container: &Container) -> Result<Option<Client>> {
    if !containers.is_running(container) {
        bail!("{} does not run", container.shown());
    }
    Client::connect(&containers.folder(container))
}

/// Kills the turbo that holds the lock, if it is sure which that is.
fn kill_supervisor(containers: &Containers, container: &Container) -> Result<()> {
    let lock = containers.folder(container).join("lock");
    let unknown = || format!("which process runs {} is not known", container.shown());
    let pid = containers.owner(container).and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).with_context(unknown)?;
    let open = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).with_context(unknown)?;
    if !open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|link| link == lock) {
        bail!(unknown());
    }
    kill_process(pid, Signal::KILL).with_context(|| format!("killing process {}", pid.as_raw_nonzero()))?;
    while containers.is_running(container) && containers.owner(container).is_some_and(|owner| owner == pid.as_raw_nonzero().get().unsigned_abs()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A signal by name, with or without `SIG`, or by number.
fn parse_signal(text: &str) -> Result<i32, UsageError> {
    const NAMES: [(&str, i32); 11] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("TERM", libc::SIGTERM),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("WINCH", libc::SIGWINCH),
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = || text.parse().ok().filter(|number| Signal::from_named_raw(*number).is_some());
    named.or_else(number).ok_or_else(|| UsageError(format!("`{text}` is not a signal; try TERM, INT, HUP, USR1 or a number")))
}

#[cfg(test)]
mod tests {
    use super::parse_signal;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [("TERM", 15), ("sigint", 2), ("9", 9), ("SIGUSR1", 10)] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "-1", "99", "NOPE"] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
