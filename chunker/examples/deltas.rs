//! Imports versions of a directory one after the other, each compressed against the one before, and prints what each adds; then
//! reads all of the last one back.
//!
//! `cargo run --release -p chunker --example deltas -- [--plain] VERSION-1 VERSION-2 …`

use std::path::Path;
use std::time::Instant;

use chunker::{ImportOptions, MemoryStore, export_tar, import_directory};
use layer_format::Digest;
use layer_format::frame::{Codec, FrameHeader, delta};
use layer_format::pack;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let plain = args.first().is_some_and(|arg| arg == "--plain");
    args.drain(..usize::from(plain));
    let mut store = MemoryStore::new();
    let mut root = Digest::of(b"");
    for version in &args {
        let packs = store.packs().len();
        let start = Instant::now();
        let imported = import_directory(Path::new(version), &ImportOptions::default(), &store, &())?;
        let (wall, mut counts) = (start.elapsed().as_secs_f64(), [0u64; 6]);
        for (_, bytes) in store.packs().into_iter().skip(packs) {
            let index = pack::read_index(&bytes)?;
            counts[5] += 35 * index.objects.len() as u64;
            for frame in &index.frames {
                let encoded = &bytes[frame.offset as usize..][..frame.len as usize];
                let is_delta = FrameHeader::decode(encoded)?.codec == Codec::Delta;
                counts[usize::from(is_delta)] += 1;
                counts[2 + usize::from(is_delta)] += u64::from(frame.len);
                counts[4] += 32 * delta::bases(encoded)?.len() as u64;
            }
        }
        let [plain_frames, delta_frames, plain_len, delta_len, names, index] = counts;
        println!(
            "{version}: {:.3} MB stored of {} new bytes in {} objects; {plain_frames} plain frames of {plain_len} B, {delta_frames} deltas of {delta_len} B ({names} B of it names of bases), index {index} B; {wall:.2} s",
            imported.stored_bytes as f64 / 1e6,
            imported.new_bytes,
            imported.new_objects,
        );
        root = imported.root;
        if !plain {
            store.compress_against(vec![root]);
        }
    }
    let exported = export_tar(&[root], &store, &mut std::io::sink(), &())?;
    println!("read back: {exported:?}");
    Ok(())
}
