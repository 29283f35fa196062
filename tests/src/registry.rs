//! A real registry on a port of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::binaries::binary;

/// `turbo-registry serve` in a process of its own; killed when dropped.
#[derive(Debug)]
pub struct TestRegistry {
    child: Child,
    address: String,
    data: PathBuf,
    _folder: Option<tempfile::TempDir>,
}

impl TestRegistry {
    /// Starts one with an empty data folder.
    pub fn start() -> Self {
        Self::start_with_options(&[])
    }

    /// The same, with these options of `serve`.
    pub fn start_with_options(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().join("registry");
        let mut command = Self::command(&data, "127.0.0.1:0");
        command.args(options);
        let mut registry = Self::start_with(command, &data);
        registry._folder = Some(folder);
        registry
    }

    /// Starts one over this data folder, on this address.
    pub fn start_at(data: &Path, listen: &str) -> Self {
        Self::start_with(Self::command(data, listen), data)
    }

    /// The command that [`TestRegistry::start_at`] runs.
    pub fn command(data: &Path, listen: &str) -> Command {
        let mut command = Command::new(binary("turbo-registry"));
        command.args(["serve", "--listen", listen, "--data"]).arg(data);
        command
    }

    /// Starts one with this command, which runs it over this data folder.
    pub fn start_with(mut command: Command, data: &Path) -> Self {
        command.stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().expect("the registry starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let mut said = Vec::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                let _ = child.wait();
                panic!("the registry ended at start: {said:?}");
            };
            if let Some((_, url)) = line.split_once("listening on http://") {
                break url.split_whitespace().next().unwrap_or_default().to_owned();
            }
            said.push(line);
        };
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if std::env::var_os("TURBO_TEST_LOG").is_some() {
                    eprintln!("registry: {line}");
                }
            }
        });
        Self { child, address, data: data.into(), _folder: None }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it keeps its data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// kill -9, and start again over the same data and on the same port.
    pub fn crash_and_restart(&mut self) {
        self.kill();
        let folder = self._folder.take();
        let (data, address) = (self.data.clone(), self.address.clone());
        *self = Self::start_at(&data, &address);
        self._folder = folder;
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.kill();
    }
}
