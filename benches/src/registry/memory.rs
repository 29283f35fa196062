//! What the registries take of memory: idle, and while 200 clients upload 100 MB each.

use std::time::Duration;

use anyhow::Result;

use super::load;
use super::oci::{Blob, Taken, Way};
use super::server::Kind;
use super::{Bench, Measured};

const UPLOADS: usize = 200;
const UPLOAD_LEN: usize = 100_000_000;
/// How long a server has to come to rest after its start.
const REST: Duration = Duration::from_secs(2);

/// Names of figures.
pub(crate) const IDLE: &str = "memory, idle, MB";
pub(crate) const UPLOADING: &str = "most memory with 200 concurrent uploads of 100 MB, MB";

/// Measures this registry; the other for the idle figure alone: it would keep 20 GB of uploads on disk at once.
pub(crate) async fn measure(bench: &Bench, round: u32, measured: &mut Measured) -> Result<()> {
    for kind in Kind::turns(round) {
        let server = bench.start(kind)?;
        tokio::time::sleep(REST).await;
        measured.add(IDLE, kind, round, server.memory_bytes()?.0 as f64 / 1e6);
        // The same bytes by all: what is to be seen is the server's memory, and not the disk's patience. The repositories differ.
        if kind == Kind::Turbo && round == 0 {
            let blob = Blob::noise(7, UPLOAD_LEN);
            let load = load::run(server.address(), UPLOADS, UPLOADS, move |client, number| {
                let blob = blob.clone();
                async move {
                    client.push_blob(&format!("bench/upload{number}"), &blob, Way::Monolith).await?;
                    Ok(Taken::default())
                }
            });
            let load = load.await?;
            measured.add("200 concurrent uploads of 100 MB, MB/s", kind, round, (UPLOADS * UPLOAD_LEN) as f64 / 1e6 / load.seconds);
            measured.add(UPLOADING, kind, round, server.memory_bytes()?.1 as f64 / 1e6);
        }
    }
    Ok(())
}
