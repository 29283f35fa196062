//! `turbo states`.

use std::collections::HashMap;

use anyhow::{Result, bail};
use layer_format::Digest;
use serde::Serialize;

use crate::app::App;
use crate::containers::ago;
use crate::exit::Exit;
use crate::output::{note, table};
use crate::states::digits;
use crate::states::sharing::Visibility;

/// List states, of the containers here and of yours on the registry, newest first.
#[derive(Debug, clap::Args)]
pub struct States {
    /// Only those that start with these digits, or of the container of this name.
    prefix: Option<String>,
    /// Only those that are here; the registry is not asked.
    #[arg(short, long)]
    local: bool,
    /// List public states of the registry as well.
    #[arg(long, conflicts_with = "local")]
    public: bool,
    /// Show at most this many.
    #[arg(short, long, value_name = "COUNT")]
    n: Option<usize>,
    /// Show whole ids.
    #[arg(long)]
    no_trunc: bool,
}

/// A row of the list.
#[derive(Clone, Debug, Serialize)]
struct Row {
    state: Digest,
    /// Name of the container; of one that is here if there is one.
    container: Option<String>,
    /// When it was taken, or saved if only the registry has it: seconds since 1970.
    taken_s: u64,
    /// Whether it is on this machine.
    local: bool,
    /// `private` or `public`, if the registry has it.
    visibility: Option<&'static str>,
    /// Bytes of all files of the sandbox, as far as known.
    bytes: Option<u64>,
}

impl States {
    /// Lists them.
    pub fn run(self, app: &App) -> Result<Exit> {
        let store = app.store()?;
        let mut rows: HashMap<Digest, Row> = HashMap::new();
        for container in app.containers().list()? {
            for state in &container.states {
                let row = Row { state: state.id, container: Some(container.name.clone()), taken_s: state.taken_s, local: false, visibility: None, bytes: None };
                let known = rows.entry(state.id).or_insert(row);
                known.taken_s = known.taken_s.max(state.taken_s);
            }
        }
        for (id, kept_s) in store.states()? {
            let row = rows.entry(id).or_insert(Row { state: id, container: None, taken_s: kept_s, local: true, visibility: None, bytes: None });
            row.local = true;
        }
        // What a container lists and the store lost cannot be gone on from here.
        rows.retain(|_, row| row.local);
        if !self.local
            && let Err(error) = self.add_remote(app, &mut rows)
        {
            note(format!("the registry could not be asked, so this is what is here: {error:#}"));
        }
        let mut rows: Vec<Row> = rows.into_values().filter(|row| self.wants(row)).collect();
        rows.sort_by(|a, b| b.taken_s.cmp(&a.taken_s).then(a.state.cmp(&b.state)));
        rows.truncate(self.n.unwrap_or(usize::MAX));
        if rows.is_empty()
            && let Some(prefix) = &self.prefix
        {
            bail!("there is no state that starts with `{prefix}`, nor of a container of this name");
        }
        app.output.result(&rows, |out| {
            let cells: Vec<Vec<String>> = rows.iter().map(|row| self.cells(row)).collect();
            table(out, &["STATE", "CONTAINER", "TAKEN", "HERE", "REGISTRY"], &cells)
        })?;
        Ok(Exit::Success)
    }

    fn add_remote(&self, app: &App, rows: &mut HashMap<Digest, Row>) -> Result<()> {
        let registry = app.registry()?;
        let mut asked = vec![Visibility::Private];
        if self.public {
            asked.push(Visibility::Public);
        }
        for visibility in asked {
            let found = app.block_on(registry.states(&visibility.repository(&app.settings)?))??;
            for state in found.states {
                let new =
                    Row { state: state.digest, container: state.container.clone(), taken_s: state.pushed_at, local: false, visibility: None, bytes: None };
                let row = rows.entry(state.digest).or_insert(new);
                row.container = row.container.take().or(state.container);
                row.visibility = row.visibility.or(Some(visibility.shown()));
                row.bytes = Some(state.bytes);
            }
        }
        Ok(())
    }

    fn wants(&self, row: &Row) -> bool {
        match &self.prefix {
            None => true,
            Some(text) => row.container.as_deref() == Some(text) || row.state.to_hex().starts_with(digits(text)),
        }
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let hex = row.state.to_hex();
        let id = if self.no_trunc { hex } else { hex[..12].to_owned() };
        let here = if row.local { "yes" } else { "no" };
        vec![id, row.container.clone().unwrap_or_else(|| "-".into()), ago(row.taken_s), here.into(), row.visibility.unwrap_or("-").into()]
    }
}
