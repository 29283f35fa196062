//! Takes gzip files apart and makes them again, each on one core: `cargo run --release -p chunker --example rebuild_gzip -- FILE…`. Prints, for each
//! file, the encoder, what is kept besides the plain bytes, and the speed of that core both ways, by processor time.

#![allow(clippy::print_stdout, reason = "a report")]

use std::time::Duration;

use chunker::deflate::{Analyzer, Place, history_len, rebuild};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("| file | encoder | plain MiB | packed MiB | corrections | of packed | analyse MB/s plain | rebuild MB/s plain |");
    println!("|---|---|---|---|---|---|---|---|");
    for file in std::env::args().skip(1) {
        if let Err(error) = one(&file) {
            println!("| {file} | {error} |");
        }
    }
    Ok(())
}

/// Processor time of this thread.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn one(file: &str) -> Result<(), Box<dyn std::error::Error>> {
    let packed = std::fs::read(file)?;
    let started = now();
    let mut analyzer = Analyzer::new(&packed[..]);
    let mut plain: Vec<u8> = Vec::new();
    let mut sections: Vec<(Place, Vec<u8>, u64, usize)> = Vec::new();
    let mut encoders = Vec::new();
    while let Some(section) = analyzer.next_section()? {
        plain.extend_from_slice(section.plain);
        let name = section.encoder.to_string();
        if !encoders.contains(&name) {
            encoders.push(name);
        }
        sections.push((section.place, section.corrections, section.packed_end_bits, plain.len()));
    }
    let analyzed = now() - started;
    let corrections: usize = sections.iter().map(|(_, corrections, ..)| corrections.len()).sum();
    let mut rebuilding = Duration::ZERO;
    let mut again = Vec::with_capacity(packed.len());
    for (place, corrections, end_bits, plain_end) in &sections {
        let from = plain_end - place.plain_len as usize - history_len(place);
        let packed_len = (end_bits / 8 - place.packed_bits / 8) as usize;
        let started = now();
        let bytes = rebuild(place, &plain[from..*plain_end], corrections, packed_len)?;
        rebuilding += now() - started;
        again.extend_from_slice(&bytes);
    }
    let same = if again == packed { "" } else { " WRONG" };
    let speed = |time: Duration| plain.len() as f64 / 1e6 / time.as_secs_f64();
    println!(
        "| {file}{same} | {} | {:.1} | {:.1} | {corrections} | {:.3} % | {:.0} | {:.0} |",
        encoders.join(", "),
        plain.len() as f64 / f64::from(1 << 20),
        packed.len() as f64 / f64::from(1 << 20),
        100.0 * corrections as f64 / packed.len() as f64,
        speed(analyzed),
        speed(rebuilding)
    );
    Ok(())
}
