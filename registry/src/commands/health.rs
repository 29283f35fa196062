//! `turbo-registry health`: asks the server of this machine, or of this container, whether it is ready. An image without a shell
//! has nothing else to ask with.
//!
//! It connects to where the same configuration makes the server listen. With TLS the certificate must be the one in the server's
//! own file, byte for byte: its names are those that clients use, not the loopback address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use registry::Options;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

/// Most bytes of an answer that are read.
const MAX_ANSWER_LEN: u64 = 16 << 10;

/// What to ask, and whom.
#[derive(Debug, clap::Args)]
pub(crate) struct Health {
    /// The server's configuration file
    #[arg(long, env = "TURBO_REGISTRY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask only whether it is alive, not whether it can serve: a server that stops, or whose storage is away, is alive
    #[arg(long)]
    live: bool,
    /// How long to wait
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    #[command(flatten)]
    options: Options,
}

impl Health {
    /// Asks, and prints what the server answers.
    ///
    /// # Errors
    /// If it does not answer in time, or not with 200.
    pub(crate) fn run(self) -> Result<()> {
        let options = match &self.config {
            Some(path) => self.options.or(Options::from_file(path)?),
            None => self.options,
        };
        let address = reachable(options.listen())?;
        let path = if self.live { "/healthz" } else { "/readyz" };
        let asking = ask(address, path, options.tls_cert.as_deref());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("could not start")?;
        let answer = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(self.timeout), asking).await });
        let answer = answer.with_context(|| format!("{address} did not answer within {} s", self.timeout))??;
        let (status, body) = parse(&answer)?;
        ensure!(status == 200, "{address}{path} answered {status}: {}", body.trim());
        println!("{}", body.trim());
        Ok(())
    }
}

/// Where a server that listens on this can be reached from the same machine.
fn reachable(listen: &str) -> Result<SocketAddr> {
    // A name is looked up as the server does.
    let mut found = std::net::ToSocketAddrs::to_socket_addrs(listen).with_context(|| format!("could not look up {listen}"))?;
    let mut address = found.next().with_context(|| format!("{listen} has no address"))?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    ensure!(address.port() != 0, "the server picks its port (--listen {listen}): say which it got with --listen");
    Ok(address)
}

async fn ask(address: SocketAddr, path: &str, certificate: Option<&Path>) -> Result<Vec<u8>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("no server on {address}"))?;
    match certificate {
        None => exchange(stream, path).await,
        Some(file) => {
            let connector = TlsConnector::from(Arc::new(client(file)?));
            let name = ServerName::IpAddress(address.ip().into());
            let stream = connector.connect(name, stream).await.with_context(|| format!("no TLS with {address}"))?;
            exchange(stream, path).await
        }
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> Result<Vec<u8>> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("could not ask")?;
    stream.flush().await.context("could not ask")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_LEN).read_to_end(&mut answer).await.context("could not read the answer")?;
    Ok(answer)
}

/// Status and body.
fn parse(answer: &[u8]) -> Result<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("the answer is not HTTP") };
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    Ok((status.context("the answer is not HTTP/1.1")?, body.to_owned()))
}

fn client(file: &Path) -> Result<ClientConfig> {
    let certificate = CertificateDer::from_pem_file(file).with_context(|| format!("could not read the certificate {}", file.display()))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().context("no TLS")?;
    let verifier = Arc::new(OwnCertificate { certificate, provider });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Trusts the one certificate that the server was told to use.
#[derive(Debug)]
struct OwnCertificate {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OwnCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match end_entity.as_ref() == self.certificate.as_ref() {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General("the server shows another certificate than the one in its file".into())),
        }
    }

    fn verify_tls12_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(&self, message: &[u8], cert: &CertificateDer<'_>, dss: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_server_can_be_reached() {
        for (listen, address) in
            [("0.0.0.0:5000", "127.0.0.1:5000"), ("[::]:443", "[::1]:443"), ("127.0.0.2:1", "127.0.0.2:1"), ("192.0.2.1:80", "192.0.2.1:80")]
        {
            assert_eq!(reachable(listen).unwrap(), address.parse().unwrap());
        }
        assert!(reachable("127.0.0.1:0").is_err());
        assert!(reachable("nonsense").is_err());
    }

    #[test]
    fn answers_are_read_with_care() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\na: b\r\n\r\nok\n").unwrap(), (200, "ok\n".to_owned()));
        assert_eq!(parse(b"HTTP/1.1 503 \r\n\r\n").unwrap().0, 503);
        for hostile in [&b""[..], b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 \xff\xff\xff\r\n\r\n", b"HTTP/1.1 200"] {
            assert!(parse(hostile).is_err());
        }
    }
}
