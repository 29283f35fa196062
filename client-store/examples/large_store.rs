//! How a store behaves with many objects: a synthetic one, of real rows in its index and packs that hold nothing.
//!
//! ```text
//! large_store make FOLDER OBJECTS    makes it: packs of 20 000 objects each, all names at random
//! large_store open FOLDER            opens it, looks 1 000 objects up, and says how long that took and the memory
//! ```

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use client_store::store::PackOrigin;
use client_store::{ObjectCache, Store, StoreOptions};
use layer_format::Digest;
use layer_format::pack::{PackIndex, PackedFrame, PackedObject};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const OBJECTS_PER_PACK: u64 = 20_000;
const OBJECTS_PER_FRAME: u64 = 16;
const OBJECT_LEN: u32 = 16 << 10;

fn name(number: u64) -> Digest {
    Digest::of(&number.to_le_bytes())
}

fn make(folder: &Path, objects: u64) -> Result<()> {
    let store = Store::open(folder, StoreOptions::default())?;
    let started = Instant::now();
    for pack in 0..objects.div_ceil(OBJECTS_PER_PACK) {
        let numbers = pack * OBJECTS_PER_PACK..objects.min((pack + 1) * OBJECTS_PER_PACK);
        let mut index = PackIndex::default();
        for (at, number) in numbers.enumerate() {
            let (frame, slot) = (at as u64 / OBJECTS_PER_FRAME, at as u64 % OBJECTS_PER_FRAME);
            if slot == 0 {
                index.frames.push(PackedFrame { offset: 16 + frame * 3000, len: 3000, count: OBJECTS_PER_FRAME as u16 });
            }
            index.objects.push(PackedObject { digest: name(number), len: OBJECT_LEN, frame: frame as u32, slot: slot as u16 });
        }
        let bytes = format!("pack {pack}");
        let mut writer = store.pack_writer(PackOrigin::Pulled)?;
        writer.write_all(bytes.as_bytes())?;
        writer.finish(Digest::of(bytes.as_bytes()), &index)?;
    }
    let stats = store.stats()?;
    let (elapsed, bytes) = (started.elapsed().as_secs_f64(), stats.index_bytes);
    writeln!(std::io::stdout(), "{} objects in {elapsed:.1} s; index {bytes} bytes, {:.1} each", stats.objects, bytes as f64 / stats.objects as f64)?;
    Ok(())
}

fn memory_kib(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field)).ok_or("no such field")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}

fn open(folder: &Path) -> Result<()> {
    let started = Instant::now();
    let store = Store::open(folder, StoreOptions::default())?;
    let opened = started.elapsed();
    let (anonymous, resident) = (memory_kib("RssAnon:")?, memory_kib("VmRSS:")?);
    let names: Vec<Digest> = (0..1000).map(|number| name(number * 7919)).collect();
    let started = Instant::now();
    let found = store.contains(&names)?.into_iter().filter(|found| *found).count();
    let looked_up = started.elapsed();
    writeln!(
        std::io::stdout(),
        "open {:.2} ms, resident {resident} KiB of which anonymous {anonymous}; {found} of 1000 found in {:.2} ms, then resident {} KiB of which anonymous {}",
        opened.as_secs_f64() * 1e3,
        looked_up.as_secs_f64() * 1e3,
        memory_kib("VmRSS:")?,
        memory_kib("RssAnon:")?
    )?;
    Ok(())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", folder, objects] => make(Path::new(folder), objects.parse()?),
        ["open", folder] => open(Path::new(folder)),
        _ => Err("say `make FOLDER OBJECTS` or `open FOLDER`".into()),
    }
}
