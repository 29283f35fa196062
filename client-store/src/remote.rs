//! A registry over HTTP: `docs/http-api.md` from the client's side.
//!
//! One client, whose connections are used again. A call makes one request and never retries; [`retry`] does, for those
//! who want it. Nothing that arrives here is verified against a digest, except manifests: objects are verified by
//! whoever asked for them. No body takes more memory than its bound.

mod access;
mod deltas;
mod http;
mod lanes;
mod login;
mod models;
mod origin_impl;
pub mod retry;
mod states;
mod stream;
mod upload;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use bytes::Bytes;
use layer_format::Digest;
use layer_format::api::{
    BITMAP_MEDIA_TYPE, Capabilities, DIGEST_HEADER, DIGESTS_MEDIA_TYPE, IMAGE_MEDIA_TYPE, LinkHint, ManifestPut, Tags, decode_bitmap, encode_digests,
};
use layer_format::manifest::MAX_MANIFEST_LEN;
use layer_format::model::MAX_MODEL_LEN;
use layer_format::reference::{HEAD, ImageReference, Repository, Revision};
use reqwest::{Method, StatusCode};

use crate::origin::OriginError;
use access::Access;
pub use access::TokenSource;
use login::Login;
pub use login::Whoami;
pub use states::RemoteState;
pub use stream::StreamDecoder;
use wire::LinkMeter;
pub use wire::{recall_link, remember_link};

/// How a registry is reached.
#[derive(Clone)]
pub struct RegistryOptions {
    /// Sent as a bearer token, if there is one.
    pub token: Option<String>,
    /// Asked for another token when the registry does not accept one.
    pub renew_token: Option<TokenSource>,
    /// The secret of a login ([`Registry::log_in`]): tokens are got for it, in place of `token`.
    pub login: Option<String>,
    /// File of certificates, PEM, that are trusted besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// The link as earlier runs measured it.
    pub link: Option<LinkHint>,
    /// Connections beside that of a launch request that carry parts of its answer; by the link if `None`.
    pub lanes: Option<u8>,
    /// Launch in the form that caches between may keep, as long as nothing of the image is here.
    pub cached_launch: bool,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long nothing may arrive while an answer is due, or be taken while a body is sent.
    pub idle_timeout: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            token: None,
            renew_token: None,
            login: None,
            ca_file: None,
            link: None,
            lanes: None,
            cached_launch: false,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
        }
    }
}

impl std::fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("RegistryOptions").field("token", &token).field("ca_file", &self.ca_file).field("link", &self.link).finish_non_exhaustive()
    }
}

/// A registry. A cheap handle: clones share connections. Its methods need a Tokio runtime.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
    /// Bytes of answers that came through this handle.
    received: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Inner {
    /// Without a slash at the end.
    url: String,
    client: reqwest::Client,
    options: RegistryOptions,
    access: Access,
    login: Option<Login>,
    link: LinkMeter,
    /// Whether it runs on this machine.
    is_loopback: bool,
    /// Whether it said that it knows no deltas.
    no_deltas: AtomicBool,
}

/// An image manifest as the registry has it; its bytes match its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteImage {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Registry {
    /// A registry at `url`, such as `https://hub.example.org`. Connects when first used.
    ///
    /// # Errors
    /// [`OriginError::Network`] if the URL is not one, or the system's certificates cannot be read.
    pub fn new(url: &str, options: RegistryOptions) -> Result<Self, OriginError> {
        let fail = |reason: String| OriginError::Network { url: url.to_owned(), reason };
        let parsed = reqwest::Url::parse(url).map_err(|error| fail(format!("it is not a URL: {error}; expected one such as https://hub.example.org")))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
            return Err(fail("a registry's URL starts with http:// or https://".into()));
        }
        let is_loopback = match parsed.host_str().map(|host| host.trim_matches(['[', ']'])) {
            Some("localhost") => true,
            Some(host) => host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
            None => false,
        };
        let certificates = http::certificates(options.ca_file.as_deref()).map_err(fail)?;
        let client = http::client(&options, certificates).map_err(|error| fail(http::reason(&error)))?;
        let access = Access::new(options.token.clone(), options.renew_token.clone());
        let login = options.login.clone().map(Login::new);
        let url = url.trim_end_matches('/').to_owned();
        let no_deltas = AtomicBool::new(false);
        Ok(Self {
            inner: Arc::new(Inner { url, client, options, access, login, link: LinkMeter::default(), is_loopback, no_deltas }),
            received: Arc::default(),
        })
    }

    /// The same registry and connections, with a count of received bytes of its own.
    #[must_use]
    pub fn counted(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), received: Arc::default() }
    }

    /// The link as measured so far; `None` if too little came over it.
    pub fn measured_link(&self) -> Option<LinkHint> {
        self.inner.link.hint()
    }

    /// The URL.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// Which of these objects the registry lacks, as far as this repository's namespace may see: one request.
    ///
    /// # Errors
    /// [`OriginError`]; at most [`layer_format::api::MAX_DIGESTS`] digests are taken.
    pub async fn missing(&self, repository: &Repository, digests: &[Digest]) -> Result<Vec<bool>, OriginError> {
        let request = self.request(Method::POST, repository, "missing").header("content-type", DIGESTS_MEDIA_TYPE).header("accept", BITMAP_MEDIA_TYPE);
        let response = self.send(request.body(encode_digests(digests)), || repository.to_string()).await?;
        let body = self.body(response, digests.len().div_ceil(8)).await?;
        decode_bitmap(&body, digests.len()).map_err(|error| self.protocol(error.to_string()))
    }

    /// Whether the registry has this pack.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn pack_exists(&self, repository: &Repository, pack: &Digest) -> Result<bool, OriginError> {
        let request = self.request(Method::HEAD, repository, &format!("packs/{pack}"));
        found(self.send(request, || format!("pack {pack}")).await)
    }

    /// Stores an image manifest under a release or digest. The registry takes it only if all that it needs is there.
    ///
    /// # Errors
    /// [`OriginError::Refused`] with `OBJECTS_MISSING` if something is not there.
    pub async fn put_manifest(&self, image: &ImageReference, manifest: Bytes) -> Result<ManifestPut, OriginError> {
        let release = self.revision(image).await?;
        let request = self.request(Method::PUT, &image.repository, &format!("manifests/{release}")).header("content-type", IMAGE_MEDIA_TYPE);
        let response = self.send(request.body(manifest), || image.to_string()).await?;
        self.json(response).await
    }

    /// The manifest of an image. Its bytes match the digest that comes with it, and the one asked for.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] if there is no such image.
    pub async fn get_manifest(&self, image: &ImageReference) -> Result<RemoteImage, OriginError> {
        let release = self.revision(image).await?;
        let request = self.request(Method::GET, &image.repository, &format!("manifests/{release}")).header("accept", IMAGE_MEDIA_TYPE);
        let response = self.send(request, || image.to_string()).await?;
        let said = digest_header(&response);
        let bytes = self.body(response, MAX_MANIFEST_LEN).await?;
        let digest = Digest::of(&bytes);
        let asked = match &image.revision {
            Revision::Digest(asked) => Some(*asked),
            _ => None,
        };
        match said.into_iter().chain(asked).all(|wanted| wanted == digest) {
            true => Ok(RemoteImage { digest, bytes }),
            false => Err(self.protocol(format!("the manifest of {image} does not match its digest"))),
        }
    }

    /// The digest of an image: one small request.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] if there is no such image.
    pub async fn head(&self, image: &ImageReference) -> Result<Digest, OriginError> {
        let release = self.revision(image).await?;
        let request = self.request(Method::HEAD, &image.repository, &format!("manifests/{release}")).header("accept", IMAGE_MEDIA_TYPE);
        let response = self.send(request, || image.to_string()).await?;
        digest_header(&response).ok_or_else(|| self.protocol(format!("no header {DIGEST_HEADER}")))
    }

    /// Releases of a repository and the image each names.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] if there is no such repository.
    pub async fn tags(&self, repository: &Repository) -> Result<Tags, OriginError> {
        let response = self.send(self.request(Method::GET, repository, "tags"), || repository.to_string()).await?;
        self.json(response).await
    }

    /// The repository's model and its digest, or the model of that digest; `None` if there is none.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn get_model(&self, repository: &Repository, digest: Option<&Digest>) -> Result<Option<(Digest, Bytes)>, OriginError> {
        let path = digest.map_or_else(|| "model".to_owned(), |digest| format!("model?digest={digest}"));
        match self.send(self.request(Method::GET, repository, &path), || format!("model of {repository}")).await {
            Err(OriginError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(response) => {
                let bytes = self.body(response, MAX_MODEL_LEN).await?;
                let found = Digest::of(&bytes);
                match digest.is_none_or(|wanted| *wanted == found) {
                    true => Ok(Some((found, bytes))),
                    false => Err(self.protocol("the model does not match its digest".into())),
                }
            }
        }
    }

    /// Makes the registry forget what it learned about a repository.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn delete_model(&self, repository: &Repository) -> Result<(), OriginError> {
        self.send(self.request(Method::DELETE, repository, "model"), || format!("model of {repository}")).await.map(drop)
    }

    /// Deletes a release, or an image with all its releases.
    ///
    /// # Errors
    /// [`OriginError::NotFound`] if there is no such image.
    pub async fn delete(&self, image: &ImageReference) -> Result<(), OriginError> {
        let release = self.revision(image).await?;
        self.send(self.request(Method::DELETE, &image.repository, &format!("manifests/{release}")), || image.to_string()).await.map(drop)
    }

    /// What the registry can do.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn capabilities(&self) -> Result<Capabilities, OriginError> {
        let request = self.inner.client.get(format!("{}/v1/capabilities", self.inner.url));
        let response = self.send(request, || "its native API".to_owned()).await?;
        self.json(response).await
    }

    /// What stands for a revision in a path. A prefix is looked for among the releases.
    async fn revision(&self, image: &ImageReference) -> Result<String, OriginError> {
        match &image.revision {
            Revision::Head => Ok(HEAD.to_owned()),
            Revision::Release(release) => Ok(release.clone()),
            Revision::Digest(digest) => Ok(digest.to_string()),
            Revision::Prefix(prefix) => {
                let mut matches: Vec<_> = self.tags(&image.repository).await?.tags.into_values().filter(|digest| digest.to_hex().starts_with(prefix)).collect();
                matches.sort_unstable();
                matches.dedup();
                match matches.as_slice() {
                    [] => Err(OriginError::NotFound { what: image.to_string(), url: self.inner.url.clone() }),
                    [one] => Ok(one.to_string()),
                    many => {
                        let many: Vec<_> = many.iter().map(|digest| digest.short()).collect();
                        let message = format!("{image} could be any of {}: give more digits", many.join(", "));
                        Err(OriginError::Refused { status: 0, code: "AMBIGUOUS".into(), message })
                    }
                }
            }
        }
    }
}

fn digest_header(response: &reqwest::Response) -> Option<Digest> {
    response.headers().get(DIGEST_HEADER)?.to_str().ok()?.parse().ok()
}

fn found(answer: Result<reqwest::Response, OriginError>) -> Result<bool, OriginError> {
    match answer {
        Ok(response) => Ok(response.status() == StatusCode::OK),
        Err(OriginError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
