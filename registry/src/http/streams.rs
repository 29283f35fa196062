//! Answers that are object streams: a task writes, one connection takes, or several.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use layer_format::api::{LANES_MEDIA_TYPE, LAUNCH_HEADER, PieceHeader, STREAM_MEDIA_TYPE};
use tokio::sync::OwnedSemaphorePermit;

use super::error::ApiError;
use crate::app::Shared;
use crate::service::encode::{Encoder, Window};
use crate::service::launches::{Demand, Launch, MAX_ID_LEN};
use crate::service::level::LevelControl;
use crate::service::outlet::{Cut, Outlet, Piece, Taker};
use crate::service::stream::{StreamError, StreamWriter};

/// Launches for each core up to which their answers get long windows.
const LONG_WINDOWS_PER_CORE: f64 = 4.0;

/// A writer of an answer at one level, and the answer that carries what it writes. `demand` is over when all is taken.
pub(crate) fn open(app: &Shared, encoder: Encoder, demand: Option<Demand>) -> (StreamWriter, Response) {
    let outlet = Outlet::new(None, Arc::clone(&app.metrics));
    let response = whole(outlet.taker(false, demand));
    (writer(app, encoder, Window::Usual, LevelControl::fixed(0), outlet), response)
}

/// The way out of a launch's answer, and a writer into it whose level follows the link.
pub(crate) fn open_launch(app: &Shared, launch: &Arc<Launch>, level: LevelControl) -> std::io::Result<(StreamWriter, Arc<Outlet>)> {
    // Long windows take memory: not for a crowd.
    let window = if app.launches.per_core() <= LONG_WINDOWS_PER_CORE { Window::Long } else { Window::Usual };
    let encoder = Encoder::zstd(level.level(), window)?;
    let outlet = Outlet::new(Some(Arc::clone(launch)), Arc::clone(&app.metrics));
    Ok((writer(app, encoder, window, level, Arc::clone(&outlet)), outlet))
}

fn writer(app: &Shared, encoder: Encoder, window: Window, level: LevelControl, outlet: Arc<Outlet>) -> StreamWriter {
    StreamWriter::new(encoder, window, level, outlet, app.config.limits.write_stall_timeout, Arc::clone(&app.metrics))
}

/// An answer that carries the whole stream.
pub(crate) fn whole(taker: Taker) -> Response {
    response(taker, STREAM_MEDIA_TYPE, |piece| piece.bytes, None)
}

/// An answer that carries the pieces of a stream that come its way. `permit` is held while it does.
pub(crate) fn lane(taker: Taker, permit: Option<OwnedSemaphorePermit>) -> Response {
    let numbered = |piece: Piece| {
        let mut bytes = BytesMut::with_capacity(PieceHeader::LEN + piece.bytes.len());
        bytes.put_slice(&PieceHeader { number: piece.number, len: piece.bytes.len() as u32 }.encode());
        bytes.put_slice(&piece.bytes);
        bytes.freeze()
    };
    response(taker, LANES_MEDIA_TYPE, numbered, permit)
}

fn response(taker: Taker, media_type: &'static str, form: fn(Piece) -> Bytes, permit: Option<OwnedSemaphorePermit>) -> Response {
    // After a cut the connection breaks: no cache takes what was there for all of it.
    let pieces = stream::unfold(Some((taker, permit)), move |state| async move {
        let (mut taker, permit) = state?;
        match taker.next().await? {
            Ok(piece) => Some((Ok::<_, Cut>(form(piece)), Some((taker, permit)))),
            Err(cut) => Some((Err(cut), None)),
        }
    });
    let mut response = Response::new(Body::from_stream(pieces));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Ends a stream, saying why if it did not come to its end.
pub(crate) async fn close(writer: StreamWriter, result: Result<(), StreamError>) {
    let text = match result {
        Ok(()) => "",
        Err(StreamError::Gone) => return,
        Err(error) => {
            report(&error);
            "the registry has a problem; its log says which"
        }
    };
    // A client that is gone by now needs no end.
    let _ = writer.finish(text).await;
}

/// The same for an answer that may be kept by caches: one that did not come to its end is cut.
pub(crate) async fn close_or_cut(writer: StreamWriter, result: Result<(), StreamError>) {
    match result {
        Ok(()) => drop(writer.finish("").await),
        Err(StreamError::Gone) => {}
        Err(error) => report(&error),
    }
}

fn report(error: &StreamError) {
    tracing::error!(error = crate::chain(error), "an object stream ended early");
}

/// The launch that a request names, if it names one.
pub(crate) fn launch_id(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(LAUNCH_HEADER) else { return Ok(None) };
    match value.to_str() {
        Ok(id) if is_launch_id(id) => Ok(Some(id.to_owned())),
        _ => Err(ApiError::request_invalid("the header turbo-launch has 1 to 64 hex digits")),
    }
}

/// Whether the text can be a launch's id.
pub(crate) fn is_launch_id(id: &str) -> bool {
    (1..=MAX_ID_LEN).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}
