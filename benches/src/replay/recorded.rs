//! The recorded runs: see `predictor/traces/README.md`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use layer_format::trace::Trace;
use predictor::replay::Travel;
use predictor::{Model, Params, learn};

/// All runs of one application.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    /// Its name.
    pub(crate) name: String,
    /// What a model learns from.
    pub(crate) train: Vec<Trace>,
    /// What it is scored on.
    pub(crate) score: Vec<Trace>,
    /// What travels.
    pub(crate) travel: Travel,
}

impl Recorded {
    /// Those in a folder, by name.
    pub(crate) fn load(folder: &Path) -> Result<BTreeMap<String, Self>> {
        let mut all: BTreeMap<String, Self> = BTreeMap::new();
        let entries =
            fs::read_dir(folder).with_context(|| format!("cannot list {}: run this in the repository, or name the folder with --traces", folder.display()))?;
        let mut paths: Vec<_> =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|extension| extension == "zst")).collect();
        paths.sort();
        for path in paths {
            let read = || anyhow::Ok(zstd::decode_all(&fs::read(&path)?[..])?);
            let bytes = read().with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} has no name", path.display()))?;
            let (name, rest) = name.split_once('.').with_context(|| format!("{} is no recorded run", path.display()))?;
            let application = all.entry(name.to_owned()).or_insert_with(|| Self { name: name.to_owned(), ..Self::default() });
            let trace = || Trace::decode(&bytes).with_context(|| format!("{} is damaged", path.display()));
            match rest.split('.').next() {
                Some("train") => application.train.push(trace()?),
                Some("score") => application.score.push(trace()?),
                Some("sizes") => application.travel = Travel::decode(&bytes).with_context(|| format!("{} is damaged", path.display()))?,
                _ => bail!("{} is no recorded run", path.display()),
            }
        }
        ensure!(!all.is_empty(), "there is no recorded run in {}", folder.display());
        Ok(all)
    }

    /// A model of the runs that are for training.
    pub(crate) fn model(&self) -> Arc<Model> {
        let mut model = Model::default();
        self.train.iter().for_each(|trace| learn(&mut model, trace, &Params::default()));
        Arc::new(model)
    }
}
