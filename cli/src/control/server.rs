//! The side of the turbo that runs the container.

use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use client_store::complete::Completion;
use rustix::process::{Pid, Signal, geteuid, getpid, kill_process};
use serde_json::{Value, json};

use super::{Answer, Completing, Frozen, Invitation, MAX_REQUEST, Op, Phase, Request, Status, VERSION, address, read_line, write_line};
use crate::containers::now_s;
use crate::join::Description;

/// Most connections at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long whoever connects may take to ask.
const PATIENCE: Duration = Duration::from_secs(30);
/// After a first SIGKILL: how long until the next, which is for what runs then, a shutdown script say.
const AGAIN: Duration = Duration::from_secs(10);

/// Takes a state of the container while its processes are stopped: the state's id.
pub type Capture = Box<dyn Fn() -> Result<String> + Send + Sync>;

/// The socket of a container. Dropping it removes the socket; connections last until this process ends, so that whoever
/// waits for that knows.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    path: PathBuf,
}

struct Shared {
    state: Mutex<State>,
    change: Condvar,
}

struct State {
    phase: Phase,
    started_s: u64,
    running: Option<Run>,
    capture: Option<Arc<Capture>>,
    completions: Vec<(String, Arc<Completion>)>,
    connections: usize,
}

#[derive(Clone)]
struct Run {
    control: vm::Control,
    ticket: vm::Ticket,
    description: Arc<Value>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("phase", &self.lock().phase).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the socket of the container in `folder`, whose lock the caller holds. Starts a thread.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(super::NAME);
        let (opened, address) = address(folder)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("removing {}", path.display()))?,
            _ => {}
        }
        let listener = UnixListener::bind(&address).with_context(|| format!("opening the control socket {}", path.display()))?;
        drop(opened);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).with_context(|| format!("protecting {}", path.display()))?;
        let state = State { phase: Phase::Starting, started_s: now_s(), running: None, capture: None, completions: Vec::new(), connections: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), change: Condvar::new() });
        let serving = Arc::clone(&shared);
        std::thread::Builder::new().name("turbo-control".into()).spawn(move || serving.accept(&listener)).context("no thread for the control socket")?;
        Ok(Self { shared, path })
    }

    /// The application runs.
    pub fn running(&self, running: &mut vm::Running, description: &Description) -> Result<()> {
        let control = running.control().context("the VM cannot be controlled")?;
        let run = Run { control, ticket: running.ticket(), description: Arc::new(serde_json::to_value(description)?) };
        self.shared.change(|state| {
            state.phase = Phase::Running;
            state.running = Some(run);
        });
        Ok(())
    }

    /// How a state is taken while the application runs, from now on.
    pub fn set_capture(&self, capture: Capture) {
        self.shared.change(|state| state.capture = Some(Arc::new(capture)));
    }

    /// The images of which the rest is brought here while the application runs.
    pub fn set_completions(&self, completions: Vec<(String, Arc<Completion>)>) {
        self.shared.change(|state| state.completions = completions);
    }

    /// The application has ended.
    pub fn ending(&self) {
        self.shared.change(|state| {
            state.phase = Phase::Ending;
            state.capture = None;
            state.completions.clear();
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending();
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.change.notify_all();
    }

    /// Waits until `until` gives something.
    fn wait<T>(&self, mut until: impl FnMut(&State) -> Option<T>) -> T {
        let mut state = self.lock();
        loop {
            if let Some(found) = until(&state) {
                return found;
            }
            state = self.change.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn accept(self: Arc<Self>, listener: &UnixListener) {
        loop {
            self.wait(|state| (state.connections < MAX_CONNECTIONS).then_some(()));
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                // Out of descriptors, say: others may close some.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            self.change(|state| state.connections += 1);
            let this = Arc::clone(&self);
            let serve = move || {
                if let Err(error) = this.serve(&stream) {
                    tracing::debug!("a control connection ended: {error:#}");
                }
                this.change(|state| state.connections -= 1);
            };
            if std::thread::Builder::new().name("turbo-control".into()).spawn(serve).is_err() {
                self.change(|state| state.connections -= 1);
            }
        }
    }

    fn serve(&self, stream: &UnixStream) -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let refusal = check_peer(stream).err().map(|error| format!("{error:#}"));
        let mut reader = BufReader::new(stream);
        // Dropped at the end of the connection: that is the point.
        let mut kept = Vec::new();
        while let Some(request) = read_line::<Request>(&mut reader, MAX_REQUEST)? {
            let mut after = After::Nothing;
            // Only after the request was read: an answer is lost if the other side still writes when the connection is closed.
            let outcome = if let Some(refusal) = &refusal {
                Err(anyhow::anyhow!("{refusal}"))
            } else if request.version == VERSION {
                self.answer(&request.op, &mut after)
            } else {
                Err(anyhow::anyhow!("turbo {} runs this container and does not understand this version; stop it with that one", env!("CARGO_PKG_VERSION")))
            };
            let answer = match outcome {
                Ok(value) => Answer { version: VERSION, ok: Some(value), error: None },
                Err(error) => Answer { version: VERSION, ok: None, error: Some(format!("{error:#}")) },
            };
            write_line(&mut { stream }, &answer)?;
            match after {
                After::Nothing => {}
                After::Stop(time_s) => self.insist(time_s),
                After::Keep(one) => {
                    stream.set_read_timeout(None)?;
                    kept.push(one);
                }
            }
        }
        Ok(())
    }

    fn answer(&self, op: &Op, after: &mut After) -> Result<Value> {
        match op {
            Op::Status => {
                let state = self.lock();
                let run = state.running.as_ref();
                Ok(serde_json::to_value(Status {
                    phase: state.phase,
                    supervisor: std::process::id(),
                    init: run.map(|run| run.ticket.pid()),
                    started_s: state.started_s,
                    frozen: run.is_some_and(|run| run.control.is_frozen()),
                    turbo: env!("CARGO_PKG_VERSION").into(),
                    completions: state.completions.iter().map(|(image, one)| Completing { image: image.clone(), progress: one.progress() }).collect(),
                })?)
            }
            Op::Join => {
                let run = self.wait(|state| match state.phase {
                    Phase::Starting => None,
                    Phase::Running => Some(state.running.clone()),
                    Phase::Ending => Some(None),
                });
                let Some((run, lease)) = run.and_then(|run| Some((run.control.lease()?, run))).map(|(lease, run)| (run, lease)) else { bail!(ENDED) };
                let description = serde_json::from_value((*run.description).clone())?;
                *after = After::Keep(Kept::Lease(lease));
                Ok(serde_json::to_value(Invitation { frozen: run.control.is_frozen(), ticket: run.ticket, description })?)
            }
            Op::Stop { signal, time_s } => {
                let run = self.lock().running.clone();
                match &run {
                    Some(run) => {
                        run.control.stop(*signal);
                        // A stopped process does not see the signal.
                        let _ = run.control.thaw();
                    }
                    // The application does not run yet: this process ends, or passes the signal to a startup script.
                    None => kill_process(getpid(), Signal::TERM).context("ending the start")?,
                }
                *after = After::Stop(*time_s);
                Ok(Value::Null)
            }
            Op::Signal { signal } => {
                self.control()?.kill(*signal);
                Ok(Value::Null)
            }
            Op::Freeze => Ok(serde_json::to_value(Frozen { waiting: self.control()?.freeze()? })?),
            Op::Thaw => {
                self.control()?.thaw()?;
                Ok(Value::Null)
            }
            Op::Hold => {
                let hold = Hold::new(self.control()?)?;
                let frozen = Frozen { waiting: hold.waiting };
                *after = After::Keep(Kept::Hold(hold));
                Ok(serde_json::to_value(frozen)?)
            }
            Op::Capture => {
                let capture = self.lock().capture.clone().context("this container's state cannot be taken while it runs; stop it first")?;
                let _hold = Hold::new(self.control()?)?;
                Ok(json!(capture()?))
            }
        }
    }

    fn control(&self) -> Result<vm::Control> {
        let state = self.lock();
        match (state.phase, &state.running) {
            (Phase::Running, Some(run)) => Ok(run.control.clone()),
            (Phase::Starting, _) => bail!("the container is only starting; try again"),
            _ => bail!(ENDED),
        }
    }

    /// After the signal: kills all when the time is over, and again what runs then, until it is over.
    fn insist(&self, time_s: u64) {
        let mut patience = Duration::from_secs(time_s);
        let mut state = self.lock();
        loop {
            let (next, waited) = self.change.wait_timeout_while(state, patience, |state| state.phase != Phase::Ending).unwrap_or_else(PoisonError::into_inner);
            state = next;
            if !waited.timed_out() {
                return;
            }
            match &state.running {
                Some(run) => run.control.end(),
                // A startup script that does not end, say. The VM dies with us.
                None => drop(kill_process(getpid(), Signal::KILL)),
            }
            patience = AGAIN;
        }
    }
}

/// What is said when it is too late.
const ENDED: &str = "the container has ended";

/// What follows an answer.
enum After {
    Nothing,
    Stop(u64),
    Keep(Kept),
}

/// What lasts as long as a connection.
#[allow(dead_code, reason = "they are kept to be dropped")]
enum Kept {
    Lease(vm::Lease),
    Hold(Hold),
}

/// Processes stopped for a while.
struct Hold {
    control: vm::Control,
    waiting: usize,
    was_frozen: bool,
}

impl Hold {
    fn new(control: vm::Control) -> Result<Self> {
        let was_frozen = control.is_frozen();
        let waiting = control.freeze()?;
        Ok(Self { control, waiting, was_frozen })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.was_frozen {
            let _ = self.control.thaw();
        }
    }
}

/// Refuses other users, and programs inside of containers: a container must not control others, nor itself.
fn check_peer(stream: &UnixStream) -> Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream).context("who asks is not known")?;
    if peer.uid != geteuid() && !peer.uid.is_root() {
        bail!("user {} may not control this container", peer.uid.as_raw());
    }
    let namespace = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/user"));
    let pid = Pid::as_raw(Some(peer.pid)).to_string();
    match (namespace(&pid), namespace("self")) {
        (Ok(theirs), Ok(ours)) if theirs == ours => Ok(()),
        // Of root's processes an ordinary user learns nothing; inside of his containers there is no root.
        (Err(_), _) if peer.uid.is_root() && !geteuid().is_root() => Ok(()),
        _ => bail!("process {pid} is inside a container"),
    }
}
