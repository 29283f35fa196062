//! A model that is wrong: sure of what the launch does not touch.
//!
//! It is learned from runs of the same entry point that never were: they read files of the image that a recorded run did
//! not touch, one after the other. So all that it names exists, and no check of names can tell.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use layer_format::LayerPath;
use layer_format::trace::{BUCKET_LEN, Event, Source, Touch, Trace};
use predictor::{Model, Params, learn};

/// What the model is sure of, in bytes.
const BYTES: u64 = 64 << 20;
/// Launches that it learned from.
const LAUNCHES: usize = 5;

/// Makes such a model for the image that was recorded in `real`, of one layer made of `root`.
///
/// # Errors
/// If the root filesystem cannot be read, or holds nothing that the run did not touch.
pub(crate) fn model(root: &Path, real: &Trace) -> Result<Model> {
    let trace = trace(root, real)?;
    let mut model = Model::default();
    (0..LAUNCHES).for_each(|_| learn(&mut model, &trace, &Params::default()));
    Ok(model)
}

/// A run that the model is learned from.
pub(crate) fn trace(root: &Path, real: &Trace) -> Result<Trace> {
    let touched: HashSet<&LayerPath> = real.paths.iter().collect();
    let mut files = Vec::new();
    walk(root, Path::new(""), &mut files)?;
    let mut trace = Trace { paths: Vec::new(), events: Vec::new(), ..real.clone() };
    let mut bytes = 0;
    for (path, len) in files {
        let Some(path) = path.to_str().and_then(|path| LayerPath::new(path).ok()).filter(|path| !touched.contains(path)) else { continue };
        let number = trace.paths.len() as u32;
        trace.paths.push(path);
        for bucket in 0..len.div_ceil(BUCKET_LEN) {
            let time_us = 50 * trace.events.len() as u64;
            trace.events.push(Event { time_us, process: 0, layer: 0, path: number, touch: Touch::Data { bucket: bucket as u32 }, source: Source::Local });
        }
        bytes += len;
        if bytes >= BYTES {
            break;
        }
    }
    ensure!(bytes > 0, "the launch touches every file of {}", root.display());
    Ok(trace)
}

/// All files, in an order that is the same on every machine.
fn walk(root: &Path, folder: &Path, files: &mut Vec<(std::path::PathBuf, u64)>) -> Result<()> {
    let full = root.join(folder);
    let entries = fs::read_dir(&full).and_then(Iterator::collect::<Result<Vec<_>, _>>).with_context(|| format!("cannot list {}", full.display()))?;
    let mut names: Vec<_> = entries.into_iter().map(|entry| entry.file_name()).collect();
    names.sort();
    for name in names {
        let path = folder.join(name);
        let metadata = root.join(&path).symlink_metadata().with_context(|| format!("cannot look at {}", path.display()))?;
        if metadata.is_dir() {
            walk(root, &path, files)?;
        } else if metadata.is_file() {
            files.push((path, metadata.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer_format::Digest;
    use predictor::launch_list;

    #[test]
    fn is_sure_of_files_that_are_there_and_were_not_touched() {
        let root = tempfile::tempdir().unwrap();
        for (name, len) in [("a", 10), ("b", 40_000), ("c", 0)] {
            fs::write(root.path().join(name), vec![1; len]).unwrap();
        }
        let real = Trace {
            image: Digest::of(b""),
            entry_point: "/a".into(),
            architecture: "x86_64".into(),
            duration_us: 1,
            paths: vec![LayerPath::new("a").unwrap()],
            events: Vec::new(),
        };
        let list = launch_list(&model(root.path(), &real).unwrap(), Some("/a"), "x86_64");
        let places: Vec<_> = list.iter().map(|item| (item.path.to_string(), item.touch, item.probability)).collect();
        assert_eq!(places, (0..3).map(|bucket| ("/b".to_owned(), Touch::Data { bucket }, 1.0)).collect::<Vec<_>>());
    }
}
