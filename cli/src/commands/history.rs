//! `turbo history`.

use anyhow::Result;

use crate::app::App;
use crate::containers::ago;
use crate::exit::Exit;
use crate::history;
use crate::output::table;

/// List images by last use.
#[derive(Debug, clap::Args)]
pub struct History {
    /// Only images whose name starts with this.
    image: Option<String>,
    /// Show at most this many.
    #[arg(short, default_value_t = 50)]
    n: usize,
    /// Show whole digests.
    #[arg(long)]
    no_trunc: bool,
}

impl History {
    /// Lists them, the last used first.
    pub fn run(self, app: &App) -> Result<Exit> {
        let mut uses = history::read(&app.settings.home)?;
        if let Some(image) = &self.image {
            uses.retain(|used| used.image.starts_with(image.as_str()));
        }
        uses.truncate(self.n);
        app.output.result(&uses, |out| {
            let cells: Vec<Vec<String>> = uses
                .iter()
                .map(|used| {
                    let digest = used.digest.to_string();
                    let shown = if self.no_trunc { digest.as_str() } else { &digest[..digest.len().min(15)] };
                    vec![shown.to_owned(), ago(used.used_s), used.image.clone()]
                })
                .collect();
            table(out, &["DIGEST", "LAST USED", "IMAGE"], &cells)
        })?;
        Ok(Exit::Success)
    }
}
