//! `turbo profile show`.

use std::io::Write;

use anyhow::{Context, Result, bail};
use layer_format::model::Model;
use layer_format::reference::ImageReference;
use vm::printable;

use super::learned::{Amount, Entry, Kind, LIKELY, Learned, SURE, Telling};
use crate::app::App;
use crate::exit::Exit;
use crate::output::bytes;

/// Columns of a terminal that everything fits.
const WIDTH: usize = 80;
/// Columns of the longest bar.
const BAR: usize = 24;
/// Columns of what stands before the bars.
const TIMES: usize = 17;
/// Columns of amounts.
const AMOUNT: usize = 12;

/// Of what.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// The image.
    image: ImageReference,
    /// Only of launches of this startup file's program or trigger.
    #[arg(long, value_name = "NAME")]
    entry_point: Option<String>,
}

impl Show {
    /// Says in words and numbers what was learned.
    pub fn run(self, app: &App) -> Result<Exit> {
        let Self { image, entry_point } = self;
        let asked = app.block_on(app.registry()?.get_model_of(&image))?.with_context(|| format!("what was learned about {image} cannot be asked"))?;
        let (_, encoded) = asked.with_context(|| format!("nothing was learned about {image}; run it first"))?;
        let model = Model::decode(&encoded).with_context(|| format!("the model of {image} is not valid"))?;
        let learned = Learned::new(image.repository.to_string(), &encoded, &model, entry_point.as_deref());
        if let Some(name) = entry_point.filter(|_| learned.entry_points.is_empty()) {
            let known: Vec<&str> = model.entry_points.iter().map(|entry| entry.name.as_str()).collect();
            bail!("nothing was learned about launches of {name:?}; there were launches of: {}", known.join(", "));
        }
        app.output.result(&learned, |out| print(out, &learned))?;
        Ok(Exit::Success)
    }
}

fn print(out: &mut dyn Write, learned: &Learned) -> std::io::Result<()> {
    let launches = counted(learned.traces, "launch", "launches");
    writeln!(out, "{}: learned from {launches}, the newest of image", learned.repository)?;
    writeln!(out, "{}", learned.image.map_or_else(|| "none".to_owned(), |image| image.to_string()))?;
    writeln!(out, "{} of model: {} touches of {} paths, {} transitions;", bytes(learned.bytes), learned.states, learned.paths, learned.transitions)?;
    writeln!(out, "a launch counts half after {} more", learned.half_life)?;
    learned.entry_points.iter().try_for_each(|entry| print_entry(out, entry))
}

fn print_entry(out: &mut dyn Write, entry: &Entry) -> std::io::Result<()> {
    let name = if entry.name.is_empty() { "the startup file".to_owned() } else { printable(&entry.name) };
    let heading = format!("{} on {}", shortened(&name, WIDTH - 30), printable(&entry.architecture));
    writeln!(out, "\n{heading}\n{}", "=".repeat(heading.chars().count()))?;
    writeln!(out, "learned from {}, of which decay has left {:.1}", counted(entry.launches, "launch", "launches"), entry.weight)?;
    let percent = |share: f32| format!("{:.0} %", 100.0 * share);
    writeln!(out, "\n{:9}{:>AMOUNT$}{:>AMOUNT$}{:>AMOUNT$}  data, at most", "", "of launches", "files", "touches")?;
    let names = [("sure", format!("≥ {}", percent(SURE))), ("likely", format!("≥ {}", percent(LIKELY))), ("rare", format!("< {}", percent(LIKELY)))];
    for ((name, of), Amount { files, touches, bytes: data }) in names.iter().zip(&entry.by_probability) {
        writeln!(out, "  {name:7}{of:>AMOUNT$}{files:>AMOUNT$}{touches:>AMOUNT$}  {}", bytes(*data))?;
    }
    match (entry.expected_hit_rate, entry.expected_waste) {
        (Some(hits), Some(waste)) => {
            writeln!(out, "\none more launch like these: {:.1} % of its touches are known before they", 100.0 * hits)?;
            writeln!(out, "are made, and at most {:.1} % more data travels than it needs", 100.0 * waste)?;
        }
        _ => writeln!(out, "\ntoo few launches to tell what is known of one more")?,
    }
    print_kinds(out, &entry.variants)?;
    writeln!(out, "\nwhen a launch touches what, from its start (data, at most)")?;
    let most = entry.timeline.iter().map(|slot| slot.touches).fold(0.0, f64::max);
    let width = entry.timeline.first().and_then(|slot| slot.to_us).unwrap_or_default();
    for slot in &entry.timeline {
        let times = match slot.to_us {
            Some(to_us) => format!("{} – {}", time(slot.from_us, width), time(to_us, width)),
            None => format!("{} –", time(slot.from_us, width)),
        };
        let bar = "#".repeat((slot.touches / most * BAR as f64).ceil() as usize);
        let row = format!("  {times:TIMES$} {bar:BAR$} {:>8}  ", bytes(slot.bytes));
        let rest = WIDTH.saturating_sub(row.chars().count());
        writeln!(out, "{}", format!("{row}{}", shortened(&printable(&slot.mostly), rest)).trim_end())?;
    }
    if !entry.folders.is_empty() {
        writeln!(out, "\nwhere most of its data is")?;
        for folder in &entry.folders {
            writeln!(out, "  {:>8}  {}", bytes(folder.bytes), shortened(&printable(&folder.path), WIDTH - 12))?;
        }
    }
    Ok(())
}

fn print_kinds(out: &mut dyn Write, kinds: &[Kind]) -> std::io::Result<()> {
    if kinds.len() < 2 {
        return writeln!(out, "\nall launches are of one kind");
    }
    writeln!(out, "\n{} kinds of launches, told apart by what they touch", kinds.len())?;
    for (number, kind) in (1..).zip(kinds) {
        let launches = counted(kind.launches, "launch", "launches");
        writeln!(out, "  {number}: {:.0} % ({launches}); {} touches, {}", 100.0 * kind.share, kind.touches, bytes(kind.bytes))?;
        for (what, paths) in [("it alone touches", &kind.touches_alone), ("it alone leaves out", &kind.leaves_out)] {
            for (at, Telling { path, parts }) in paths.iter().enumerate() {
                let what = if at == 0 { what } else { "" };
                let parts = if *parts { "parts of " } else { "" };
                writeln!(out, "     {what:19}  {parts}{}", shortened(&printable(path), WIDTH - 26 - parts.len()))?;
            }
        }
        if kind.touches_alone.is_empty() && kind.leaves_out.is_empty() {
            writeln!(out, "     nothing in it is only its own")?;
        }
    }
    Ok(())
}

fn counted(count: u64, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

/// A time with as many digits as steps of `width` microseconds need.
fn time(us: u64, width: u64) -> String {
    let digits = match width {
        0..10_000 => 3,
        10_000..100_000 => 2,
        100_000..1_000_000 => 1,
        _ => 0,
    };
    format!("{:.digits$} s", us as f64 / 1e6)
}

/// The end of a text that fits so many columns.
fn shortened(text: &str, columns: usize) -> String {
    let count = text.chars().count();
    if count <= columns { text.to_owned() } else { std::iter::once('…').chain(text.chars().skip(count + 1 - columns.max(1))).collect() }
}

#[cfg(test)]
mod tests;
