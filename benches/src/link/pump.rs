//! The thread that moves packets between the two devices as the model says.
//!
//! One thread serves both directions: it sleeps until a packet comes or is due, so an idle link costs
//! nothing. The model counts time, not wake-ups, so that being late never changes the rate. The thread runs at real-time priority where that is allowed, since a late wake-up is a late packet.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::model::{Nanos, Shaper, Verdict};
use super::spec::LinkSpec;
use crate::sys;

/// What may be on its way in one direction. Reached only without a rate or with a vast delay; more is
/// dropped and counted as dropped by the queue.
const MAX_IN_FLIGHT_BYTES: usize = 256 << 20;
/// Packets taken from a device before deliveries that have become due are looked at again.
const READ_BURST: usize = 32;

/// How long the thread sleeps on after each wake-up, so that it handles a few packets at once. Packets are
/// late by two thirds of this on average; for that the thread takes a quarter of a core instead of half of
/// one at 100 Mbit/s, which the server and the client at the ends then have.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };
/// Above this rate, or without one, the thread has a few packets at each wake-up anyway, and a nap would cost throughput.
const NAP_MAX_RATE_BPS: u64 = 400_000_000;

/// What one direction has carried.
#[derive(Debug, Default)]
struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    queue_drops: AtomicU64,
    loss_drops: AtomicU64,
    write_errors: AtomicU64,
    late_ns: AtomicU64,
    late_max_ns: AtomicU64,
}

/// A reading of one direction's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct DirectionStats {
    /// Packets delivered.
    pub packets: u64,
    /// Bytes delivered, IP headers included.
    pub bytes: u64,
    /// Packets dropped because the queue was full.
    pub queue_drops: u64,
    /// Packets dropped at random.
    pub loss_drops: u64,
    /// Packets that the receiving device refused.
    pub write_errors: u64,
    /// How much later than the model says a packet was delivered, on average, in microseconds.
    pub late_mean_us: u64,
    /// The worst of those.
    pub late_max_us: u64,
}

/// A reading of both directions' counters, taken since the link came up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct LinkStats {
    /// From the server to the client.
    pub down: DirectionStats,
    /// From the client to the server.
    pub up: DirectionStats,
}

/// Handle on the counters of a running pump.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter([Arc<Counters>; 2]);

impl Meter {
    pub(super) fn read(&self) -> LinkStats {
        LinkStats { down: self.0[0].read(), up: self.0[1].read() }
    }
}

impl Counters {
    fn read(&self) -> DirectionStats {
        let packets = self.packets.load(Relaxed);
        DirectionStats {
            packets,
            bytes: self.bytes.load(Relaxed),
            queue_drops: self.queue_drops.load(Relaxed),
            loss_drops: self.loss_drops.load(Relaxed),
            write_errors: self.write_errors.load(Relaxed),
            late_mean_us: self.late_ns.load(Relaxed) / packets.max(1) / 1000,
            late_max_us: self.late_max_ns.load(Relaxed) / 1000,
        }
    }
}

/// Forwards between the devices until the other end of `stop` is closed.
pub(super) fn run(spec: &LinkSpec, server: &OwnedFd, client: &OwnedFd, stop: &OwnedFd, meter: &Meter) {
    sys::real_time();
    let clock = Clock(Instant::now());
    let mut down = Lane::new(server, client, Shaper::new(spec.down, spec.seed), Arc::clone(&meter.0[0]), spec.mtu_bytes);
    let mut up = Lane::new(client, server, Shaper::new(spec.up, !spec.seed), Arc::clone(&meter.0[1]), spec.mtu_bytes);
    let naps = [spec.down, spec.up].into_iter().all(|way| (1..=NAP_MAX_RATE_BPS).contains(&way.rate_bps));
    loop {
        for lane in [&mut down, &mut up] {
            lane.deliver(&clock);
        }
        let sleep = [down.next_due(), up.next_due()].into_iter().flatten().min().map(|due| due.saturating_sub(clock.now()));
        let sleep = sleep.map(|ns| Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as _ });
        let mut fds = [PollFd::new(server, PollFlags::IN), PollFd::new(client, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match rustix::event::poll(&mut fds, sleep.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        if !fds[2].revents().is_empty() {
            return;
        }
        if naps {
            // Woken early by a signal is no harm.
            let _ = rustix::thread::nanosleep(&NAP);
        }
        let ready = [!fds[0].revents().is_empty(), !fds[1].revents().is_empty()];
        for (lane, ready) in [&mut down, &mut up].into_iter().zip(ready) {
            if ready {
                lane.take_in(&clock);
            }
        }
    }
}

struct Clock(Instant);

impl Clock {
    fn now(&self) -> Nanos {
        self.0.elapsed().as_nanos() as Nanos
    }
}

struct Packet {
    due: Nanos,
    len: usize,
    buffer: Box<[u8]>,
}

/// One direction: from a device, through the model, to the other device.
struct Lane<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    shaper: Shaper,
    counters: Arc<Counters>,
    in_flight: VecDeque<Packet>,
    in_flight_bytes: usize,
    /// Buffers of delivered packets, used again.
    spare: Vec<Box<[u8]>>,
    mtu_bytes: usize,
}

impl<'a> Lane<'a> {
    fn new(from: &'a OwnedFd, to: &'a OwnedFd, shaper: Shaper, counters: Arc<Counters>, mtu_bytes: u16) -> Self {
        Self { from, to, shaper, counters, in_flight: VecDeque::new(), in_flight_bytes: 0, spare: Vec::new(), mtu_bytes: mtu_bytes.into() }
    }

    fn next_due(&self) -> Option<Nanos> {
        self.in_flight.front().map(|packet| packet.due)
    }

    fn take_in(&mut self, clock: &Clock) {
        for _ in 0..READ_BURST {
            let mut buffer = self.spare.pop().unwrap_or_else(|| vec![0; self.mtu_bytes].into_boxed_slice());
            let len = match rustix::io::read(self.from.as_fd(), &mut *buffer) {
                Ok(len) if len > 0 => len,
                // Nothing left for now.
                _ => return self.spare.push(buffer),
            };
            // Neighbour discovery and the like of IPv6, which nobody asked for, would only blur the counters.
            if buffer[0] >> 4 != 4 {
                self.spare.push(buffer);
                continue;
            }
            let verdict = if self.in_flight_bytes + len > MAX_IN_FLIGHT_BYTES { Verdict::QueueDrop } else { self.shaper.admit(clock.now(), len) };
            match verdict {
                Verdict::Arrives(due) => {
                    self.in_flight_bytes += len;
                    self.in_flight.push_back(Packet { due, len, buffer });
                }
                dropped => {
                    let counter = if dropped == Verdict::LossDrop { &self.counters.loss_drops } else { &self.counters.queue_drops };
                    counter.fetch_add(1, Relaxed);
                    self.spare.push(buffer);
                }
            }
        }
    }

    fn deliver(&mut self, clock: &Clock) {
        while let Some(packet) = self.in_flight.pop_front() {
            let now = clock.now();
            if packet.due > now {
                self.in_flight.push_front(packet);
                return;
            }
            match rustix::io::write(self.to.as_fd(), &packet.buffer[..packet.len]) {
                Ok(_) => {
                    self.counters.packets.fetch_add(1, Relaxed);
                    self.counters.bytes.fetch_add(packet.len as u64, Relaxed);
                    self.counters.late_ns.fetch_add(now - packet.due, Relaxed);
                    self.counters.late_max_ns.fetch_max(now - packet.due, Relaxed);
                }
                Err(_) => drop(self.counters.write_errors.fetch_add(1, Relaxed)),
            }
            self.in_flight_bytes -= packet.len;
            self.spare.push(packet.buffer);
        }
    }
}
