//! Real clients: pushes and pulls with docker and skopeo, and what consecutive builds take when docker, skopeo and podman push them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use integration_tests::Docker;

use super::server::{Kind, Server};
use super::{Bench, Measured, builds};

/// Names of figures: seconds.
pub(crate) const DOCKER_PUSH: &str = "docker push, s";
pub(crate) const DOCKER_PULL: &str = "docker pull, s";
pub(crate) const SKOPEO_PUSH: &str = "skopeo push, s";
pub(crate) const SKOPEO_PULL: &str = "skopeo pull, s";
/// How the names of stored bytes begin; the client's name follows. Blobs that were taken apart lie there as they were pushed, too,
/// until collections that come hours later: `GET /-/savings` tells what will be left.
pub(crate) const STORED: &str = "stored bytes of consecutive builds, before collections, MB, pushed with ";

/// Runs a command to its end without output; seconds.
fn timed(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(start.elapsed().as_secs_f64())
}

fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("not measured: this machine has no {tool}");
    }
    found
}

/// A build as a layout, and as an archive for docker.
fn build(bench: &Bench, number: u32) -> Result<(PathBuf, PathBuf)> {
    let layout = bench.work.path().join(format!("build{number}"));
    let archive = bench.work.path().join(format!("build{number}.tar"));
    builds::layout(&bench.tree, number, &layout)?;
    timed(Command::new("tar").arg("-C").arg(&layout).arg("-cf").arg(&archive).arg("."))?;
    Ok((layout, archive))
}

fn remove(built: &(PathBuf, PathBuf)) -> Result<()> {
    std::fs::remove_dir_all(&built.0).context("cannot remove a build")?;
    std::fs::remove_file(&built.1).context("cannot remove a build")
}

fn skopeo(arguments: &[&str], from: &str, to: &str) -> Command {
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--quiet"]).args(arguments).args([from, to]);
    command
}

fn podman(storage: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("podman");
    command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run")).args(["--storage-driver", "vfs"]).args(arguments);
    command
}

/// Pushes and pulls one image with each client, both registries in turn.
pub(crate) fn measure(bench: &Bench, round: u32, measured: &mut Measured) -> Result<()> {
    let built = build(bench, round)?;
    if has("skopeo") {
        let source = format!("oci:{}:app", built.0.display());
        for kind in Kind::turns(round) {
            let server = bench.start(kind)?;
            let name = format!("docker://{}/bench/app:1", server.address());
            measured.add(SKOPEO_PUSH, kind, round, timed(&mut skopeo(&["--dest-tls-verify=false"], &source, &name))?);
            let back = bench.work.path().join("back");
            measured.add(SKOPEO_PULL, kind, round, timed(&mut skopeo(&["--src-tls-verify=false"], &name, &format!("oci:{}:app", back.display())))?);
            std::fs::remove_dir_all(back).context("cannot remove what was pulled")?;
        }
    }
    if let Some(docker) = Docker::start() {
        for kind in Kind::turns(round) {
            let server = bench.start(kind)?;
            let name = load_into(&docker, &built.1, &server)?;
            measured.add(DOCKER_PUSH, kind, round, timed(&mut docker.command(&["push", "--quiet", &name]))?);
            timed(&mut docker.command(&["rmi", "--force", &name, "app:latest"]))?;
            measured.add(DOCKER_PULL, kind, round, timed(&mut docker.command(&["pull", "--quiet", &name]))?);
            timed(&mut docker.command(&["rmi", "--force", &name]))?;
        }
    }
    remove(&built)
}

fn load_into(docker: &Docker, archive: &Path, server: &Server) -> Result<String> {
    let name = format!("{}/bench/app:1", server.address());
    timed(docker.command(&["load", "--quiet", "--input"]).arg(archive))?;
    timed(&mut docker.command(&["tag", "app:latest", &name]))?;
    Ok(name)
}

/// Pushes consecutive builds with each client to registries of their own, and measures what these have then.
pub(crate) fn stored(bench: &Bench, measured: &mut Measured) -> Result<()> {
    let docker = Docker::start();
    let clients: Vec<&str> =
        [("docker", docker.is_some()), ("skopeo", has("skopeo")), ("podman", has("podman"))].into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect();
    // Podman takes no long paths.
    let storage = tempfile::Builder::new().prefix("pod-").tempdir().context("cannot create a folder for podman")?;
    let mut servers = Vec::new();
    for client in &clients {
        for kind in Kind::turns(0) {
            servers.push((*client, bench.start(kind)?));
        }
    }
    for number in 0..bench.builds {
        let built = build(bench, number)?;
        let source = format!("oci:{}:app", built.0.display());
        if let Some(docker) = &docker {
            timed(docker.command(&["load", "--quiet", "--input"]).arg(&built.1))?;
        }
        for (client, server) in &servers {
            let name = format!("{}/bench/app:{number}", server.address());
            match (*client, &docker) {
                ("docker", Some(docker)) => {
                    timed(&mut docker.command(&["tag", "app:latest", &name]))?;
                    timed(&mut docker.command(&["push", "--quiet", &name]))?;
                    timed(&mut docker.command(&["rmi", &name]))?;
                }
                ("podman", _) => {
                    timed(podman(storage.path(), &["load", "--quiet", "--input"]).arg(&built.1))?;
                    timed(&mut podman(storage.path(), &["push", "--quiet", "--tls-verify=false", "localhost/app:latest", &format!("docker://{name}")]))?;
                    timed(&mut podman(storage.path(), &["rmi", "--all", "--force"]))?;
                }
                _ => drop(timed(&mut skopeo(&["--dest-tls-verify=false"], &source, &format!("docker://{name}")))?),
            }
        }
        if let Some(docker) = &docker {
            timed(&mut docker.command(&["rmi", "--force", "app:latest"]))?;
        }
        remove(&built)?;
        eprintln!("  build {} of {} pushed", number + 1, bench.builds);
    }
    for (client, server) in &servers {
        measured.add(format!("{STORED}{client}"), server.kind(), 0, server.stored_bytes()? as f64 / 1e6);
    }
    Ok(())
}
