//! Imports a directory or tar file into packs in a temporary directory, and prints what it took.
//!
//! `cargo run --release -p chunker --example import -- SOURCE [PACK_DIR [THREADS [LEVEL [ROUNDS]]]]`
//! `PACK_DIR` is created below the system's directory for temporary files if not given, and emptied after each round;
//! the last round imports once more into the same packs, to show what a known tree costs.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use chunker::{ImportOptions, Imported, ObjectSink, PackSink, SinkError, import_directory, import_tar};
use layer_format::Digest;
use layer_format::pack::PackIndex;

struct DirectorySink {
    path: PathBuf,
    present: Mutex<HashSet<Digest>>,
}

struct PackFile<'a> {
    sink: &'a DirectorySink,
    file: BufWriter<File>,
    path: PathBuf,
}

impl ObjectSink for DirectorySink {
    fn present(&self, digests: &[Digest]) -> Result<Vec<bool>, SinkError> {
        let present = self.present.lock().map_err(|_| SinkError::message("poisoned"))?;
        Ok(digests.iter().map(|digest| present.contains(digest)).collect())
    }

    fn create_pack(&self) -> Result<Box<dyn PackSink + '_>, SinkError> {
        let path = self.path.join("unfinished");
        let file = File::create(&path).map_err(|error| SinkError::new("cannot create a pack", error))?;
        Ok(Box::new(PackFile { sink: self, file: BufWriter::new(file), path }))
    }
}

impl Write for PackFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl PackSink for PackFile<'_> {
    fn finish(mut self: Box<Self>, digest: Digest, index: PackIndex) -> Result<(), SinkError> {
        let finish = |file: &mut BufWriter<File>, path: &Path| file.flush().and_then(|()| fs::rename(path, path.with_file_name(digest.to_hex())));
        finish(&mut self.file, &self.path).map_err(|error| SinkError::new("cannot finish a pack", error))?;
        let mut present = self.sink.present.lock().map_err(|_| SinkError::message("poisoned"))?;
        present.extend(index.objects.iter().map(|object| object.digest));
        Ok(())
    }
}

fn import(source: &Path, options: &ImportOptions, sink: &DirectorySink) -> Result<Imported, Box<dyn std::error::Error>> {
    let start = (Instant::now(), cpu_seconds());
    let imported = match source.is_dir() {
        true => import_directory(source, options, sink, &())?,
        false => import_tar(File::open(source)?, options, sink, &())?,
    };
    let (wall, cpu) = (start.0.elapsed().as_secs_f64(), cpu_seconds() - start.1);
    let rate = imported.bytes as f64 / 1e6 / wall;
    println!(
        "{:.3} s wall, {cpu:.2} s cpu, {rate:.0} MB/s, {} entries, {:.1} MB; new: {} objects, stored {:.2} MB; peak {} MiB",
        wall,
        imported.entries,
        imported.bytes as f64 / 1e6,
        imported.new_objects,
        imported.stored_bytes as f64 / 1e6,
        peak_rss_kib() / 1024,
    );
    Ok(imported)
}

fn status_field(path: &str, name: &str) -> u64 {
    let status = fs::read_to_string(path).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn peak_rss_kib() -> u64 {
    status_field("/proc/self/status", "VmHWM:")
}

fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().map(|word| word.parse().unwrap_or(0.0)).collect();
    (fields.get(11).unwrap_or(&0.0) + fields.get(12).unwrap_or(&0.0)) / 100.0
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let source = PathBuf::from(args.get(1).ok_or("which directory?")?);
    let temporary = std::env::temp_dir().join(format!("turbo-import-{}", std::process::id()));
    let path = args.get(2).map_or(temporary, PathBuf::from);
    let number = |at: usize, default: i32| args.get(at).map_or(Ok(default), |arg| arg.parse::<i32>());
    let options = ImportOptions { threads: number(3, 0)?.try_into()?, zstd_level: number(4, 3)?, ..ImportOptions::default() };
    let rounds = number(5, 3)?;
    for round in 1..=rounds {
        fs::create_dir_all(&path)?;
        let sink = DirectorySink { path: path.clone(), present: Mutex::default() };
        import(&source, &options, &sink)?;
        if round == rounds {
            import(&source, &options, &sink)?;
        }
        fs::remove_dir_all(&path)?;
    }
    Ok(())
}
