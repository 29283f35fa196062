//! Single requests at ten connections, and two hundred pulls at once.

use anyhow::Result;

use super::load;
use super::oci::{Blob, OciClient, Way};
use super::server::Kind;
use super::{Bench, Measured};

/// Requests for a blob of 1 MiB, and for a manifest.
const BLOBS: usize = 2000;
const MANIFESTS: usize = 6000;
const CONNECTIONS: usize = 10;
/// Pulls at once, each of an image of so many layers of so many bytes.
const PULLS: usize = 200;
const LAYERS: u64 = 4;
const LAYER_LEN: usize = 3 << 20;

/// Names of figures.
pub(crate) const BLOB_RATE: &str = "1 MiB blob GET at 10 connections, requests/s";
pub(crate) const MANIFEST_RATE: &str = "manifest GET by tag at 10 connections, requests/s";
pub(crate) const PULL_RATE: &str = "200 concurrent pulls, MB/s";

/// Measures both registries in turn.
pub(crate) async fn measure(bench: &Bench, round: u32, measured: &mut Measured) -> Result<()> {
    for kind in Kind::turns(round) {
        let server = bench.start(kind)?;
        let client = OciClient::new(server.address())?;
        let blob = Blob::noise(1 + u64::from(round), 1 << 20);
        client.push_image("bench/one", "1", std::slice::from_ref(&blob), Way::Monolith).await?;
        let layers: Vec<Blob> = (0..LAYERS).map(|number| Blob::noise(100 + number, LAYER_LEN)).collect();
        client.push_image("bench/many", "1", &layers, Way::Monolith).await?;
        // Once unmeasured, that both have what they keep in memory.
        client.pull_image("bench/one", "1").await?;
        client.pull_image("bench/many", "1").await?;

        let path = format!("bench/one/blobs/{}", blob.digest);
        let load = load::run(server.address(), CONNECTIONS, BLOBS, move |client, _| {
            let path = path.clone();
            async move { client.get(&path).await }
        });
        measured.add(BLOB_RATE, kind, round, load.await?.rate());
        let load = load::run(server.address(), CONNECTIONS, MANIFESTS, |client, _| async move { client.get("bench/one/manifests/1").await });
        measured.add(MANIFEST_RATE, kind, round, load.await?.rate());
        let load = load::run(server.address(), PULLS, PULLS, |client, _| async move { client.pull_image("bench/many", "1").await }).await?;
        measured.add(PULL_RATE, kind, round, load.bytes as f64 / 1e6 / load.seconds);
    }
    Ok(())
}
