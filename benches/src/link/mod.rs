//! An emulated WAN link: two network namespaces, `server` and `client`, joined by a pair of TUN
//! devices, with a queue, a rate, a delay, loss and jitter in each direction.
//!
//! It needs no tool and, on a machine that lets users have user namespaces and open `/dev/net/tun`,
//! no privilege. Dropping a [`Link`] ends every process that still runs in its namespaces, the
//! devices and the namespaces.

mod model;
mod namespace;
mod process;
mod pump;
mod spec;

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::net::sockopt;
use rustix::pipe::PipeFlags;

use crate::sys;
use namespace::Namespace;
pub use process::{HeldSignals, Spawned, run_in_foreground};
pub use pump::{DirectionStats, LinkStats};
pub use spec::{DEFAULT_QUEUE, Direction, LinkSpec, MIN_QUEUE_BYTES, Queue, parse_ms, parse_percent, parse_queue, parse_rate};

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The end that sends what the link's `down` direction carries.
    Server,
    /// The other.
    Client,
}

/// A link that is up. Down again when dropped.
#[derive(Debug)]
pub struct Link {
    spec: LinkSpec,
    server: Namespace,
    client: Namespace,
    meter: pump::Meter,
    /// Closing it stops the pump.
    stop: Option<OwnedFd>,
    pump: Option<JoinHandle<()>>,
}

impl Link {
    /// Creates both namespaces and joins them.
    ///
    /// # Errors
    /// If the kernel or a missing privilege forbids it; the message names the step and the remedy.
    pub fn up(spec: &LinkSpec) -> Result<Self> {
        let [server, client] = namespace::create(spec).context("cannot set the emulated link up")?;
        let (stopped, stop) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("cannot create a pipe")?;
        let meter = pump::Meter::default();
        let (pump_spec, pump_meter) = (spec.clone(), meter.clone());
        let pump = std::thread::Builder::new()
            .name("link".to_owned())
            .spawn(move || pump::run(&pump_spec, &server.tun, &client.tun, &stopped, &pump_meter))
            .context("cannot start the link's thread")?;
        let (server, client) = (server.namespace, client.namespace);
        Ok(Self { spec: spec.clone(), server, client, meter, stop: Some(stop), pump: Some(pump) })
    }

    /// What the link is like.
    pub fn spec(&self) -> &LinkSpec {
        &self.spec
    }

    /// Address of an end.
    pub fn address(&self, side: Side) -> Ipv4Addr {
        if side == Side::Server { self.spec.server } else { self.spec.client }
    }

    /// What the link has carried so far.
    pub fn stats(&self) -> LinkStats {
        self.meter.read()
    }

    /// Makes `command` run at the server's end.
    ///
    /// # Errors
    /// If this process has no descriptor left.
    pub fn server_command(&self, command: Command) -> Result<Command> {
        self.command(Side::Server, command)
    }

    /// Makes `command` run at the client's end.
    ///
    /// # Errors
    /// If this process has no descriptor left.
    pub fn client_command(&self, command: Command) -> Result<Command> {
        self.command(Side::Client, command)
    }

    /// Makes `command` run at an end of the link. The command stays usable as long as it is kept, even
    /// after the link is gone, though it then leads nowhere.
    ///
    /// # Errors
    /// If this process has no descriptor left.
    pub fn command(&self, side: Side, mut command: Command) -> Result<Command> {
        let namespace = self.namespace(side).try_clone().context("cannot copy the descriptor of a network namespace")?;
        sys::before_exec(&mut command, move || namespace.enter().map_err(std::io::Error::from));
        Ok(command)
    }

    /// A socket of the calling process that listens at an end of the link; port 0 takes a free one.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn listen(&self, side: Side, port: u16) -> Result<TcpListener> {
        let socket = self.namespace(side).tcp_socket()?;
        sockopt::set_socket_reuseaddr(&socket, true).context("cannot set a socket option")?;
        let address = SocketAddrV4::new(self.address(side), port);
        rustix::net::bind(&socket, &address).with_context(|| format!("cannot bind to {address}"))?;
        rustix::net::listen(&socket, 128).with_context(|| format!("cannot listen on {address}"))?;
        Ok(socket.into())
    }

    /// Connects from an end of the link, as the calling process.
    ///
    /// # Errors
    /// If nothing listens there.
    pub fn connect(&self, side: Side, to: SocketAddrV4) -> Result<TcpStream> {
        let socket = self.namespace(side).tcp_socket()?;
        rustix::net::connect(&socket, &to).with_context(|| format!("cannot connect to {to}"))?;
        Ok(socket.into())
    }

    fn namespace(&self, side: Side) -> &Namespace {
        if side == Side::Server { &self.server } else { &self.client }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for namespace in [&self.client, &self.server] {
            process::end_all_in(namespace);
        }
        drop(self.stop.take());
        if let Some(pump) = self.pump.take() {
            // A panic of the pump has been printed by its own thread.
            let _ = pump.join();
        }
    }
}
