//! The tests of zot's `zb`, by name, with its columns. The names and what each does are those of `cmd/zb/perf.go` of
//! project-zot/zot: there are sixteen. As there, a push is a blob, a configuration and a manifest in a repository of its own, the
//! blobs are zeros after a page of noise, and a mixed test draws sizes with the probabilities in its name.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;

use super::load::{self, Load};
use super::oci::{Blob, OciClient, Taken, Way};
use super::server::{Kind, Server};
use super::{Bench, Measured};

const MIB: usize = 1 << 20;
/// zb's `-c`.
const CLIENTS: usize = 4;

/// What a test does.
#[derive(Debug, Clone, Copy)]
enum Does {
    Catalog,
    Push(Way),
    Pull,
    /// Three pulls to a push.
    Both,
}

/// A test: sizes in MiB with the probability of each.
struct Test {
    name: &'static str,
    does: Does,
    sizes: &'static [(usize, f64)],
    /// zb's `-n`: fewer where blobs are large, so that all tests take about as long.
    requests: usize,
}

const MIXED: &[(usize, f64)] = &[(1, 0.2), (10, 0.7), (100, 0.1)];
const THIRDS: &[(usize, f64)] = &[(1, 0.33), (10, 0.33), (100, 0.34)];

const TESTS: [Test; 16] = [
    Test { name: "Get Catalog", does: Does::Catalog, sizes: &[(1, 1.0)], requests: 400 },
    Test { name: "Push Monolith 1MB", does: Does::Push(Way::Monolith), sizes: &[(1, 1.0)], requests: 100 },
    Test { name: "Push Monolith 10MB", does: Does::Push(Way::Monolith), sizes: &[(10, 1.0)], requests: 40 },
    Test { name: "Push Monolith 100MB", does: Does::Push(Way::Monolith), sizes: &[(100, 1.0)], requests: 8 },
    Test { name: "Push Chunk Streamed 1MB", does: Does::Push(Way::Chunk), sizes: &[(1, 1.0)], requests: 100 },
    Test { name: "Push Chunk Streamed 10MB", does: Does::Push(Way::Chunk), sizes: &[(10, 1.0)], requests: 40 },
    Test { name: "Push Chunk Streamed 100MB", does: Does::Push(Way::Chunk), sizes: &[(100, 1.0)], requests: 8 },
    Test { name: "Pull 1MB", does: Does::Pull, sizes: &[(1, 1.0)], requests: 400 },
    Test { name: "Pull 10MB", does: Does::Pull, sizes: &[(10, 1.0)], requests: 100 },
    Test { name: "Pull 100MB", does: Does::Pull, sizes: &[(100, 1.0)], requests: 16 },
    Test { name: "Pull Mixed 20% 1MB, 70% 10MB, 10% 100MB", does: Does::Pull, sizes: MIXED, requests: 60 },
    Test { name: "Push Monolith Mixed 20% 1MB, 70% 10MB, 10% 100MB", does: Does::Push(Way::Monolith), sizes: MIXED, requests: 40 },
    Test { name: "Push Chunk Mixed 33% 1MB, 33% 10MB, 33% 100MB", does: Does::Push(Way::Chunk), sizes: THIRDS, requests: 24 },
    Test { name: "Pull 75% and Push 25% Mixed 1MB", does: Does::Both, sizes: &[(1, 1.0)], requests: 200 },
    Test { name: "Pull 75% and Push 25% Mixed 10MB", does: Does::Both, sizes: &[(10, 1.0)], requests: 60 },
    Test { name: "Pull 75% and Push 25% Mixed 100MB", does: Does::Both, sizes: &[(100, 1.0)], requests: 12 },
];

/// What one test showed of one registry.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) test: &'static str,
    pub(crate) kind: Kind,
    pub(crate) load: Load,
}

/// Blobs by their size in MiB.
type Blobs = Arc<Vec<(usize, Blob)>>;

/// Runs all tests on both registries, in turn.
pub(crate) async fn measure(bench: &Bench, measured: &mut Measured) -> Result<()> {
    let blobs: Blobs = Arc::new([1, 10, 100].map(zeros_after_noise).to_vec());
    let servers = [bench.start(Kind::Turbo)?, bench.start(Kind::DockerRegistry)?];
    for (number, test) in TESTS.iter().enumerate() {
        for server in if number.is_multiple_of(2) { [&servers[0], &servers[1]] } else { [&servers[1], &servers[0]] } {
            let load = run(test, number, server, &blobs).await.with_context(|| format!("{} failed at `{}`", server.kind().name(), test.name))?;
            eprintln!("  {}, {}: {:.1} requests/s", test.name, server.kind().name(), load.rate());
            measured.zb.push(Row { test: test.name, kind: server.kind(), load });
        }
    }
    Ok(())
}

fn zeros_after_noise(mib: usize) -> (usize, Blob) {
    let mut bytes = Blob::noise(mib as u64, 4096).bytes.to_vec();
    bytes.resize(mib * MIB, 0);
    (mib, Blob::new(bytes))
}

async fn run(test: &Test, number: usize, server: &Server, blobs: &Blobs) -> Result<Load> {
    let (does, sizes, blobs) = (test.does, test.sizes, Arc::clone(blobs));
    let pulled = format!("zb/test{number}/pulled");
    let client = OciClient::new(server.address())?;
    match does {
        // So that there is a catalogue.
        Does::Catalog => {
            for repository in 0..100 {
                client.push_image(&format!("zb/catalog{repository}"), "1", &[], Way::Monolith).await?;
            }
        }
        Does::Pull | Does::Both => {
            for (mib, _) in sizes {
                client.push_image(&pulled, &format!("tag{mib}"), &[find(&blobs, *mib)?], Way::Monolith).await?;
            }
        }
        Does::Push(_) => {}
    }
    load::run(server.address(), CLIENTS, test.requests, move |client, request| {
        let (blobs, pulled) = (Arc::clone(&blobs), pulled.clone());
        async move {
            let mib = draw(sizes, request);
            let push = async |way| {
                let repository = format!("zb/test{number}/pushed{request}");
                client.push_image(&repository, "1", &[find(&blobs, mib)?], way).await?;
                Ok(Taken::default())
            };
            match does {
                Does::Catalog => client.get("_catalog").await,
                Does::Push(way) => push(way).await,
                Does::Both if request % 4 == 3 => push(Way::Monolith).await,
                Does::Pull | Does::Both => client.pull_image(&pulled, &format!("tag{mib}")).await,
            }
        }
    })
    .await
}

fn find(blobs: &[(usize, Blob)], mib: usize) -> Result<Blob> {
    blobs.iter().find(|(size, _)| *size == mib).map(|(_, blob)| blob.clone()).context("a size without a blob")
}

/// The size for a request: the same for both registries, in the proportions that the test names.
fn draw(sizes: &[(usize, f64)], request: usize) -> usize {
    // The golden ratio's multiples are spread evenly over the unit interval, also the first few of them.
    let toss = (request as f64 * 0.618_033_988_749_894_9).fract();
    let mut sum = 0.0;
    for (mib, share) in sizes {
        sum += share;
        if toss < sum {
            return *mib;
        }
    }
    sizes.last().map_or(1, |(mib, _)| *mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_drawn_as_named() {
        let count = |mib| (0..1000).filter(|request| draw(MIXED, *request) == mib).count();
        assert!((190..=210).contains(&count(1)) && (690..=710).contains(&count(10)) && (90..=110).contains(&count(100)));
        assert!((0..100).all(|request| draw(&[(10, 1.0)], request) == 10));
        for test in &TESTS {
            assert!((test.sizes.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-9, "{}", test.name);
        }
    }
}
