//! A registry in process, a client of it, a relay that counts round trips, and certificates.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client_store::Origin;
use client_store::origin::{OriginError, Received};
use client_store::remote::{Registry, RegistryOptions};
use futures::StreamExt;
use layer_format::Digest;
use layer_format::api::LaunchRequest;
use layer_format::reference::ImageReference;
use layer_format::trace::{Event, Source, Touch, Trace};

use crate::common::{Remote, Sample, TestRegistry};

/// What a launch brought.
#[derive(Debug, Default)]
pub(crate) struct Launched {
    pub(crate) objects: BTreeSet<Digest>,
    pub(crate) image: Option<Digest>,
    pub(crate) is_whole: bool,
    pub(crate) error: Option<OriginError>,
}

pub(crate) fn request() -> LaunchRequest {
    LaunchRequest { architecture: "x86_64".into(), predict: true, budget_bytes: 1 << 30, ..LaunchRequest::default() }
}

pub(crate) async fn launch(registry: &Registry, reference: &str) -> Launched {
    let reference: ImageReference = reference.parse().unwrap();
    static ID: AtomicU64 = AtomicU64::new(1);
    let id = format!("{:032x}", ID.fetch_add(1, Ordering::SeqCst));
    let mut launched = Launched::default();
    let mut stream = match registry.launch(&reference, &id, request()).await {
        Ok(stream) => stream,
        Err(error) => return Launched { error: Some(error), ..launched },
    };
    while let Some(record) = stream.next().await {
        match record {
            Ok(Received::Object(bytes)) => drop(launched.objects.insert(Digest::of(&bytes))),
            Ok(Received::Image(bytes)) => launched.image = Some(Digest::of(&bytes)),
            Ok(Received::End(reason)) => launched.is_whole = reason.is_empty(),
            Ok(_) => {}
            Err(error) => launched.error = Some(error),
        }
    }
    launched
}

/// An application of some megabytes, all of which a launch touches, pushed with a model that knows so.
pub(crate) async fn publish(registry: &TestRegistry, remote: &Remote) -> Sample {
    let sample = Sample::generated(7, 40, 5 * 16384);
    remote.push("1", &sample).await;
    learn(registry, remote, &sample).await;
    sample
}

pub(crate) async fn learn(registry: &TestRegistry, remote: &Remote, sample: &Sample) {
    let paths: Vec<_> = sample.files.keys().cloned().collect();
    let touch = |(at, path): (usize, u32)| Event {
        time_us: at as u64 * 10,
        process: 0,
        layer: 0,
        path,
        touch: Touch::Data { bucket: at as u32 % 2 },
        source: Source::Missed,
    };
    let events = (0..paths.len() as u32).flat_map(|path| [path, path]).enumerate().map(touch).collect();
    let trace = Trace { image: sample.digest(), entry_point: "/bin/app".into(), architecture: "x86_64".into(), duration_us: 1_000_000, paths, events };
    let before = registry.metric("turbo_registry_traces_merged_total").await;
    let answer = remote.client.post(format!("{}/traces", remote.base)).body(trace.encode()).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 202);
    for _ in 0..1000 {
        if registry.metric("turbo_registry_traces_merged_total").await > before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the trace was not merged");
}

pub(crate) fn options() -> RegistryOptions {
    RegistryOptions { lanes: Some(0), ..RegistryOptions::default() }
}

/// A certificate for loopback by an authority of its own, in files.
pub(crate) struct Certificate {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificate {
    pub(crate) fn create(folder: &Path, name: &str) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issued = ca.self_signed(&ca_key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        let cert = params.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).unwrap();
        let file = |kind: &str, text: String| {
            let path = folder.join(format!("{name}.{kind}.pem"));
            std::fs::write(&path, text).unwrap();
            path
        };
        Self { ca: file("ca", issued.pem()), cert: file("cert", cert.pem()), key: file("key", key.serialize_pem()) }
    }
}

/// A relay on loopback that holds back what goes to the client, as distance does, and counts how often a connection's
/// client sends after it received: round trips that depend on each other.
pub(crate) struct Relay {
    pub(crate) address: String,
    pub(crate) connections: Arc<Mutex<Vec<Arc<Turns>>>>,
}

#[derive(Default)]
pub(crate) struct Turns {
    pub(crate) count: AtomicU64,
    has_received: AtomicBool,
    pub(crate) down_bytes: AtomicU64,
    /// What the client sent.
    pub(crate) sent: Mutex<Vec<u8>>,
    open: Mutex<Vec<TcpStream>>,
}

impl Turns {
    pub(crate) fn cut(&self) {
        self.open.lock().unwrap().drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

impl Relay {
    pub(crate) fn to(target: &str, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (all, target) = (Arc::clone(&connections), target.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&target) else { return };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let turns = Arc::new(Turns { has_received: AtomicBool::new(true), ..Turns::default() });
                turns.open.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                all.lock().unwrap().push(Arc::clone(&turns));
                let (up, down) = (Arc::clone(&turns), turns);
                let (client_in, server_out) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    pump(client_in, server_out, |bytes| {
                        up.sent.lock().unwrap().extend_from_slice(bytes);
                        if up.has_received.swap(false, Ordering::SeqCst) {
                            up.count.fetch_add(1, Ordering::SeqCst);
                        }
                    });
                });
                std::thread::spawn(move || {
                    pump(server, client, |bytes| {
                        std::thread::sleep(delay);
                        down.down_bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
                        down.has_received.store(true, Ordering::SeqCst);
                    });
                });
            }
        });
        Self { address, connections }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut pass: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(len) = from.read(&mut buffer) {
        if len == 0 {
            break;
        }
        pass(&buffer[..len]);
        if to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}
