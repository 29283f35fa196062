//! The control socket of a container that runs: `containers/<id>/control`, served by the turbo that runs it.
//!
//! Requests and answers are lines of JSON with a version, bounded in length. Only the user who runs the container, and only
//! from outside of containers, is answered. A container that was started detached is controlled in the same way as one in a
//! terminal. What a crash leaves of the socket is replaced by the next start, which holds the container's lock.

pub mod client;
pub mod server;

use std::io::{BufRead, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use client_store::complete::{Progress, State};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::join::Description;

/// Version of the messages. Both sides refuse others.
pub const VERSION: u32 = 1;
/// Longest request, in bytes.
const MAX_REQUEST: usize = 64 << 10;
/// Longest answer, in bytes: image manifests may be large.
const MAX_ANSWER: usize = 64 << 20;
/// Name of the socket in the container's folder.
const NAME: &str = "control";

/// What is asked of a container that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Op {
    /// What it does: [`Status`].
    Status,
    /// What it takes to join it: [`Invitation`]. Waits until it has started. It does not end while the connection lasts.
    Join,
    /// Send the signal to the application and to programs that joined; after `time_s` seconds kill all. Ends with the
    /// connection, which lasts until the container is over.
    Stop {
        /// Signal number.
        signal: i32,
        /// Seconds until SIGKILL.
        time_s: u64,
    },
    /// Send a signal to the application alone.
    Signal {
        /// Signal number.
        signal: i32,
    },
    /// Stop all processes: [`Frozen`].
    Freeze,
    /// Let them go on.
    Thaw,
    /// Stop all processes as long as the connection lasts: [`Frozen`].
    Hold,
    /// Take a state of the container, its processes stopped meanwhile: the state's id.
    Capture,
}

/// What a container that runs does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Where it is.
    pub phase: Phase,
    /// The turbo that runs it.
    pub supervisor: u32,
    /// Pid 1 of its VM on the host, once it has started.
    pub init: Option<i32>,
    /// When it was started, in seconds since 1970.
    pub started_s: u64,
    /// Whether its processes are stopped.
    pub frozen: bool,
    /// Version of the turbo that runs it.
    pub turbo: String,
    /// Images of which the rest is being brought here.
    #[serde(default)]
    pub completions: Vec<Completing>,
}

/// An image of which the rest is being brought here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completing {
    /// Its name.
    pub image: String,
    /// How far it is.
    #[serde(flatten)]
    pub progress: Progress,
}

impl Completing {
    /// In few words: `local 63 %, completing 2.1 MB/s`; nothing before its size is known.
    pub fn words(&self) -> Option<String> {
        let Progress { state, total_bytes, local_bytes, bytes_per_s } = self.progress;
        let percent = local_bytes.checked_mul(100)?.checked_div(total_bytes)?;
        Some(match state {
            State::Running => format!("local {percent} %, completing {}/s", crate::output::bytes(bytes_per_s)),
            State::Done => "local".into(),
            _ => format!("local {percent} %"),
        })
    }
}

/// Where a container that runs is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Images are looked up, startup scripts run.
    Starting,
    /// The application runs.
    Running,
    /// The application has ended; what it wrote is being kept.
    Ending,
}

/// What it takes to join a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Invitation {
    /// Its VM.
    pub ticket: vm::Ticket,
    /// What determines program, environment and working directory.
    pub description: Description,
    /// Whether its processes are stopped.
    pub frozen: bool,
}

/// The answer to [`Op::Freeze`] and [`Op::Hold`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Frozen {
    /// Threads that stop as soon as the disk or the network lets them.
    pub waiting: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    version: u32,
    #[serde(flatten)]
    op: Op,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ok: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Reads a line of at most `max` bytes; `None` at the end.
fn read_line<T: DeserializeOwned>(reader: &mut impl BufRead, max: usize) -> Result<Option<T>> {
    let mut line = Vec::new();
    loop {
        let available = match reader.fill_buf() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            available => available?,
        };
        if available.is_empty() {
            return if line.is_empty() { Ok(None) } else { bail!("the message is cut off") };
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |end| end + 1);
        if line.len() + taken > max {
            bail!("the message is longer than {max} bytes");
        }
        line.extend_from_slice(&available[..taken]);
        reader.consume(taken);
        if end.is_some() {
            return serde_json::from_slice(&line).map(Some).context("the message makes no sense");
        }
    }
}

fn write_line(writer: &mut impl Write, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    writer.write_all(&line)?;
    writer.flush()
}

/// The socket's address through an open folder: a path of our own may be longer than the 107 bytes of a socket address.
fn address(folder: &Path) -> Result<(OwnedFd, PathBuf)> {
    use rustix::fs::{Mode, OFlags};
    let opened = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let opened = opened.with_context(|| format!("opening {}", folder.display()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", opened.as_raw_fd()));
    Ok((opened, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_bounded_and_cut_ones_are_not_believed() {
        let read = |bytes: &[u8], max| read_line::<Request>(&mut &bytes[..], max);
        let line = br#"{"version":1,"op":"stop","signal":15,"time_s":10}"#;
        let whole = [&line[..], b"\n"].concat();
        assert_eq!(read(&whole, 1000).unwrap().unwrap().op, Op::Stop { signal: 15, time_s: 10 });
        assert!(read(b"", 1000).unwrap().is_none());
        for (bytes, max) in [(&line[..], 1000), (&whole[..], 20), (b"{\"version\":1,\"op\":\"fly\"}\n", 1000), (b"\xff\n", 1000), (&[b'['; 5000][..], 1000)] {
            assert!(read(bytes, max).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn nested_json_does_not_overflow_the_stack() {
        let bytes = [vec![b'['; 60_000], b"\n".to_vec()].concat();
        assert!(read_line::<Value>(&mut &bytes[..], MAX_REQUEST).is_err());
    }
}
