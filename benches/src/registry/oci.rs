//! As much of an OCI client as measurements need: pushes in the two ways, pulls, and single requests. Each client has connections
//! of its own, as different machines have.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A blob and its digest, computed once.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) bytes: Bytes,
    pub(crate) digest: String,
}

impl Blob {
    /// Takes its digest.
    pub(crate) fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { bytes, digest: format!("sha256:{hex}") }
    }

    /// Noise of this length, that no compressor makes smaller.
    pub(crate) fn noise(seed: u64, len: usize) -> Self {
        // xorshift64*: G. Marsaglia, "Xorshift RNGs", 2003.
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        bytes.truncate(len);
        Self::new(bytes)
    }
}

/// How blobs are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// POST, PUT with all bytes.
    Monolith,
    /// POST, PATCH with all bytes, PUT.
    Chunk,
}

/// A client of one registry.
#[derive(Debug, Clone)]
pub(crate) struct OciClient {
    http: Client,
    base: String,
}

/// What an answer's body took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taken {
    /// Until the first byte.
    pub(crate) first_byte: Duration,
    /// Of all bodies.
    pub(crate) bytes: u64,
}

impl OciClient {
    /// One with connections of its own.
    pub(crate) fn new(address: &str) -> Result<Self> {
        let http = Client::builder().timeout(TIMEOUT).http1_only().no_proxy().build().context("cannot make a client")?;
        Ok(Self { http, base: format!("http://{address}") })
    }

    /// Gets a path below `/v2/`, reads all of it and drops it.
    pub(crate) async fn get(&self, path: &str) -> Result<Taken> {
        let start = Instant::now();
        let mut answer = self.http.get(format!("{}/v2/{path}", self.base)).header("accept", MANIFEST).send().await.context("no answer")?;
        let first_byte = start.elapsed();
        ensure!(answer.status() == StatusCode::OK, "GET {path}: {}", answer.status());
        let mut bytes = 0;
        while let Some(piece) = answer.chunk().await.context("an answer was cut")? {
            bytes += piece.len() as u64;
        }
        Ok(Taken { first_byte, bytes })
    }

    /// Uploads a blob.
    pub(crate) async fn push_blob(&self, repository: &str, blob: &Blob, way: Way) -> Result<()> {
        let begun = self.http.post(format!("{}/v2/{repository}/blobs/uploads/", self.base)).body("").send().await.context("no answer")?;
        expect(&begun, StatusCode::ACCEPTED)?;
        let mut place = self.location(&begun)?;
        let mut body = blob.bytes.clone();
        if way == Way::Chunk {
            let sent = self.http.patch(&place).header("content-type", "application/octet-stream").body(std::mem::take(&mut body)).send().await;
            let sent = sent.context("no answer")?;
            expect(&sent, StatusCode::ACCEPTED)?;
            place = self.location(&sent)?;
        }
        let sign = if place.contains('?') { '&' } else { '?' };
        let url = format!("{place}{sign}digest={}", blob.digest);
        let done = self.http.put(url).header("content-type", "application/octet-stream").body(body).send().await.context("no answer")?;
        expect(&done, StatusCode::CREATED)
    }

    /// Puts a manifest.
    pub(crate) async fn push_manifest(&self, repository: &str, tag: &str, manifest: &[u8]) -> Result<()> {
        let put = self.http.put(format!("{}/v2/{repository}/manifests/{tag}", self.base)).header("content-type", MANIFEST);
        expect(&put.body(manifest.to_vec()).send().await.context("no answer")?, StatusCode::CREATED)
    }

    /// Pushes an image of these layers under a tag: layers, configuration, manifest.
    pub(crate) async fn push_image(&self, repository: &str, tag: &str, layers: &[Blob], way: Way) -> Result<()> {
        for layer in layers {
            self.push_blob(repository, layer, way).await?;
        }
        let config = Blob::new(serde_json::to_vec(&json!({
            "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": [] }, "author": format!("{repository}:{tag}"),
        }))?);
        self.push_blob(repository, &config, way).await?;
        let described = |media: &str, blob: &Blob| json!({ "mediaType": media, "digest": blob.digest, "size": blob.bytes.len() });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": described("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| described("application/vnd.oci.image.layer.v1.tar", layer)).collect::<Vec<Value>>(),
        });
        self.push_manifest(repository, tag, &serde_json::to_vec(&manifest)?).await
    }

    /// Pulls all that a tag leads to.
    pub(crate) async fn pull_image(&self, repository: &str, tag: &str) -> Result<Taken> {
        let start = Instant::now();
        let answer = self.http.get(format!("{}/v2/{repository}/manifests/{tag}", self.base)).header("accept", MANIFEST).send().await.context("no answer")?;
        let first_byte = start.elapsed();
        expect(&answer, StatusCode::OK)?;
        let manifest = answer.bytes().await.context("an answer was cut")?;
        let parsed: Value = serde_json::from_slice(&manifest).context("a manifest is no JSON")?;
        let mut taken = Taken { first_byte, bytes: manifest.len() as u64 };
        for blob in parsed["layers"].as_array().into_iter().flatten().chain([&parsed["config"]]) {
            let digest = blob["digest"].as_str().context("a manifest without digests")?;
            taken.bytes += self.get(&format!("{repository}/blobs/{digest}")).await?.bytes;
        }
        Ok(taken)
    }

    fn location(&self, answer: &Response) -> Result<String> {
        let place = answer.headers().get("location").and_then(|value| value.to_str().ok()).context("an upload without a place")?;
        Ok(if place.starts_with('/') { format!("{}{place}", self.base) } else { place.to_owned() })
    }
}

fn expect(answer: &Response, status: StatusCode) -> Result<()> {
    ensure!(answer.status() == status, "{} answered {}, not {status}", answer.url().path(), answer.status());
    Ok(())
}
