//! The line on the terminal: drawn, erased, and out of the way of whatever else turbo prints there.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::termios::{LocalModes, tcgetattr, tcgetwinsize};

/// Columns of a terminal that does not say.
const COLUMNS: usize = 80;

/// Where the line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On a line of its own, which the cursor is on.
    OwnLine,
    /// Behind the cursor, which stays where the application left it.
    AtCursor,
}

/// What is on the terminal.
#[derive(Debug)]
pub struct Screen {
    shown: Option<Place>,
}

/// The terminal is one, whoever prints.
static SCREEN: Mutex<Screen> = Mutex::new(Screen { shown: None });

/// Takes the terminal.
pub fn lock() -> MutexGuard<'static, Screen> {
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether stderr is a terminal that a line can be drawn on.
pub fn is_usable() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Whether the terminal works by lines, and lets those who are not in the foreground print: an application that took it
/// over draws itself.
pub fn is_cooked() -> bool {
    tcgetattr(std::io::stderr()).is_ok_and(|modes| modes.local_modes.contains(LocalModes::ICANON) && !modes.local_modes.contains(LocalModes::TOSTOP))
}

impl Screen {
    /// Shows the line in place of the one before, cut to the terminal's width.
    pub fn draw(&mut self, place: Place, line: &str) {
        if self.shown.is_some_and(|shown| shown != place) {
            self.erase();
        }
        let columns = tcgetwinsize(std::io::stderr()).map_or(COLUMNS, |size| if size.ws_col == 0 { COLUMNS } else { size.ws_col.into() });
        let line: String = line.chars().take(columns.saturating_sub(1)).collect();
        let line = if colours() { format!("\x1b[2m{line}\x1b[0m") } else { line };
        write(&match place {
            Place::OwnLine => format!("\r{line}\x1b[K"),
            // Without wrapping, so that a line that is too long does not scroll.
            Place::AtCursor => format!("\x1b7\x1b[?7l{line}\x1b[K\x1b[?7h\x1b8"),
        });
        self.shown = Some(place);
    }

    /// Takes the line away, if there is one.
    pub fn erase(&mut self) {
        match self.shown.take() {
            None => {}
            Some(Place::OwnLine) => write("\r\x1b[K"),
            Some(Place::AtCursor) => write("\x1b[K"),
        }
    }

    /// Takes the line away if it stands there.
    pub fn erase_from(&mut self, place: Place) {
        if self.shown == Some(place) {
            self.erase();
        }
    }

    /// Prints a whole line.
    pub fn print(&mut self, line: &str) {
        self.erase();
        write(&format!("{line}\n"));
    }
}

fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// In one piece. Nobody can be told that stderr cannot be written to.
fn write(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// Where log messages go: stderr, with the line out of their way.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut screen = lock();
        screen.erase();
        std::io::stderr().lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().lock().flush()
    }
}
