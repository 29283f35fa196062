//! TLS: the certificate and its key, read again when their files change, so that a renewal needs no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::ProducesTickets;
use tokio_rustls::rustls::{ServerConfig, crypto::aws_lc_rs};

use crate::config::TlsFiles;

/// How often the files are looked at, at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("could not read {what} from {path}: {reason}")]
    File {
        /// Certificates or key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Certificate and key cannot be used together.
    #[error("the certificate in {cert} and the key in {key} cannot be used: {reason}")]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What tells whether a file was changed or replaced.
type Stamp = Vec<Option<(SystemTime, u64)>>;

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// Of the files that were last tried.
    stamp: Stamp,
    looked: Instant,
}

/// The server's side of TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    /// Kept over a renewal, so that clients still resume.
    tickets: Arc<dyn ProducesTickets>,
    loaded: Mutex<Loaded>,
}

impl Tls {
    /// Reads certificate and key.
    pub(crate) fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let unusable = |reason: String| TlsError::Unusable { cert: files.cert.clone(), key: files.key.clone(), reason };
        let tickets = aws_lc_rs::Ticketer::new().map_err(|error| unusable(error.to_string()))?;
        let stamp = stamp(&files);
        let config = load(&files, &tickets)?;
        Ok(Self { files, tickets, loaded: Mutex::new(Loaded { config, stamp, looked: Instant::now() }) })
    }

    /// For the next connection. Reads the files again if they changed; as long as they cannot be used (one of the two was
    /// written and the other was not yet, say), what was read before goes on.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock();
        if loaded.looked.elapsed() >= LOOK_AGAIN {
            loaded.looked = Instant::now();
            if stamp(&self.files) != loaded.stamp {
                self.load_again(&mut loaded);
            }
        }
        Arc::clone(&loaded.config).into()
    }

    /// Reads the files again now, also where their times and lengths are as before.
    pub(crate) fn reload(&self) {
        self.load_again(&mut self.loaded.lock());
    }

    fn load_again(&self, loaded: &mut Loaded) {
        // Taken before reading: what is written meanwhile is seen next time.
        let stamp = stamp(&self.files);
        match load(&self.files, &self.tickets) {
            Ok(config) => {
                tracing::info!("the certificate was read again from {}", self.files.cert.display());
                loaded.config = config;
            }
            Err(error) => tracing::error!(error = crate::chain(&error), "the certificate was changed and cannot be used: serving the one before"),
        }
        loaded.stamp = stamp;
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    let of = |path: &Path| std::fs::metadata(path).and_then(|metadata| Ok((metadata.modified()?, metadata.len()))).ok();
    vec![of(&files.cert), of(&files.key)]
}

fn load(files: &TlsFiles, tickets: &Arc<dyn ProducesTickets>) -> Result<Arc<ServerConfig>, TlsError> {
    let file = |what, path: &Path, reason: String| TlsError::File { what, path: path.into(), reason };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.cert).and_then(Iterator::collect);
    let chain = chain.map_err(|error| file("certificates", &files.cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(file("certificates", &files.cert, "there is none in it".into()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| file("a private key", &files.key, error.to_string()))?;
    let unusable = |error: tokio_rustls::rustls::Error| TlsError::Unusable { cert: files.cert.clone(), key: files.key.clone(), reason: error.to_string() };
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider())).with_safe_default_protocol_versions().map_err(unusable)?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Arc::clone(tickets);
    Ok(Arc::new(config))
}
