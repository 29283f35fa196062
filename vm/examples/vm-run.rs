//! Runs a command over a layer made from a host directory:
//! `vm-run [--mode MODE] [--root] [--cwd DIR] [--mount SRC[=DST]]... [--sandbox DIR] [--layer DIR[=AT]]... -- COMMAND...`

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use client_store::LayerView;
use vm::{BindMount, Launcher, Mode, RunSpec, VmError};

#[path = "../tests/support/layer.rs"]
mod layer;

fn main() {
    let since = Instant::now();
    if std::env::args().nth(1).as_deref() == Some("--probe") {
        for check in vm::probe(Path::new("/tmp")) {
            println!("{check:?}");
        }
        return;
    }
    let launcher = Launcher::fork().unwrap_or_else(|error| fail(&error));
    let mut args = std::env::args_os().skip(1);
    let mut spec = RunSpec::new(std::env::temp_dir().join(format!("vm-run-{}", std::process::id())), Vec::<OsString>::new());
    spec.since = since;
    spec.env = std::env::vars_os().collect();
    spec.working_dir = std::env::current_dir().unwrap_or_default();
    let mut layers: Vec<Arc<dyn LayerView>> = Vec::new();
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_default();
        match arg.to_str().unwrap_or_default() {
            "--mode" => spec.rules = vm::Rules::new(value().to_string_lossy().parse().unwrap_or(Mode::WriteCopy)),
            "--root" => spec.map_root = true,
            "--plain" => spec.plain_layers = true,
            "--cwd" => spec.working_dir = value().into(),
            "--sandbox" => spec.sandbox = value().into(),
            "--readahead" => spec.max_readahead = value().to_string_lossy().parse().unwrap_or(1),
            "--mount" => {
                let (source, target) = pair(value());
                spec.mounts.push(BindMount { source, target });
            }
            "--layer" => {
                let (source, target) = pair(value());
                let mut layer = layer::MemoryLayer::new();
                layer.add_tree(&source, &target.unwrap_or_default());
                layers.push(Arc::new(layer));
            }
            _ => {
                spec.command = args.by_ref().collect();
                if arg != "--" {
                    spec.command.insert(0, arg);
                }
            }
        }
    }
    spec.since = Instant::now();
    let mut running = launcher.start(spec, layers).unwrap_or_else(|error| fail(&error));
    if std::env::var_os("VM_TIMINGS").is_some() {
        eprintln!("{:?}", running.timings());
    }
    match running.wait() {
        Ok(status) => std::process::exit(status.shell_code()),
        Err(error) => fail(&error),
    }
}

fn pair(text: OsString) -> (PathBuf, Option<PathBuf>) {
    let text = text.to_string_lossy().into_owned();
    match text.split_once('=') {
        Some((source, target)) => (source.into(), Some(target.into())),
        None => (text.into(), None),
    }
}

fn fail(error: &VmError) -> ! {
    eprintln!("vm-run: {error}");
    std::process::exit(match error {
        VmError::NotFound { .. } => 127,
        VmError::NotExecutable { .. } => 126,
        _ => 125,
    })
}
