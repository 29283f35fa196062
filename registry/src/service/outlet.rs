//! The way out of an answer: compressed bytes in, pieces out to whoever can send: one connection, or several *lanes* of
//! which each takes the next piece when its socket has room for it. So a lane that is slow takes little, and one that
//! loses a packet holds up only what it has taken.
//!
//! A piece is gone once it was taken: a lane that breaks with pieces breaks the whole answer, whose client then asks
//! for what it lacks. Before each piece of a launch the takers wait while something that someone waits for is being
//! answered (see [`Launch::quiet`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use layer_format::api::MAX_PIECE_LEN;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::launches::{Demand, Launch};
use crate::metrics::Metrics;

/// Bytes that may wait before the writer has to.
const MAX_QUEUED: usize = 256 << 10;
/// Longest piece: a few of them fill a socket's unsent bytes, and one of them is all that is lost by a choice that turns
/// out wrong.
const PIECE_LEN: usize = 16 << 10;
const _: () = assert!(PIECE_LEN <= MAX_PIECE_LEN);

/// The answer cannot be sent any more, or was not written to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer was cut")]
pub(crate) struct Cut;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Place in the answer, from 0.
    pub(crate) number: u32,
    /// At most [`MAX_PIECE_LEN`] bytes, at least one.
    pub(crate) bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// More may come.
    Open,
    /// All was written.
    Whole,
    /// The writer, or a taker with pieces, went away.
    Cut,
}

#[derive(Debug)]
struct State {
    pieces: VecDeque<Bytes>,
    queued: usize,
    /// Number of the first of them.
    first: u32,
    end: End,
}

/// What the writer and the takers of an answer share.
#[derive(Debug)]
pub(crate) struct Outlet {
    state: Mutex<State>,
    /// Pieces came, or the end.
    ready: Notify,
    /// There is room, or no one to take anything.
    room: Notify,
    launch: Option<Arc<Launch>>,
    metrics: Arc<Metrics>,
}

impl Outlet {
    /// The way out of one answer; of a launch's stream, if there is one.
    pub(crate) fn new(launch: Option<Arc<Launch>>, metrics: Arc<Metrics>) -> Arc<Self> {
        let state = State { pieces: VecDeque::new(), queued: 0, first: 0, end: End::Open };
        Arc::new(Self { state: Mutex::new(state), ready: Notify::new(), room: Notify::new(), launch, metrics })
    }

    /// Whether nothing waits to be taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().pieces.is_empty()
    }

    /// Adds bytes, and waits until there is room for more. Returns how long it waited.
    pub(crate) async fn push(&self, bytes: Bytes) -> Result<Duration, Cut> {
        let begun = Instant::now();
        {
            let mut state = self.state.lock();
            if state.end != End::Open {
                return Err(Cut);
            }
            state.queued += bytes.len();
            let starts = (0..bytes.len()).step_by(PIECE_LEN);
            state.pieces.extend(starts.map(|start| bytes.slice(start..bytes.len().min(start + PIECE_LEN))));
        }
        self.ready.notify_waiters();
        loop {
            let room = self.room.notified();
            {
                let state = self.state.lock();
                match state.end {
                    End::Open if state.queued >= MAX_QUEUED => {}
                    End::Open => return Ok(begun.elapsed()),
                    _ => return Err(Cut),
                }
            }
            // The only one who waits for room is this writer: a permit is kept for it.
            room.await;
        }
    }

    /// Ends the answer: as a whole, or cut. Only the first end counts.
    fn end(&self, end: End) {
        {
            let mut state = self.state.lock();
            if state.end == End::Open {
                state.end = end;
            }
            if end == End::Cut {
                state.end = End::Cut;
                state.pieces.clear();
            }
        }
        self.ready.notify_waiters();
        self.room.notify_one();
    }

    /// All was written.
    pub(crate) fn finish(&self) {
        self.end(End::Whole);
    }

    /// The answer ends here: whoever takes sees that it is not whole.
    pub(crate) fn cut(&self) {
        self.end(End::Cut);
    }

    /// A connection that takes: the answer to the request itself, or a lane beside it.
    pub(crate) fn taker(self: &Arc<Self>, is_lane: bool, demand: Option<Demand>) -> Taker {
        Taker { outlet: Arc::clone(self), holds: !is_lane, ended: false, _demand: demand }
    }
}

/// One of those who take pieces.
#[derive(Debug)]
pub(crate) struct Taker {
    outlet: Arc<Outlet>,
    /// Whether the answer is broken if this one goes away.
    holds: bool,
    ended: bool,
    /// What this answers, if someone waits for it: over when this is dropped.
    _demand: Option<Demand>,
}

impl Taker {
    /// The next piece; `None` at the end of the answer.
    pub(crate) async fn next(&mut self) -> Option<Result<Piece, Cut>> {
        let outlet = Arc::clone(&self.outlet);
        loop {
            let mut ready = std::pin::pin!(outlet.ready.notified());
            ready.as_mut().enable();
            let (is_there, end) = {
                let state = outlet.state.lock();
                (!state.pieces.is_empty(), state.end)
            };
            match (is_there, end) {
                (_, End::Cut) => return Some(Err(Cut)),
                (true, _) => {
                    if let Some(launch) = &outlet.launch {
                        launch.quiet().await;
                    }
                    if let Some(piece) = self.take() {
                        return Some(Ok(piece));
                    }
                }
                (false, End::Whole) => {
                    self.ended = true;
                    return None;
                }
                (false, End::Open) => ready.await,
            }
        }
    }

    fn take(&mut self) -> Option<Piece> {
        let mut state = self.outlet.state.lock();
        let bytes = state.pieces.pop_front()?;
        state.queued -= bytes.len();
        let number = state.first;
        state.first += 1;
        let has_room = state.queued < MAX_QUEUED;
        drop(state);
        if has_room {
            self.outlet.room.notify_one();
        }
        self.holds = true;
        self.outlet.metrics.sent_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Some(Piece { number, bytes })
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        if self.holds && !self.ended {
            self.outlet.cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlet() -> Arc<Outlet> {
        Outlet::new(None, Arc::default())
    }

    async fn all(mut taker: Taker) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while let Some(piece) = taker.next().await {
            pieces.push(piece.unwrap());
            tokio::task::yield_now().await;
        }
        pieces
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_lanes_take_is_the_whole_answer_each_piece_once() {
        let outlet = outlet();
        let content: Vec<u8> = (0..3_000_000u32).map(|n| (n ^ n >> 9) as u8).collect();
        let takers: Vec<_> = (0..4).map(|n| tokio::spawn(all(outlet.taker(n > 0, None)))).collect();
        for part in content.chunks(70_001) {
            outlet.push(Bytes::copy_from_slice(part)).await.unwrap();
        }
        outlet.finish();
        let mut pieces = Vec::new();
        for taker in takers {
            let taken = taker.await.unwrap();
            assert!(taken.is_sorted_by(|a, b| a.number < b.number), "on one connection numbers grow");
            pieces.extend(taken);
        }
        pieces.sort_by_key(|piece| piece.number);
        assert!(pieces.iter().enumerate().all(|(at, piece)| piece.number as usize == at));
        assert!(pieces.iter().flat_map(|piece| piece.bytes.iter()).eq(content.iter()));
    }

    #[tokio::test]
    async fn the_writer_waits_for_room_and_learns_of_a_taker_that_left() {
        let outlet = outlet();
        let mut main = outlet.taker(false, None);
        let for_writer = Arc::clone(&outlet);
        let writer = tokio::spawn(async move { for_writer.push(Bytes::from(vec![1; 2 * MAX_QUEUED])).await });
        assert_eq!(main.next().await.unwrap().unwrap().number, 0);
        tokio::task::yield_now().await;
        assert!(!writer.is_finished(), "much still waits");
        drop(main);
        assert_eq!(writer.await.unwrap(), Err(Cut));
        assert_eq!(outlet.push(Bytes::from_static(b"x")).await, Err(Cut));
    }

    #[tokio::test]
    async fn only_a_lane_that_took_something_breaks_the_answer() {
        let outlet = outlet();
        let mut main = outlet.taker(false, None);
        drop(outlet.taker(true, None));
        outlet.push(Bytes::from_static(b"ab")).await.unwrap();
        assert_eq!(main.next().await.unwrap().unwrap().bytes, "ab");
        let mut lane = outlet.taker(true, None);
        outlet.push(Bytes::from_static(b"cd")).await.unwrap();
        assert_eq!(lane.next().await.unwrap().unwrap().number, 1);
        drop(lane);
        assert_eq!(main.next().await, Some(Err(Cut)));
    }

    #[tokio::test]
    async fn an_answer_that_is_not_written_to_its_end_is_seen_to_be_cut() {
        let outlet = outlet();
        let mut main = outlet.taker(false, None);
        outlet.push(Bytes::from_static(b"ab")).await.unwrap();
        outlet.cut();
        outlet.finish();
        assert_eq!(main.next().await, Some(Err(Cut)));
    }
}
