//! Where server and client are: at the ends of an emulated link, or both on the loopback device.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::link::{Link, LinkSpec, Side};

/// A link to measure over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkKind {
    /// Round trip.
    pub rtt: Duration,
    /// Bits per second in each direction.
    pub rate_bps: u64,
}

impl LinkKind {
    /// The three that launches are measured over: a good line, a slow one, a fast one that is far away.
    pub const ALL: [Self; 3] = [Self::of(20, 100), Self::of(60, 25), Self::of(100, 100)];
    /// The one of the demo.
    pub const FAR: Self = Self::of(100, 100);

    const fn of(rtt_ms: u64, rate_mbit: u64) -> Self {
        Self { rtt: Duration::from_millis(rtt_ms), rate_bps: rate_mbit * 1_000_000 }
    }

    /// For people, such as `100 Mbit/s, 20 ms`.
    pub fn label(self) -> String {
        format!("{} Mbit/s, {} ms", self.rate_bps / 1_000_000, self.rtt.as_millis())
    }
}

/// Both ends.
#[derive(Debug)]
pub enum Place {
    /// An emulated link.
    Link(Box<Link>),
    /// The loopback device, where no link can be emulated.
    Loopback,
}

impl Place {
    /// The ends of a new link.
    ///
    /// # Errors
    /// If the link cannot be set up here.
    pub fn link(kind: LinkKind) -> Result<Self> {
        Ok(Self::Link(Box::new(Link::up(&LinkSpec::symmetric(kind.rate_bps, kind.rtt / 2))?)))
    }

    /// The server's address.
    pub fn server_address(&self) -> Ipv4Addr {
        match self {
            Self::Link(link) => link.address(Side::Server),
            Self::Loopback => Ipv4Addr::LOCALHOST,
        }
    }

    /// Makes a command run at an end.
    ///
    /// # Errors
    /// If this process has no descriptor left.
    pub fn command(&self, side: Side, command: Command) -> Result<Command> {
        match self {
            Self::Link(link) => link.command(side, command),
            Self::Loopback => Ok(command),
        }
    }

    /// Listens at the server's end on a free port.
    ///
    /// # Errors
    /// If there is none.
    pub fn listen(&self) -> Result<TcpListener> {
        match self {
            Self::Link(link) => link.listen(Side::Server, 0),
            Self::Loopback => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback device"),
        }
    }

    /// Connects from the client's end to a port at the server's.
    ///
    /// # Errors
    /// If nothing listens there.
    pub fn connect(&self, port: u16) -> Result<TcpStream> {
        let to = SocketAddrV4::new(self.server_address(), port);
        match self {
            Self::Link(link) => link.connect(Side::Client, to),
            Self::Loopback => TcpStream::connect(to).with_context(|| format!("cannot connect to {to}")),
        }
    }

    /// Bytes that the client's end has received so far, headers included; `None` if nothing counts them.
    pub fn received_bytes(&self) -> Option<u64> {
        match self {
            Self::Link(link) => Some(link.stats().down.bytes),
            Self::Loopback => None,
        }
    }
}
