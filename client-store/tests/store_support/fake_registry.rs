//! A registry in memory that speaks the documented API, with faults on request.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use client_store::remote::{Registry, RegistryOptions};
use client_store::store::ObjectKind;
use futures::StreamExt;
use layer_format::Digest;
use layer_format::api::{DIGEST_HEADER, ManifestPut, Record, STREAM_MEDIA_TYPE, StatePut, Tags, decode_digests, encode_bitmap};
use layer_format::frame::Frame;
use layer_format::manifest::{ImageManifest, Manifest, StateManifest};

/// What goes wrong with the next request that it fits.
#[derive(Clone, Debug)]
pub enum Fault {
    /// `POST objects`: the connection breaks after so many bytes of an answer that is longer.
    Cut(usize),
    /// `POST objects`: a bit of an object or frame is flipped.
    Damage,
    /// Any: 503 with `retry-after`.
    Busy(u64),
    /// `PUT packs`: the connection breaks before the answer; nothing is stored.
    LosePack,
    /// `POST objects`: nothing comes for this long.
    Stall(Duration),
}

#[derive(Default)]
pub struct Inner {
    pub objects: HashMap<Digest, Vec<u8>>,
    /// Stored frames and their objects.
    pub frames: Vec<(Vec<u8>, Vec<Digest>)>,
    pub packs: HashSet<Digest>,
    pub manifests: HashMap<Digest, Vec<u8>>,
    pub tags: BTreeMap<String, Digest>,
    pub states: BTreeMap<Digest, Vec<u8>>,
    /// `METHOD path` of every request.
    pub log: Vec<String>,
    pub faults: VecDeque<Fault>,
    pub token: Option<String>,
}

#[derive(Clone, Default)]
pub struct FakeRegistry {
    pub inner: Arc<Mutex<Inner>>,
    pub url: String,
}

impl FakeRegistry {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self { inner: Arc::default(), url: format!("http://{}", listener.local_addr().unwrap()) };
        let app = axum::Router::new().fallback(handle).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        fake
    }

    pub fn registry(&self) -> Registry {
        self.registry_with(Duration::from_secs(5))
    }

    pub fn registry_with(&self, idle_timeout: Duration) -> Registry {
        Registry::new(&self.url, RegistryOptions { idle_timeout, ..RegistryOptions::default() }).unwrap()
    }

    pub fn fault(&self, fault: Fault) {
        self.inner.lock().unwrap().faults.push_back(fault);
    }

    /// Requests since the last call.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.lock().unwrap().log)
    }

    pub fn put(&self, name: &str, image: &super::TestImage) {
        let mut inner = self.inner.lock().unwrap();
        inner.add_pack(&layer_format::pack::build(&image.objects, Some(1)).unwrap().0).unwrap();
        inner.manifests.insert(image.digest, image.manifest.clone());
        inner.tags.insert(name.into(), image.digest);
        inner.tags.insert("head".into(), image.digest);
    }
}

impl Inner {
    fn add_pack(&mut self, bytes: &[u8]) -> Result<(), String> {
        let index = layer_format::pack::read_index(bytes).map_err(|error| error.to_string())?;
        let mut at = index.objects.iter();
        for place in &index.frames {
            let encoded = &bytes[place.offset as usize..][..place.len as usize];
            let frame = Frame::decode(encoded).map_err(|error| error.to_string())?;
            let mut names = Vec::new();
            for object in frame.objects() {
                let digest = Digest::of(object);
                if at.next().map(|named| named.digest) != Some(digest) {
                    return Err("an object does not match the index".into());
                }
                names.push(digest);
                self.objects.insert(digest, object.to_vec());
            }
            self.frames.push((encoded.to_vec(), names));
        }
        self.packs.insert(Digest::of(bytes));
        Ok(())
    }

    fn fault(&mut self, fits: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let at = self.faults.iter().position(fits)?;
        self.faults.remove(at)
    }

    fn resolve(&self, name: &str) -> Option<Digest> {
        match name.parse() {
            Ok(digest) => Some(digest).filter(|digest| self.manifests.contains_key(digest)),
            Err(_) => self.tags.get(name).copied(),
        }
    }

    /// What an image needs and is not here.
    fn lacking(&self, manifest: &[u8]) -> Vec<Digest> {
        self.lacking_of(ImageManifest::decode(manifest).unwrap().layers)
    }

    fn lacking_of(&self, layers: Vec<Digest>) -> Vec<Digest> {
        let mut stack: Vec<_> = layers.into_iter().map(|layer| (layer, ObjectKind::Layer)).collect();
        let mut lacking = Vec::new();
        while let Some((digest, kind)) = stack.pop() {
            match self.objects.get(&digest) {
                None => lacking.push(digest),
                Some(bytes) => stack.extend(client_store::store::references(&digest, kind, bytes).unwrap()),
            }
        }
        lacking
    }

    fn stream(&mut self, wanted: &[Digest], frames: bool) -> Vec<u8> {
        let mut damage = self.fault(|fault| matches!(fault, Fault::Damage)).is_some();
        let asked: HashSet<_> = wanted.iter().copied().collect();
        let mut sent = HashSet::new();
        let mut out = zstd::Encoder::new(Vec::new(), 1).unwrap();
        for digest in wanted {
            if !sent.insert(*digest) {
                continue;
            }
            let mut record = Vec::new();
            let frame = self.frames.iter().find(|(_, names)| frames && names.contains(digest) && names.iter().all(|name| asked.contains(name)));
            match (frame, self.objects.get(digest)) {
                (Some((encoded, names)), _) => {
                    sent.extend(names);
                    Record::Frame(encoded).encode(&mut record);
                }
                (None, Some(object)) => Record::Object(object).encode(&mut record),
                (None, None) => Record::Missing(*digest).encode(&mut record),
            }
            if std::mem::take(&mut damage) {
                *record.last_mut().unwrap() ^= 1;
            }
            out.write_all(&record).unwrap();
            out.flush().unwrap();
        }
        let mut end = Vec::new();
        Record::End(b"").encode(&mut end);
        out.write_all(&end).unwrap();
        out.finish().unwrap()
    }
}

fn error(status: StatusCode, code: &str, message: &str, detail: serde_json::Value) -> Response {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message, "detail": detail }] });
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

pub async fn handle(State(fake): State<FakeRegistry>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let what = path.split_once("/-/").map_or(path.clone(), |(_, what)| what.to_owned());
    {
        let mut inner = fake.inner.lock().unwrap();
        inner.log.push(format!("{} {what}", parts.method));
        let authorised = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if inner.token.as_ref().is_some_and(|token| authorised != Some(format!("Bearer {token}"))) {
            return error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "a valid token is needed", serde_json::Value::Null);
        }
        if let Some(Fault::Busy(seconds)) = inner.fault(|fault| matches!(fault, Fault::Busy(_))) {
            let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "BUSY", "try later", serde_json::Value::Null);
            response.headers_mut().insert("retry-after", seconds.into());
            return response;
        }
    }
    let Ok(body) = axum::body::to_bytes(body, 256 << 20).await else { return StatusCode::BAD_REQUEST.into_response() };
    let frames = parts.uri.query() == Some("frames=1");
    let (head, tail) = what.split_once('/').unwrap_or((&what, ""));
    match (parts.method.clone(), head) {
        (Method::POST, "missing") => {
            let inner = fake.inner.lock().unwrap();
            encode_bitmap(decode_digests(&body).unwrap().iter().map(|digest| !inner.objects.contains_key(digest))).into_response()
        }
        (Method::POST, "objects") => objects(&fake, &decode_digests(&body).unwrap(), frames).await,
        (Method::PUT, "packs") => put_pack(&fake, tail, &body),
        (Method::HEAD, "packs") => {
            let found = fake.inner.lock().unwrap().packs.contains(&tail.parse().unwrap());
            if found { StatusCode::OK } else { StatusCode::NOT_FOUND }.into_response()
        }
        (method, "manifests") => manifests(&fake, &method, tail, &body),
        (method, "states") => states(&fake, &method, tail, &body),
        (Method::GET, "tags") => {
            let tags = Tags { repository: "tools/app".into(), tags: fake.inner.lock().unwrap().tags.clone() };
            serde_json::to_vec(&tags).unwrap().into_response()
        }
        (Method::GET, "model") => error(StatusCode::NOT_FOUND, "MODEL_UNKNOWN", "none", serde_json::Value::Null),
        (Method::POST, "traces") => StatusCode::ACCEPTED.into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn objects(fake: &FakeRegistry, wanted: &[Digest], frames: bool) -> Response {
    let (answer, cut, stall) = {
        let mut inner = fake.inner.lock().unwrap();
        let stall = inner.fault(|fault| matches!(fault, Fault::Stall(_)));
        let answer = inner.stream(wanted, frames);
        let cut = inner.fault(|fault| matches!(fault, Fault::Cut(at) if *at < answer.len()));
        (answer, cut, stall)
    };
    if let Some(Fault::Stall(time)) = stall {
        tokio::time::sleep(time).await;
    }
    let head = [(header::CONTENT_TYPE, STREAM_MEDIA_TYPE)];
    match cut {
        Some(Fault::Cut(len)) => {
            let part = Bytes::copy_from_slice(&answer[..len]);
            // The server sends what it has before it notices the error.
            let pieces = futures::stream::iter([Some(part), None]).then(|piece| async {
                if piece.is_none() {
                    tokio::time::sleep(Duration::from_millis(60)).await;
                }
                piece.ok_or_else(|| std::io::Error::other("cut"))
            });
            (head, Body::from_stream(pieces)).into_response()
        }
        _ => (head, Body::from_stream(futures::stream::iter(answer.chunks(7000).map(Bytes::copy_from_slice).map(Ok::<_, Infallible>).collect::<Vec<_>>())))
            .into_response(),
    }
}

fn put_pack(fake: &FakeRegistry, name: &str, body: &Bytes) -> Response {
    let mut inner = fake.inner.lock().unwrap();
    if inner.fault(|fault| matches!(fault, Fault::LosePack)).is_some() {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let digest: Digest = name.parse().unwrap();
    if digest != Digest::of(body) {
        return error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the pack is another one", serde_json::Value::Null);
    }
    match inner.add_pack(body) {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(message) => error(StatusCode::BAD_REQUEST, "PACK_INVALID", &message, serde_json::Value::Null),
    }
}

fn states(fake: &FakeRegistry, method: &Method, name: &str, body: &Bytes) -> Response {
    let mut inner = fake.inner.lock().unwrap();
    if *method == Method::PUT {
        let lacking = inner.lacking_of(vec![StateManifest::decode(body).unwrap().sandbox]);
        if !lacking.is_empty() {
            return error(StatusCode::UNPROCESSABLE_ENTITY, "OBJECTS_MISSING", "objects are missing", serde_json::to_value(lacking).unwrap());
        }
        let digest = Digest::of(body);
        let existed = inner.states.insert(digest, body.to_vec()).is_some();
        return (StatusCode::CREATED, serde_json::to_vec(&StatePut { digest, existed }).unwrap()).into_response();
    }
    match inner.states.iter().find(|(digest, _)| digest.to_hex().starts_with(name)) {
        None => error(StatusCode::NOT_FOUND, "STATE_UNKNOWN", "no such state", serde_json::Value::Null),
        Some((digest, bytes)) => ([(DIGEST_HEADER, digest.to_string())], bytes.clone()).into_response(),
    }
}

fn manifests(fake: &FakeRegistry, method: &Method, name: &str, body: &Bytes) -> Response {
    let mut inner = fake.inner.lock().unwrap();
    if *method == Method::PUT {
        let lacking = inner.lacking(body);
        if !lacking.is_empty() {
            return error(StatusCode::UNPROCESSABLE_ENTITY, "OBJECTS_MISSING", "objects are missing", serde_json::to_value(lacking).unwrap());
        }
        let digest = Digest::of(body);
        let existed = inner.manifests.insert(digest, body.to_vec()).is_some();
        for name in [name, "head"] {
            if name.parse::<Digest>().is_err() {
                inner.tags.insert(name.into(), digest);
            }
        }
        return (StatusCode::CREATED, serde_json::to_vec(&ManifestPut { digest, existed }).unwrap()).into_response();
    }
    match inner.resolve(name) {
        None => error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "no such image", serde_json::Value::Null),
        Some(digest) if *method == Method::DELETE => {
            inner.tags.retain(|tag, at| tag != name && (name.parse::<Digest>().is_err() || *at != digest));
            StatusCode::ACCEPTED.into_response()
        }
        Some(digest) => ([(DIGEST_HEADER, digest.to_string())], inner.manifests[&digest].clone()).into_response(),
    }
}
