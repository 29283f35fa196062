//! The messages between the parent and the VM's processes: a length, little-endian u32, and that many bytes of JSON, over
//! a stream socket pair. The parent speaks first (the plan); later pid 1 holds the other end.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::guard::Guard;
use crate::regions::Kind;

/// Most descriptors with one message.
const MAX_FDS: usize = 4;

/// A message with a bound on its length, in bytes of JSON.
pub(crate) trait Message: Serialize + DeserializeOwned {
    const MAX_LEN: u32;
}

impl Message for ToVm {
    /// An environment and arguments of a few megabytes.
    const MAX_LEN: u32 = 64 << 20;
}

impl Message for FromVm {
    /// A few paths. Whatever somebody might do to pid 1, it cannot fill the parent's memory.
    const MAX_LEN: u32 = 256 << 10;
}

/// Longest text in a message from inside, in bytes; the rest is cut off.
const MAX_TEXT: usize = 4096;

/// What the parent says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToVm {
    /// With it comes, if the caller has one, a descriptor that the VM's processes keep open until the last of them ends.
    Start(Box<Plan>),
    /// Enter a VM that runs, and execute the plan's command there. With it comes a pidfd of its pid 1.
    Join(Box<Plan>),
    /// Send this signal to the application, or to the script that runs in its place.
    Signal(i32),
    /// Remount the overlay, so that the kernel asks anew which names there are.
    Refresh,
    /// Send this signal to the application and to all programs that joined.
    Stop(i32),
    /// Kill all that is left and end the VM, with the shutdown scripts. Expected once after [`FromVm::Exited`] or
    /// [`FromVm::Signaled`]; until then others may use the VM.
    Finish,
    /// Make the application's process group the terminal's foreground again.
    Foreground,
    /// Stop every process of the VM but pid 1.
    Freeze,
    /// Let those that [`ToVm::Freeze`] stopped go on.
    Thaw,
    /// Try namespaces, FUSE and overlayfs, and report.
    Probe { sandbox: Vec<u8>, uid: u32, gid: u32 },
}

/// What the VM says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromVm {
    /// FUSE is mounted; the descriptors come with the message, in the order of [`Plan::fuse`].
    Fuse,
    /// The host's pid of pid 1.
    Init(i32),
    /// The root is complete and entered.
    Mounted,
    /// The command was executed.
    Started,
    /// The answer to [`ToVm::Freeze`]: how many threads could not be stopped yet.
    Frozen(usize),
    /// The answer to [`ToVm::Thaw`].
    Thawed,
    /// Something harmless went wrong.
    Warning(String),
    /// The run is over before it began.
    Failed(Failure),
    /// The application stopped (job control).
    Stopped(i32),
    /// The application ended.
    Exited(i32),
    /// The application was killed.
    Signaled(i32),
    /// Nothing of the VM is left; it ends at once.
    Finished,
    /// A step of a probe worked.
    Passed,
}

/// A FUSE filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Served {
    Images,
    Host,
    Union,
    Hide,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Step {
    Unshare,
    WriteMaps,
    OpenFuse,
    Overlay,
    WorkingDir,
    Exec,
    /// Entering the namespaces of a VM that runs.
    Join,
    /// A startup script; `path` is its program, and this is what became of it.
    Script(String),
    Other(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) path: String,
    pub(crate) errno: i32,
    pub(crate) interpreter_missing: bool,
}

impl Failure {
    pub(crate) fn new(step: Step, errno: rustix::io::Errno) -> Self {
        Self { step, path: String::new(), errno: errno.raw_os_error(), interpreter_missing: false }
    }

    pub(crate) fn at(what: &str, path: impl AsRef<[u8]>, errno: rustix::io::Errno) -> Self {
        let path = path.as_ref();
        Self { path: String::from_utf8_lossy(&path[..path.len().min(MAX_TEXT)]).into_owned(), ..Self::new(Step::Other(what.to_owned()), errno) }
    }
}

/// What the child needs to know of a run. Paths are bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) sandbox: Vec<u8>,
    pub(crate) argv: Vec<Vec<u8>>,
    /// Of the commands that are started beside it.
    pub(crate) beside: Vec<Vec<Vec<u8>>>,
    /// `NAME=value`
    pub(crate) env: Vec<Vec<u8>>,
    pub(crate) path: Vec<u8>,
    pub(crate) working_dir: Vec<u8>,
    pub(crate) working_dir_required: bool,
    /// Source and target, both absolute.
    pub(crate) binds: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// What they are inside.
    pub(crate) inner_uid: u32,
    pub(crate) inner_gid: u32,
    /// The FUSE filesystems to mount.
    pub(crate) fuse: Vec<Served>,
    /// What serves which directory, the root first, parents before what is below.
    pub(crate) regions: Vec<(Vec<u8>, Kind)>,
    /// Whether `/tmp` is the VM's own.
    pub(crate) private_tmp: bool,
    /// Whether `/dev/shm` is the host's.
    pub(crate) host_shm: bool,
    /// What the application may not do.
    pub(crate) guard: Guard,
    /// Whether the application gets a process group of its own: if there is no terminal.
    pub(crate) own_group: bool,
    /// Whether the application gets a process group of its own, in the foreground of the terminal on its standard input. An
    /// interactive shell needs it: the group of turbo has no number that is valid in the VM.
    #[serde(default)]
    pub(crate) terminal: bool,
    /// Run before the application, in order.
    pub(crate) startup_scripts: Vec<Vec<Vec<u8>>>,
    /// Run after the last process, in order.
    pub(crate) shutdown_scripts: Vec<Vec<Vec<u8>>>,
    /// Whether there is no application: the VM stands until the parent ends it.
    pub(crate) idle: bool,
    /// Of a join: the pid of the VM's pid 1 on the host.
    #[serde(default)]
    pub(crate) join: i32,
}

pub(crate) fn send<T: Message>(socket: &UnixStream, message: &T) -> io::Result<()> {
    send_with(socket, message, &[])
}

/// Sends a message and, with its first byte, descriptors.
pub(crate) fn send_with<T: Message>(mut socket: &UnixStream, message: &T, fds: &[OwnedFd]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    let mut sent = 0;
    if !fds.is_empty() {
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
        sent = rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    }
    socket.write_all(&bytes[sent..])
}

/// The next message, or `None` if the other side is gone.
pub(crate) fn receive<T: Message>(socket: &UnixStream) -> io::Result<Option<T>> {
    Ok(receive_with(socket)?.map(|(message, _)| message))
}

/// The next message and the descriptors that came with it.
pub(crate) fn receive_with<T: Message>(mut socket: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut head = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut head)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            // The other side died with unread messages of ours.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?.bytes,
        }
    };
    if received == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    socket.read_exact(&mut head[received..])?;
    let len = u32::from_le_bytes(head);
    if len > T::MAX_LEN {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of the VM is too long"));
    }
    let mut body = vec![0; len as usize];
    socket.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_inside_is_bounded() {
        let (parent, inside) = UnixStream::pair().unwrap();
        let mut writer = &inside;
        writer.write_all(&(FromVm::MAX_LEN + 1).to_le_bytes()).unwrap();
        let refused = receive::<FromVm>(&parent).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        writer.write_all(&5u32.to_le_bytes()).unwrap();
        writer.write_all(b"{\"In}").unwrap();
        assert!(receive::<FromVm>(&parent).is_err(), "not a message");
        // Nested deeper than any message: an error, not an overflow of the stack.
        let deep = [b'['; 100_000];
        writer.write_all(&(deep.len() as u32).to_le_bytes()).unwrap();
        let feeder = inside.try_clone().unwrap();
        let feeder = std::thread::spawn(move || (&feeder).write_all(&deep));
        assert!(receive::<FromVm>(&parent).is_err());
        feeder.join().unwrap().unwrap();
        send(&inside, &FromVm::Failed(Failure::at("x", vec![b'y'; 1 << 20], rustix::io::Errno::IO))).unwrap();
        let Some(FromVm::Failed(failure)) = receive(&parent).unwrap() else { panic!("another message") };
        assert_eq!(failure.path.len(), MAX_TEXT);
    }

    #[test]
    fn descriptors_that_nobody_asked_for_are_closed() {
        let (parent, inside) = UnixStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        send_with(&inside, &FromVm::Started, &[write]).unwrap();
        assert!(matches!(receive::<FromVm>(&parent).unwrap(), Some(FromVm::Started)));
        assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(0), "no end for writing is left open");
    }
}
