//! `turbo-bench frames`: how large frames should be. Chunks are the unit of deduplication, frames that of compression: larger frames
//! compress better, and whoever wants one chunk decompresses (and a registry reads) all of its frame.
//!
//! Root filesystems are cut and framed as an import does it, at each size; recorded runs (`predictor/traces`) say which chunks a launch
//! wants. Nothing is simulated: stored bytes are those of zstd -3, and the bytes of a launch are sums over the frames that hold what the
//! run touched.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use chunker::cut::Cutter;
use layer_format::trace::{BUCKET_LEN, Touch, Trace};
use layer_format::{Digest, LayerPath};

use crate::replay::Recorded;
use crate::traces::subjects::SUBJECTS;

/// Frames of these lengths are compared, in bytes.
const SIZES: [usize; 5] = [64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];
/// What the product uses.
const CHOSEN: usize = layer_format::frame::TARGET_FRAME_LEN;
const LEVEL: i32 = 3;

/// Measure what lengths of frames cost and save.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this application; may be given more than once.
    #[arg(long = "app", value_name = "NAME")]
    pub apps: Vec<String>,
    /// Folder of trees to use instead of Debian packages.
    #[arg(long, value_name = "DIR")]
    pub dataset: Option<PathBuf>,
    /// Where root filesystems are kept.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub cache: PathBuf,
    /// Folder of the recorded runs.
    #[arg(long, value_name = "DIR", default_value = "predictor/traces")]
    pub traces: PathBuf,
}

/// A chunk of a file: from where on, how long, and its number among the distinct ones.
#[derive(Debug, Clone, Copy)]
struct Piece {
    offset: u64,
    len: u64,
    chunk: usize,
}

/// A root filesystem, cut.
#[derive(Debug, Default)]
struct Cut {
    files: HashMap<LayerPath, Vec<Piece>>,
    /// Of each distinct chunk, in the order of the tree: its length.
    lens: Vec<usize>,
    /// The content of all distinct chunks, one after the other.
    content: Vec<u8>,
}

/// What one length of frames gives for one application.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    stored_bytes: f64,
    /// Bytes that are decompressed for a launch, to those of the chunks that it wants.
    decoded_ratio: f64,
    /// Stored bytes that are read for a launch.
    read_bytes: f64,
    /// Frames that are read for a launch.
    frames: f64,
}

/// Measures and prints.
///
/// # Errors
/// If a root filesystem cannot be made or read.
pub fn run(args: &Args) -> Result<()> {
    let recorded = Recorded::load(&args.traces)?;
    let mut rows = Vec::new();
    for subject in SUBJECTS {
        let wanted = match args.apps.is_empty() {
            true => !subject.needs_dataset || args.dataset.is_some(),
            false => args.apps.iter().any(|name| name == subject.name),
        };
        let Some(runs) = recorded.get(subject.name).filter(|_| wanted) else { continue };
        let cut = Cut::of(&subject.root(args.dataset.as_deref(), &args.cache)?)?;
        let traces: Vec<&Trace> = runs.train.iter().chain(&runs.score).collect();
        let costs = SIZES.map(|size| cut.cost(size, &traces));
        let costs = costs.into_iter().collect::<Result<Vec<_>>>()?;
        eprintln!("{} done", subject.name);
        rows.push((subject.name, costs));
    }
    ensure!(!rows.is_empty(), "there is no such application");
    print!("{}", table(&rows));
    Ok(())
}

impl Cut {
    fn of(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        list(root, root, &mut files)?;
        files.sort_by(|one, other| one.0.cmp(&other.0));
        let (mut cut, cutter, mut known, mut inodes) = (Self::default(), Cutter::new(), HashMap::new(), HashMap::<_, LayerPath>::new());
        for (name, path) in files {
            let metadata = fs::metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?;
            if let Some(first) = inodes.get(&metadata.ino()) {
                let pieces = cut.files.get(first).cloned().unwrap_or_default();
                cut.files.insert(name, pieces);
                continue;
            }
            inodes.insert(metadata.ino(), name.clone());
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let (mut pieces, mut offset) = (Vec::new(), 0);
            for len in cutter.all(&content) {
                let bytes = &content[offset..offset + len];
                let chunk = *known.entry(Digest::of(bytes)).or_insert_with(|| {
                    cut.lens.push(len);
                    cut.content.extend_from_slice(bytes);
                    cut.lens.len() - 1
                });
                pieces.push(Piece { offset: offset as u64, len: len as u64, chunk });
                offset += len;
            }
            cut.files.insert(name, pieces);
        }
        Ok(cut)
    }

    /// The chunks that a run touches.
    fn touched(&self, trace: &Trace) -> HashSet<usize> {
        let mut touched = HashSet::new();
        for event in &trace.events {
            let Touch::Data { bucket } = event.touch else { continue };
            let pieces = trace.paths.get(event.path as usize).and_then(|path| self.files.get(path));
            let (start, end) = (u64::from(bucket) * BUCKET_LEN, (u64::from(bucket) + 1) * BUCKET_LEN);
            touched.extend(pieces.into_iter().flatten().filter(|piece| piece.offset < end && piece.offset + piece.len > start).map(|piece| piece.chunk));
        }
        touched
    }

    fn cost(&self, size: usize, traces: &[&Trace]) -> Result<Cost> {
        let (mut frame_of, mut frames, mut start, mut at) = (Vec::with_capacity(self.lens.len()), Vec::new(), 0, 0);
        let mut cost = Cost::default();
        let end = |start: usize, at: usize| -> Result<(usize, usize)> {
            let packed = zstd::bulk::compress(&self.content[start..at], LEVEL).context("cannot compress")?;
            Ok((at - start, packed.len().min(at - start)))
        };
        for len in &self.lens {
            frame_of.push(frames.len());
            at += len;
            if at - start >= size {
                frames.push(end(start, at)?);
                start = at;
            }
        }
        if at > start {
            frames.push(end(start, at)?);
        }
        cost.stored_bytes = frames.iter().map(|frame| frame.1 as f64).sum();
        for trace in traces {
            let touched = self.touched(trace);
            let wanted: usize = touched.iter().map(|chunk| self.lens[*chunk]).sum();
            let read: HashSet<usize> = touched.iter().map(|chunk| frame_of[*chunk]).collect();
            cost.decoded_ratio += read.iter().map(|frame| frames[*frame].0).sum::<usize>() as f64 / wanted.max(1) as f64 / traces.len() as f64;
            cost.read_bytes += read.iter().map(|frame| frames[*frame].1).sum::<usize>() as f64 / traces.len() as f64;
            cost.frames += read.len() as f64 / traces.len() as f64;
        }
        Ok(cost)
    }
}

fn list(root: &Path, folder: &Path, files: &mut Vec<(LayerPath, PathBuf)>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let (kind, path) = (entry.file_type().with_context(|| format!("cannot look at {}", entry.path().display()))?, entry.path());
        if kind.is_dir() {
            list(root, &path, files)?;
        } else if kind.is_file() {
            let name = path.strip_prefix(root).context("a path is not below its root")?;
            files.push((LayerPath::new(name.as_os_str().as_bytes())?, path));
        }
    }
    Ok(())
}

/// Means over the applications, relative to what the product uses.
fn table(rows: &[(&str, Vec<Cost>)]) -> String {
    let names: Vec<&str> = rows.iter().map(|row| row.0).collect();
    let mut table = format!("Means over {} (recorded runs: `predictor/traces`), relative to {} KiB.\n\n", names.join(", "), CHOSEN >> 10);
    table.push_str("| frame | stored bytes | read for a launch | frames of a launch | decompressed, to what is wanted |\n|---|---|---|---|---|\n");
    let chosen = SIZES.iter().position(|size| *size == CHOSEN).unwrap_or(0);
    for (at, size) in SIZES.iter().enumerate() {
        let decoded = rows.iter().map(|row| row.1[at].decoded_ratio).sum::<f64>() / rows.len() as f64;
        let relative = |value: fn(&Cost) -> f64| rows.iter().map(|row| value(&row.1[at]) / value(&row.1[chosen]).max(1.0)).sum::<f64>() / rows.len() as f64;
        let _ = writeln!(
            table,
            "| {} KiB | {:.3} | {:.2} | {:.2} | {:.2} |",
            size >> 10,
            relative(|cost| cost.stored_bytes),
            relative(|cost| cost.read_bytes),
            relative(|cost| cost.frames),
            decoded,
        );
    }
    table
}
