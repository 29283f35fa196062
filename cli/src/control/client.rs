//! The side of whoever asks.

use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Answer, MAX_ANSWER, Op, Request, Status, VERSION, address, read_line, write_line};
use crate::containers::{Container, Containers, Locked};

/// How long an answer may take that needs no one's work.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a container may be locked by a turbo that does not answer: one that just starts, ends, or copies files.
const BUSY_LIMIT: Duration = Duration::from_secs(15);

/// A connection to the turbo that runs a container.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
}

/// The turbo that runs the container does not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// A container, and what can be done with it.
#[derive(Debug)]
pub enum Reached {
    /// It does not run; it is ours now.
    Stopped(Box<Locked>),
    /// It runs.
    Running(Client),
}

impl Client {
    /// Connects to the turbo that runs the container in `folder`; `None` if there is none that answers.
    pub fn connect(folder: &Path) -> Result<Option<Self>> {
        let Ok((_opened, address)) = address(folder) else { return Ok(None) };
        match UnixStream::connect(&address) {
            Ok(stream) => Ok(Some(Self { reader: BufReader::new(stream) })),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("connecting to the container in {}", folder.display())),
        }
    }

    /// Asks, and waits for the answer as long as it takes.
    pub fn ask<T: DeserializeOwned>(&mut self, op: Op) -> Result<T> {
        self.ask_within(op, None)
    }

    /// What the container does.
    pub fn status(&mut self) -> Result<Status> {
        self.ask_within(Op::Status, Some(PATIENCE))
    }

    fn ask_within<T: DeserializeOwned>(&mut self, op: Op, patience: Option<Duration>) -> Result<T> {
        self.reader.get_ref().set_read_timeout(patience)?;
        let request = Request { version: VERSION, op };
        // A turbo that is ending may have closed the connection.
        let written = match write_line(&mut self.reader.get_ref(), &request) {
            // One that refuses whoever asks says so, and closes at once: its word is there to be read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(anyhow::Error::from),
        };
        let answer = written.and_then(|()| read_line::<Answer>(&mut self.reader, MAX_ANSWER));
        let answer = answer.context("the turbo that runs the container does not answer")?.context("the container has ended")?;
        match answer {
            Answer { error: Some(error), .. } => Err(Refused(error).into()),
            Answer { version: VERSION, ok, .. } => {
                serde_json::from_value(ok.unwrap_or(Value::Null)).context("the turbo that runs the container is another version")
            }
            Answer { version, .. } => bail!("the container is run by another version of turbo (messages {version}, not {VERSION})"),
        }
    }

    /// Waits until the turbo that runs the container has closed the connection: that is its end.
    pub fn wait_for_end(mut self) -> Result<()> {
        self.reader.get_ref().set_read_timeout(None)?;
        let mut rest = [0; 256];
        loop {
            match self.reader.read(&mut rest) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error).context("waiting for the end of the container"),
            }
        }
    }
}

/// Locks the container, or connects to the turbo that runs it. Waits a while for one that does neither: it starts or ends.
pub fn reach(containers: &Containers, container: &Container) -> Result<Reached> {
    let begun = Instant::now();
    loop {
        if let Some(locked) = containers.lock(container)? {
            return Ok(Reached::Stopped(Box::new(locked)));
        }
        if let Some(client) = Client::connect(&containers.folder(container))? {
            return Ok(Reached::Running(client));
        }
        if begun.elapsed() > BUSY_LIMIT {
            let who = containers.owner(container).map_or_else(String::new, |pid| format!(" (process {pid})"));
            bail!("the sandbox of {} is in use by another turbo{who}; wait for its end, or end it", container.shown());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A connection to the container, if it runs.
pub fn connect(containers: &Containers, container: &Container) -> Result<Option<Client>> {
    let begun = Instant::now();
    while containers.is_running(container) {
        if let Some(client) = Client::connect(&containers.folder(container))? {
            return Ok(Some(client));
        }
        if begun.elapsed() > BUSY_LIMIT {
            let who = containers.owner(container).map_or_else(String::new, |pid| format!(" (process {pid})"));
            bail!("{} is in use by another turbo{who} that does not answer; wait for its end, or end it", container.shown());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}
