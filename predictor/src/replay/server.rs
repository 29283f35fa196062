//! The server and the link, at the time up to which they were simulated.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};

use super::link::{Link, Setup};
use super::pipe::Pipe;
use super::schedule::Schedule;
use super::travel::{Place, Travel};

/// How a touch found what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Here.
    There,
    /// Under way, or planned for soon.
    Coming,
    /// Neither, so it was asked for.
    Asked,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    /// When it can be used.
    ready: u64,
    is_touched: bool,
}

#[derive(Debug)]
pub(super) struct Server<'a> {
    link: Link,
    setup: Setup,
    travel: &'a Travel,
    pipe: Pipe,
    /// Planned objects, with the time from which on they may be sent.
    planned: VecDeque<(u32, u64)>,
    sent: Vec<Option<Sent>>,
    sent_bytes: u64,
    started_us: u64,
    /// Objects are sent one by one, and nobody asks for what is planned: the oracle.
    patient: bool,
}

impl<'a> Server<'a> {
    /// Connected, asked to launch, and the head on its way.
    pub(super) fn new(link: Link, setup: &Setup, travel: &'a Travel) -> Self {
        let mut pipe = Pipe::new(link, setup);
        let asked = link.round_trip_us.saturating_mul(setup.connect_round_trips.into()).saturating_add(setup.request_us).saturating_add(there_us(link));
        let left = pipe.send(setup.head_bytes, asked);
        let started_us = left.saturating_add(back_us(link));
        let sent = vec![None; travel.objects().len()];
        Self { link, setup: *setup, travel, pipe, planned: VecDeque::new(), sent, sent_bytes: 0, started_us, patient: false }
    }

    /// When the head has arrived.
    pub(super) fn started_us(&self) -> u64 {
        self.started_us
    }

    /// Plans what places need, right behind the head.
    pub(super) fn plan<'p>(&mut self, places: impl Iterator<Item = &'p Place>) {
        for place in places {
            self.planned.extend(self.travel.needed(place).map(|object| (object, 0)));
        }
    }

    /// Plans what the schedule needs by falling tail, the time to make it usable included.
    pub(super) fn plan_best(&mut self, schedule: &Schedule) {
        self.patient = true;
        let mut tails: HashMap<u32, u64> = HashMap::new();
        for touch in &schedule.touches {
            for object in touch.places.iter().flat_map(|place| self.travel.needed(place)) {
                let tail = (schedule.duration_us - touch.time_us).saturating_add(self.setup.decode_us(self.travel.object(object).plain_bytes));
                let known = tails.entry(object).or_default();
                *known = tail.max(*known);
            }
        }
        let mut order: Vec<_> = tails.into_iter().map(|(object, tail)| (Reverse(tail), object)).collect();
        order.sort_unstable();
        self.planned.extend(order.into_iter().map(|(_, object)| (object, 0)));
    }

    /// Plans what places need with a request sent at `now`, before all else.
    pub(super) fn plan_next(&mut self, places: &[Place], now: u64) {
        let from = self.heard_at(now);
        for place in places.iter().rev() {
            let objects: Vec<_> = self.travel.needed(place).collect();
            for object in objects.into_iter().rev().filter(|object| self.sent[*object as usize].is_none()) {
                self.planned.push_front((object, from));
            }
        }
    }

    /// Plans what places need in place of all that was planned, with word sent at `now`. What was planned before need not
    /// wait for it.
    pub(super) fn plan_anew(&mut self, places: &[Place], now: u64) {
        let heard = self.heard_at(now);
        self.run_until(heard);
        let known: HashMap<u32, u64> = self.planned.drain(..).collect();
        for place in places {
            let objects = self.travel.needed(place).filter(|object| self.sent[*object as usize].is_none());
            self.planned.extend(objects.map(|object| (object, known.get(&object).copied().unwrap_or(heard))));
        }
    }

    /// Begins to send what can begin before `time`.
    pub(super) fn run_until(&mut self, time: u64) {
        while self.send_frame(time).is_some() {}
    }

    /// The application needs the objects of places at `now`: when they are there, and how they came.
    pub(super) fn demand(&mut self, places: &[Place], now: u64) -> (u64, Answer) {
        let needed: Vec<u32> = places.iter().flat_map(|place| self.travel.needed(place)).collect();
        self.run_until(now);
        let mut asked = false;
        if !self.has_all(&needed) && !self.comes_soon(&needed, now) {
            let heard = self.heard_at(now);
            self.run_until(heard.saturating_add(self.setup.queue_us));
            let mut missing: Vec<u32> = needed.iter().copied().filter(|object| self.sent[*object as usize].is_none()).collect();
            missing.sort_unstable();
            missing.dedup();
            asked = !missing.is_empty();
            self.send_together(&missing, heard);
        }
        // What is planned for soon.
        while !self.has_all(&needed) && self.send_frame(u64::MAX).is_some() {}
        let mut ready = now;
        for object in needed {
            if let Some(sent) = &mut self.sent[object as usize] {
                sent.is_touched = true;
                ready = ready.max(sent.ready);
            }
        }
        let answer = match (asked, ready > now) {
            (true, _) => Answer::Asked,
            (false, true) => Answer::Coming,
            (false, false) => Answer::There,
        };
        (ready, answer)
    }

    /// Bytes sent, and those that no touch needed.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let wasted = self.sent.iter().zip(self.travel.objects()).filter(|(sent, _)| sent.is_some_and(|sent| !sent.is_touched));
        (self.sent_bytes, wasted.map(|(_, object)| u64::from(object.wire_bytes)).sum())
    }

    /// When the server hears of a request sent at `now`.
    fn heard_at(&self, now: u64) -> u64 {
        now.saturating_add(there_us(self.link)).saturating_add(self.setup.request_us)
    }

    fn has_all(&self, needed: &[u32]) -> bool {
        needed.iter().all(|object| self.sent[*object as usize].is_some())
    }

    /// Whether the plan brings all of it at least as soon as a request would.
    fn comes_soon(&self, needed: &[u32], now: u64) -> bool {
        let mut missing: Vec<u32> = needed.iter().copied().filter(|object| self.sent[*object as usize].is_none()).collect();
        let limit = self.heard_at(now).saturating_add(self.setup.queue_us).saturating_sub(self.pipe.free_at(0));
        // What is sent when the server hears of the request goes out before the answer: so it does before the object.
        let (mut bytes, mut before_last) = (0u64, 0u64);
        for (object, from) in &self.planned {
            if self.sent[*object as usize].is_some() {
                continue;
            }
            if missing.is_empty() || (!self.patient && (*from > now || self.link.send_us(before_last) > limit)) {
                break;
            }
            before_last = bytes;
            bytes += u64::from(self.travel.object(*object).wire_bytes);
            missing.retain(|other| other != object);
        }
        missing.is_empty()
    }

    /// Sends the next frame of the plan if it can begin before `time`.
    fn send_frame(&mut self, time: u64) -> Option<()> {
        let (mut frame, mut plain, mut begins) = (Vec::new(), 0u64, 0);
        while let Some((object, from)) = self.planned.front().copied() {
            if self.sent[object as usize].is_some() || frame.contains(&object) {
                self.planned.pop_front();
                continue;
            }
            let start = self.pipe.free_at(from);
            if (frame.is_empty() && start >= time) || (!frame.is_empty() && start > begins) {
                break;
            }
            begins = start;
            self.planned.pop_front();
            frame.push(object);
            plain += u64::from(self.travel.object(object).plain_bytes);
            if self.patient || plain >= self.setup.frame_bytes {
                break;
            }
        }
        if frame.is_empty() {
            return None;
        }
        self.send_together(&frame, begins);
        Some(())
    }

    /// Sends objects that can be used when all of them have arrived.
    fn send_together(&mut self, objects: &[u32], from: u64) {
        let bytes = objects.iter().map(|object| u64::from(self.travel.object(*object).wire_bytes)).sum();
        if objects.is_empty() {
            return;
        }
        let arrival = self.pipe.send(bytes, from).saturating_add(back_us(self.link));
        self.sent_bytes = self.sent_bytes.saturating_add(bytes);
        for object in objects {
            let ready = arrival.saturating_add(self.setup.decode_us(self.travel.object(*object).plain_bytes));
            self.sent[*object as usize] = Some(Sent { ready, is_touched: false });
        }
    }
}

/// Half a round trip, from the client to the server.
fn there_us(link: Link) -> u64 {
    link.round_trip_us / 2
}

/// The way back takes the rest.
fn back_us(link: Link) -> u64 {
    link.round_trip_us - there_us(link)
}
