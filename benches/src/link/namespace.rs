//! The two network namespaces and the devices in them.
//!
//! A short-lived child process leaves for new namespaces, makes the devices and hands descriptors of
//! both back. Nothing gets a name in a filesystem: the namespaces live as long as those descriptors
//! and the processes in them, so that even a killed benchmark leaves nothing behind.
//!
//! Without the right to make network namespaces the child makes a user namespace first, in which the
//! user keeps the own id. Its devices then belong to that user namespace, and whoever enters a network namespace
//! enters the user namespace before.

use std::ffi::CStr;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::spec::LinkSpec;
use crate::sys;

const DEVICE: &CStr = c"wan0";
const PREFIX_LEN: u8 = 24;
/// Packets that the kernel keeps for us while the pump is busy; the link's own queue is in the model.
const DEVICE_QUEUE_PACKETS: u16 = 10_000;

/// A network namespace to enter.
#[derive(Debug)]
pub(super) struct Namespace {
    net: OwnedFd,
    /// The user namespace that owns it, if the caller's own does not.
    user: Option<OwnedFd>,
}

/// One end of the link: a namespace and the device in it.
#[derive(Debug)]
pub(super) struct End {
    pub(super) namespace: Namespace,
    pub(super) tun: OwnedFd,
}

impl Namespace {
    /// Moves the calling thread in. Allocates nothing; with a user namespace only for a process of one thread.
    pub(super) fn enter(&self) -> rustix::io::Result<()> {
        if let Some(user) = &self.user {
            move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
        }
        move_into_link_name_space(self.net.as_fd(), Some(LinkNameSpaceType::Network))
    }

    pub(super) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { net: self.net.try_clone()?, user: self.user.as_ref().map(OwnedFd::try_clone).transpose()? })
    }

    /// What `/proc/PID/ns/net` of a process in this namespace names, as device and inode.
    pub(super) fn identity(&self) -> rustix::io::Result<(u64, u64)> {
        rustix::fs::fstat(&self.net).map(|stat| (stat.st_dev, stat.st_ino))
    }

    /// A TCP socket that lives in this namespace, for use by the calling process.
    pub(super) fn tcp_socket(&self) -> Result<OwnedFd> {
        let mut received = handed_over(|channel| {
            self.enter().map_err(|errno| (Step::Enter, errno))?;
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
            send(channel, &[socket.map_err(|errno| (Step::Socket, errno))?.as_fd()])
        })?;
        received.pop().context("the helper process handed no socket over")
    }
}

/// Makes both ends, server first.
pub(super) fn create(spec: &LinkSpec) -> Result<[End; 2]> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let maps = [format!("{uid} {uid} 1"), format!("{gid} {gid} 1")];
    let ends = [spec.server, spec.client];
    // Descriptors come back as: [user namespace], then network namespace and device of each end.
    let mut fds = match handed_over(|channel| make_ends(channel, ends, spec.mtu_bytes, None)) {
        Err(error) if error.downcast_ref::<Failed>().is_some_and(|failed| failed.step == Step::NetNamespace && failed.errno == Errno::PERM) => {
            handed_over(|channel| make_ends(channel, ends, spec.mtu_bytes, Some(&maps)))?
        }
        result => result?,
    };
    let user = if fds.len() == 5 { Some(fds.remove(0)) } else { None };
    let mut fds = fds.into_iter();
    let mut end = || -> Result<End> {
        let (Some(net), Some(tun)) = (fds.next(), fds.next()) else { bail!("the helper process handed too few descriptors over") };
        let user = user.as_ref().map(OwnedFd::try_clone).transpose().context("cannot copy a descriptor")?;
        Ok(End { namespace: Namespace { net, user }, tun })
    };
    Ok([end()?, end()?])
}

/// Where a helper process failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    UserNamespace = 1,
    UserMap,
    NetNamespace,
    OpenTun,
    MakeDevice,
    Address,
    Loopback,
    Descriptor,
    Enter,
    Socket,
}

/// A step of a helper process that failed, and why.
#[derive(Debug)]
struct Failed {
    step: Step,
    errno: Errno,
}

impl std::error::Error for Failed {}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.step {
            Step::UserNamespace => "cannot create a user namespace (as root the link needs none; else allow user namespaces on this machine)",
            Step::UserMap => "cannot map the user into the new user namespace",
            Step::NetNamespace => "cannot create a network namespace",
            Step::OpenTun => "cannot open /dev/net/tun (as root: `modprobe tun`, and for other users `chmod 666 /dev/net/tun`)",
            Step::MakeDevice => "cannot create a TUN device",
            Step::Address => "cannot configure the TUN device",
            Step::Loopback => "cannot set the loopback device up",
            Step::Descriptor => "cannot hand a descriptor over",
            Step::Enter => "cannot enter a network namespace",
            Step::Socket => "cannot create a socket",
        };
        write!(f, "{what}: {}", std::io::Error::from(self.errno))
    }
}

type StepResult = std::result::Result<(), (Step, Errno)>;

fn at(step: Step) -> impl Fn(Errno) -> (Step, Errno) {
    move |errno| (step, errno)
}

/// Runs in the helper process: system calls only.
fn make_ends(channel: BorrowedFd<'_>, addresses: [Ipv4Addr; 2], mtu_bytes: u16, user_maps: Option<&[String; 2]>) -> StepResult {
    if let Some([uid_map, gid_map]) = user_maps {
        sys::unshare(UnshareFlags::NEWUSER).map_err(at(Step::UserNamespace))?;
        for (path, text) in [(c"/proc/self/setgroups", "deny"), (c"/proc/self/gid_map", gid_map), (c"/proc/self/uid_map", uid_map)] {
            let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(at(Step::UserMap))?;
            rustix::io::write(&file, text.as_bytes()).map_err(at(Step::UserMap))?;
        }
        send(channel, &[open_namespace(c"/proc/self/ns/user")?.as_fd()])?;
    }
    for address in addresses {
        sys::unshare(UnshareFlags::NEWNET).map_err(at(Step::NetNamespace))?;
        // A device belongs to the namespace in which it is opened.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let tun = rustix::fs::open(c"/dev/net/tun", flags, Mode::empty()).map_err(at(Step::OpenTun))?;
        sys::tun_attach(tun.as_fd(), DEVICE).map_err(at(Step::MakeDevice))?;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).map_err(at(Step::Address))?;
        sys::interface_configure(&socket, DEVICE, address, PREFIX_LEN, mtu_bytes, DEVICE_QUEUE_PACKETS).map_err(at(Step::Address))?;
        sys::interface_up(&socket, DEVICE).map_err(at(Step::Address))?;
        sys::interface_up(&socket, c"lo").map_err(at(Step::Loopback))?;
        send(channel, &[open_namespace(c"/proc/self/ns/net")?.as_fd(), tun.as_fd()])?;
    }
    Ok(())
}

fn open_namespace(path: &CStr) -> std::result::Result<OwnedFd, (Step, Errno)> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(at(Step::Descriptor))
}

/// Runs `helper` in a child process and returns the descriptors that it sent, in order.
fn handed_over(helper: impl FnOnce(BorrowedFd<'_>) -> StepResult) -> Result<Vec<OwnedFd>> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context("cannot create a socket pair")?;
    sys::in_child(|| {
        let Err((step, errno)) = helper(theirs.as_fd()) else { return 0 };
        let [low, high] = (errno.raw_os_error() as u16).to_le_bytes();
        let _ = rustix::net::send(&theirs, &[step as u8, low, high], SendFlags::NOSIGNAL);
        1
    })
    .context("cannot start a helper process")?;
    drop(theirs);
    let mut received = Vec::new();
    while let Some(mut fds) = receive(&ours)? {
        received.append(&mut fds);
    }
    Ok(received)
}

/// One byte of message and up to two descriptors. Allocates nothing.
fn send(channel: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> StepResult {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds));
    rustix::net::sendmsg(channel, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL).map_err(at(Step::Descriptor))?;
    Ok(())
}

/// The descriptors of one message; `None` at the end.
fn receive(channel: &OwnedFd) -> Result<Option<Vec<OwnedFd>>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0u8; 3];
    let message = rustix::net::recvmsg(channel, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .context("cannot read from the helper process")?;
    match message.bytes {
        0 => return Ok(None),
        1 => {}
        _ => {
            let step = STEPS.into_iter().find(|step| *step as u8 == bytes[0]).ok_or_else(|| anyhow!("the helper process failed"))?;
            return Err(Failed { step, errno: Errno::from_raw_os_error(u16::from_le_bytes([bytes[1], bytes[2]]).into()) }.into());
        }
    }
    let rights = control.drain().filter_map(|message| if let RecvAncillaryMessage::ScmRights(fds) = message { Some(fds) } else { None });
    Ok(Some(rights.flatten().collect()))
}

const STEPS: [Step; 10] = [
    Step::UserNamespace,
    Step::UserMap,
    Step::NetNamespace,
    Step::OpenTun,
    Step::MakeDevice,
    Step::Address,
    Step::Loopback,
    Step::Descriptor,
    Step::Enter,
    Step::Socket,
];
