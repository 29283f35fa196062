//! Sockets: accepting connections, limits on them, and stopping without cutting anyone off.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::server::TlsStream;

use super::per_address::PerAddress;
use super::stall::StallGuard;
use super::traces::Peer;
use crate::app::{App, StartError};
use crate::config::{Config, Limits};

/// How an HTTP/2 connection begins: no other method has these letters.
const HTTP2_PREFACE: &[u8] = b"PRI ";
/// Streams of one HTTP/2 connection.
const MAX_HTTP2_STREAMS: u32 = 256;
/// Streams of one HTTP/2 connection that its client took back before they were looked at ("rapid reset"): then it is closed.
const MAX_HTTP2_RESETS: usize = 32;
/// Streams of one HTTP/2 connection that were ended since the client broke the protocol: then it is closed.
const MAX_HTTP2_ERRORS: usize = 64;
/// Headers of a request.
const MAX_HEADERS: usize = 100;
/// Most bytes of a request's head.
const MAX_HEAD_LEN: usize = 64 << 10;
/// Bytes that a connection buffers here: a head, or some pieces of an answer.
const MAX_BUFFER_LEN: usize = 128 << 10;
/// Bytes that a socket takes beyond those that are on their way: what a fast link sends until it is written to again.
const MAX_UNSENT: u32 = 128 << 10;

/// Opens the registry and serves on `listener` until `shutdown` is done; then lets requests in progress end.
///
/// # Errors
/// [`StartError`] if it cannot start; [`crate::ConfigError::Unprotected`] if others could reach it.
pub async fn serve(config: Config, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<(), StartError> {
    let address = listener.local_addr().map_err(StartError::Listen)?;
    config.check_listen(address)?;
    let app = App::open(config).await?;
    app.listens_on(address).await?;
    serve_app(app, listener, shutdown).await;
    Ok(())
}

/// Serves an [`App`] that is open, and closes it. [`App::listens_on`] comes before: without it credentials are asked for.
pub async fn serve_app(app: App, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    let limits = app.0.config.limits.clone();
    let router = super::router(app.clone());
    let connections = Arc::new(Semaphore::new(limits.max_connections));
    let addresses = Arc::new(PerAddress::new(limits.max_connections_per_address));
    let (stop, stopping) = watch::channel(());
    let told = app.clone();
    let mut shutdown = std::pin::pin!(async move {
        shutdown.await;
        // Whoever sends requests here sees `/readyz` before the socket closes.
        told.0.is_draining.store(true, Ordering::Relaxed);
        tokio::time::sleep(told.0.config.limits.shutdown_delay).await;
    });
    loop {
        let permit = tokio::select! {
            () = &mut shutdown => break,
            permit = connections.clone().acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Closed at once: one address must not take the places of all others.
                let Some(place) = addresses.enter(peer.ip()) else {
                    tracing::debug!(%peer, "too many connections from one address");
                    continue;
                };
                let router = router.clone().layer(axum::Extension(Peer(peer.ip())));
                let (app, stopping, limits) = (app.clone(), stopping.clone(), limits.clone());
                tokio::spawn(async move {
                    let (_permit, _place) = (permit, place);
                    connection(stream, app, router, stopping, limits).await;
                });
            }
            Err(error) => {
                // Out of file descriptors, say: wait until connections end.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    drop(stopping);
    let _ = stop.send(());
    tracing::info!("stopping: waiting for requests in progress");
    if tokio::time::timeout(limits.shutdown_grace, stop.closed()).await.is_err() {
        tracing::warn!("cut requests that did not end in time");
    }
    app.close().await;
}

/// Makes the socket send at once what is written, and take little before it can be sent: what waits here may still be
/// put in another order, or left out.
fn set_up(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(MAX_UNSENT);
}

async fn connection(stream: TcpStream, app: App, router: Router, mut stopping: watch::Receiver<()>, limits: Limits) {
    set_up(&stream);
    let begin = async {
        match &app.0.tls {
            None => {
                let http2 = is_http2(&stream).await?;
                Some(Begun { stream: Transport::Plain(StallGuard::new(stream, limits.write_stall_timeout)), http2 })
            }
            Some(tls) => {
                let accepting = tls.acceptor().accept(StallGuard::new(stream, limits.write_stall_timeout));
                let stream = accepting.await.inspect_err(|error| tracing::debug!(%error, "no TLS connection came about")).ok()?;
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                Some(Begun { stream: Transport::Tls(Box::new(stream)), http2 })
            }
        }
    };
    let begun = tokio::select! {
        _ = stopping.changed() => return,
        begun = tokio::time::timeout(limits.header_timeout, begin) => match begun {
            Ok(Some(begun)) => begun,
            _ => return,
        },
    };
    match begun.stream {
        Transport::Plain(stream) => serve_connection(stream, begun.http2, router, stopping, &limits).await,
        Transport::Tls(stream) => serve_connection(*stream, begun.http2, router, stopping, &limits).await,
    }
}

/// A connection whose protocol is known.
struct Begun {
    stream: Transport,
    http2: bool,
}

enum Transport {
    Plain(StallGuard<TcpStream>),
    Tls(Box<TlsStream<StallGuard<TcpStream>>>),
}

async fn serve_connection<S>(stream: S, http2: bool, router: Router, mut stopping: watch::Receiver<()>, limits: &Limits)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(MAX_BUFFER_LEN).max_headers(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.header_timeout)
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_pending_accept_reset_streams(MAX_HTTP2_RESETS)
        .max_local_error_reset_streams(MAX_HTTP2_ERRORS)
        .max_header_list_size(MAX_HEAD_LEN as u32)
        .max_send_buf_size(MAX_BUFFER_LEN)
        .adaptive_window(true);
    let builder = if http2 { builder.http2_only() } else { builder.http1_only() };
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Whether the client begins with HTTP/2; `None` if it leaves. Looks without taking.
async fn is_http2(stream: &TcpStream) -> Option<bool> {
    let mut first = [0; HTTP2_PREFACE.len()];
    loop {
        let len = stream.peek(&mut first).await.ok()?;
        if len == 0 {
            return None;
        }
        if first[..len] != HTTP2_PREFACE[..len] {
            return Some(false);
        }
        if len == first.len() {
            return Some(true);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
