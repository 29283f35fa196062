//! How long it takes to start `true`: under bubblewrap, in a container of one image, and of twenty.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::runner::{check, program};
use super::{Place, Series};
use crate::turbo::Tools;

/// Images of the larger stack.
const LAYERS: usize = 20;

/// Measures starts in turns.
///
/// # Errors
/// If bubblewrap is missing, or a start fails.
pub(super) fn measure(tools: &Tools, folder: &Path, rounds: u32, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Series>> {
    let name = "start of `true`";
    if !wanted(name) {
        return Ok(Vec::new());
    }
    let bwrap = program("bwrap", "bubblewrap")?;
    let home = folder.join("starts");
    let images: Vec<String> = (1..=LAYERS).map(|number| format!("bench/layer-{number}:1")).collect();
    for (number, image) in images.iter().enumerate() {
        let tree = folder.join("layer");
        fs::create_dir_all(tree.join("bin"))?;
        fs::write(tree.join(format!("file-{number}")), image)?;
        fs::copy("/bin/true", tree.join("bin/true")).context("cannot copy `true`")?;
        let mut import = tools.turbo_in(&home);
        import.args(["import", "dir"]).arg(&tree).args(["--at", "/opt/bench", "--name", image, "--startup-file", "/opt/bench/bin/true"]);
        check(import, "import a layer")?;
        fs::remove_dir_all(&tree)?;
    }
    let container = |images: &[String]| {
        let mut command = tools.turbo_in(&home);
        command.args(["try", "--offline", &images.join(",")]);
        command
    };
    let mut seconds = Vec::new();
    // A start is short: more rounds than for work that takes long.
    for round in 0..=rounds * 5 {
        for place in [Place::Bubblewrap, Place::OneLayer, Place::TwentyLayers] {
            let mut command = match place {
                Place::Bubblewrap => Command::new(&bwrap),
                Place::OneLayer => container(&images[..1]),
                _ => container(&images),
            };
            if place == Place::Bubblewrap {
                command.args(["--dev-bind", "/", "/", "/bin/true"]);
            }
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let start = Instant::now();
            let status = command.status().context("cannot start")?;
            let took = start.elapsed().as_secs_f64();
            ensure!(status.success(), "{place:?}: {status}");
            if round > 0 {
                seconds.push((place, took));
            }
        }
    }
    Ok(vec![Series { name: name.into(), seconds }])
}
