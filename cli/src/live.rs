//! `--verbose` of a launch: what it does right now, on stderr.
//!
//! On a terminal one line is redrawn in place. Until the application starts the line is turbo's alone. From then on the
//! terminal is the application's, and nobody can know what it printed last; so the line is drawn only while something
//! has been waited for longer than [`PATIENCE`], behind the cursor, which comes back to where it was, and is taken away
//! before what was waited for is handed over. Nothing is drawn while an application has the terminal in raw mode: it
//! draws itself. Anywhere but on a terminal, whole lines are printed, at most one a second and only if something
//! changed. Both end with one line that sums up. `NO_COLOR` is respected, and a terminal that understands nothing
//! (`TERM=dumb`) counts as none.

mod line;
mod screen;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use client_store::Timeline;
use client_store::timeline::Snapshot;

pub use screen::LogWriter;

use line::Rate;
use screen::Place;

/// Waits that are shorter are not shown, nor is a start.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often the line is redrawn.
const EVERY: Duration = Duration::from_millis(100);
/// How often a whole line is printed at most.
const EVERY_LINE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Stage {
    application_runs: bool,
    is_over: bool,
}

/// Shows how a run goes until it is dropped.
#[derive(Debug)]
pub struct Live {
    stage: Arc<(Mutex<Stage>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    /// Starts showing.
    pub fn start(timeline: &Arc<Timeline>) -> Self {
        let stage = Arc::<(Mutex<Stage>, Condvar)>::default();
        let on_terminal = screen::is_usable();
        if on_terminal {
            timeline.set_on_waited(|| screen::lock().erase_from(Place::AtCursor));
        }
        let shower = Shower { timeline: Arc::clone(timeline), stage: Arc::clone(&stage), on_terminal, rate: Rate::default(), printed: None };
        let thread = std::thread::Builder::new().name("turbo-live".into()).spawn(move || shower.run());
        if let Err(error) = &thread {
            tracing::warn!("--verbose shows nothing: no thread for it: {error}");
        }
        Self { stage, thread: thread.ok() }
    }

    /// The application is about to start: from now on the terminal is its own.
    pub fn application_starts(&self) {
        lock(&self.stage.0).application_runs = true;
        screen::lock().erase();
    }

    /// Shows nothing any more.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        lock(&self.stage.0).is_over = true;
        self.stage.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by itself.
            let _ = thread.join();
        }
        screen::lock().erase();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Shower {
    timeline: Arc<Timeline>,
    stage: Arc<(Mutex<Stage>, Condvar)>,
    on_terminal: bool,
    rate: Rate,
    /// When a whole line was printed, and how many bytes it told of.
    printed: Option<(Instant, u64)>,
}

impl Shower {
    fn run(mut self) {
        loop {
            let application_runs = {
                let stage = lock(&self.stage.0);
                let (stage, _) = self.stage.1.wait_timeout(stage, EVERY).unwrap_or_else(PoisonError::into_inner);
                if stage.is_over {
                    return;
                }
                stage.application_runs
            };
            if self.on_terminal {
                self.draw(application_runs);
            } else {
                self.print();
            }
        }
    }

    fn draw(&mut self, application_runs: bool) {
        // Before the terminal is taken: whoever holds a lock of the fetcher may want to log.
        let now = self.timeline.snapshot();
        let rate = self.rate.add(now.elapsed, now.received_bytes());
        let mut screen = screen::lock();
        if !application_runs {
            // It may be about to start: then the line is not ours any more.
            if now.elapsed >= PATIENCE && !lock(&self.stage.0).application_runs {
                screen.draw(Place::OwnLine, &line::status(&now, rate));
            }
        } else if is_waiting(&now) && screen::is_cooked() && self.timeline.is_waiting() {
            // Looked at with the terminal in hand: whoever ends that wait takes the line away after us.
            screen.draw(Place::AtCursor, &line::status(&now, rate));
        } else {
            screen.erase();
        }
    }

    fn print(&mut self) {
        let now = self.timeline.snapshot();
        let rate = self.rate.add(now.elapsed, now.received_bytes());
        let received = now.received_bytes();
        let is_due = match self.printed {
            None => now.elapsed >= EVERY_LINE,
            Some((at, before)) => at.elapsed() >= EVERY_LINE && (received != before || is_waiting(&now)),
        };
        if is_due && (received > 0 || is_waiting(&now)) {
            self.printed = Some((Instant::now(), received));
            screen::lock().print(&line::status(&now, rate));
        }
    }
}

fn is_waiting(now: &Snapshot) -> bool {
    now.waiting.as_ref().is_some_and(|waiting| waiting.elapsed >= PATIENCE)
}
