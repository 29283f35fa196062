//! An answer that comes over several connections: its pieces, put in order as they arrive.
//!
//! Each connection is read by a task of its own. A piece that is early waits here, and a connection that is too far ahead
//! is not read on until the one that is behind has caught up: memory is bounded, and what is due is always taken. On one
//! connection numbers only grow, so it is known when a piece can no longer come: then the answer is cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use layer_format::api::PieceHeader;
use parking_lot::Mutex;
use reqwest::Response;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Registry;
use super::origin_impl::Lane;
use crate::origin::OriginError;

/// Bytes of early pieces that are kept before connections have to wait: more than a link of 1 Gbit/s carries in the
/// time that a lost packet takes to be sent again over 60 ms.
const MAX_EARLY_BYTES: usize = 8 << 20;
/// What a piece takes besides its bytes.
const PIECE_COST: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// May bring pieces of higher numbers than the last.
    Open(Option<u32>),
    /// Brought all that it had.
    Done,
    /// Broke, maybe with pieces.
    Broken,
}

#[derive(Debug)]
struct Order {
    next: u32,
    early: BTreeMap<u32, Bytes>,
    early_bytes: usize,
    connections: Vec<State>,
    failure: Option<OriginError>,
}

impl Order {
    /// Whether a connection may still bring the piece that is due.
    fn may_come(&self) -> bool {
        self.connections.iter().any(|state| matches!(state, State::Open(last) if last.is_none_or(|last| last < self.next)))
    }

    /// Takes a piece of a connection. `false`: it has to wait, since too much is early.
    fn put(&mut self, at: usize, number: u32, bytes: &Bytes) -> Result<bool, String> {
        let State::Open(last) = self.connections[at] else { return Err("a piece came after the end".into()) };
        if number < self.next || last.is_some_and(|last| number <= last) || self.early.contains_key(&number) {
            return Err(format!("piece {number} is out of order"));
        }
        if number != self.next && self.early_bytes + bytes.len() + PIECE_COST > MAX_EARLY_BYTES {
            return Ok(false);
        }
        self.early_bytes += bytes.len() + PIECE_COST;
        self.early.insert(number, bytes.clone());
        self.connections[at] = State::Open(Some(number));
        Ok(true)
    }

    /// The piece that is due; `None`: not yet, or never.
    fn take(&mut self) -> Option<Bytes> {
        let bytes = self.early.remove(&self.next)?;
        self.early_bytes -= bytes.len() + PIECE_COST;
        self.next += 1;
        Some(bytes)
    }
}

#[derive(Debug)]
struct Shared {
    order: Mutex<Order>,
    changed: Notify,
}

/// The pieces of an answer, in order. Dropping it ends all its requests.
#[derive(Debug)]
pub(super) struct Pieces {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Pieces {
    /// Reads the pieces of `main`, and of the answers to `lanes` once they come. That a lane is refused does no harm.
    pub(super) fn new(registry: &Registry, main: Response, lanes: Vec<Lane>) -> Self {
        let order = Order { next: 0, early: BTreeMap::new(), early_bytes: 0, connections: vec![State::Open(None); 1 + lanes.len()], failure: None };
        let shared = Arc::new(Shared { order: Mutex::new(order), changed: Notify::new() });
        let mut tasks = JoinSet::new();
        tasks.spawn(Connection::new(registry, &shared, 0).run(main));
        for (at, lane) in lanes.into_iter().enumerate() {
            tasks.spawn(Connection::new(registry, &shared, 1 + at).run_lane(lane));
        }
        Self { shared, _tasks: tasks }
    }

    /// The next piece's bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            {
                let mut order = self.shared.order.lock();
                if let Some(bytes) = order.take() {
                    drop(order);
                    self.shared.changed.notify_waiters();
                    return Ok(Some(bytes));
                }
                if !order.may_come() {
                    return match (order.failure.clone(), order.early.is_empty()) {
                        (Some(failure), _) => Err(failure),
                        (None, true) => Ok(None),
                        (None, false) => Err(OriginError::Network { url: "the registry".into(), reason: "a part of the answer is missing".into() }),
                    };
                }
            }
            changed.await;
        }
    }
}

/// One of the connections.
struct Connection {
    registry: Registry,
    shared: Arc<Shared>,
    at: usize,
    is_open: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_open {
            // Only a panic or the end of the runtime leads here: nobody may wait for ever.
            self.end(State::Broken, None);
        }
    }
}

impl Connection {
    fn new(registry: &Registry, shared: &Arc<Shared>, at: usize) -> Self {
        Self { registry: registry.clone(), shared: Arc::clone(shared), at, is_open: true }
    }

    async fn run_lane(mut self, mut lane: Lane) {
        match (&mut lane.0).await {
            Ok(Ok(response)) => self.run(response).await,
            // The registry answered: it gave this lane nothing.
            Ok(Err(OriginError::NotFound { .. } | OriginError::Busy { .. } | OriginError::Refused { .. })) => self.end(State::Done, None),
            Ok(Err(error)) => self.end(State::Broken, Some(error)),
            Err(_) => self.end(State::Broken, None),
        }
    }

    async fn run(mut self, response: Response) {
        match self.receive(response).await {
            Ok(()) => self.end(State::Done, None),
            Err(error) => self.end(State::Broken, Some(error)),
        }
    }

    fn end(&mut self, state: State, failure: Option<OriginError>) {
        self.is_open = false;
        let mut order = self.shared.order.lock();
        order.connections[self.at] = state;
        if order.failure.is_none() {
            order.failure = failure;
        }
        drop(order);
        self.shared.changed.notify_waiters();
    }

    async fn receive(&self, mut response: Response) -> Result<(), OriginError> {
        let mut buffer = BytesMut::new();
        loop {
            while let Some(header) = buffer.first_chunk::<{ PieceHeader::LEN }>() {
                let header = PieceHeader::decode(*header).map_err(|error| self.registry.protocol(error.to_string()))?;
                if buffer.len() < PieceHeader::LEN + header.len as usize {
                    break;
                }
                buffer.advance(PieceHeader::LEN);
                let bytes = buffer.split_to(header.len as usize).freeze();
                self.put(header.number, bytes).await?;
            }
            match self.registry.piece(&mut response).await? {
                Some(piece) => buffer.extend_from_slice(&piece),
                None if buffer.is_empty() => return Ok(()),
                None => return Err(self.registry.protocol("a piece of the answer was cut short".into())),
            }
        }
    }

    /// Hands a piece on, as soon as there is room for it.
    async fn put(&self, number: u32, bytes: Bytes) -> Result<(), OriginError> {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if self.shared.order.lock().put(self.at, number, &bytes).map_err(|reason| self.registry.protocol(reason))? {
                self.shared.changed.notify_waiters();
                return Ok(());
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(connections: usize) -> Order {
        Order { next: 0, early: BTreeMap::new(), early_bytes: 0, connections: vec![State::Open(None); connections], failure: None }
    }

    proptest! {
        /// However pieces are spread over connections and in whatever order these are read: all come out once, in order, and
        /// no more is kept than the bound.
        #[test]
        fn pieces_come_out_in_order(spread in proptest::collection::vec(0usize..4, 1..300), turns in proptest::collection::vec(0usize..4, 2000), len in 1usize..200_000) {
            let mut order = order(4);
            let mut waiting: Vec<std::collections::VecDeque<u32>> = vec![Default::default(); 4];
            spread.iter().enumerate().for_each(|(number, lane)| waiting[*lane].push_back(number as u32));
            let bytes = Bytes::from(vec![7; len]);
            let (mut out, mut turns) = (0, turns.into_iter().cycle());
            while out < spread.len() {
                let mut moved = order.take().is_some();
                out += usize::from(moved);
                let lane = turns.next().unwrap();
                // Every connection gets its turn in the end, as in a runtime.
                for lane in (lane..4).chain(0..lane) {
                    if let Some(number) = waiting[lane].front() && order.put(lane, *number, &bytes).unwrap() {
                        waiting[lane].pop_front();
                        moved = true;
                        break;
                    }
                }
                prop_assert!(order.early_bytes <= MAX_EARLY_BYTES + len + PIECE_COST);
                prop_assert!(moved, "nothing moves at {} of {}", out, spread.len());
            }
            prop_assert_eq!((order.next as usize, order.early.len(), order.early_bytes), (spread.len(), 0, 0));
        }
    }

    #[test]
    fn hostile_numbers_are_refused() {
        let mut order = order(2);
        let bytes = Bytes::from_static(b"x");
        assert_eq!(order.put(0, 5, &bytes), Ok(true));
        assert!(order.put(0, 5, &bytes).is_err(), "again");
        assert!(order.put(0, 4, &bytes).is_err(), "backwards");
        assert!(order.put(1, 5, &bytes).is_err(), "over another connection");
        assert_eq!(order.put(1, 0, &bytes), Ok(true));
        assert!(order.take().is_some() && order.take().is_none());
        assert!(order.put(1, 0, &bytes).is_err(), "past");
    }

    #[test]
    fn a_piece_that_can_no_longer_come_is_known() {
        let mut order = order(2);
        let bytes = Bytes::from_static(b"x");
        order.put(0, 1, &bytes).unwrap();
        assert!(order.may_come(), "the other connection may have it");
        order.connections[1] = State::Broken;
        assert!(!order.may_come(), "the first has passed it");
    }
}
