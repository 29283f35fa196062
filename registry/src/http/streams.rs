//! Answers that are object streams: a task writes, the connection takes.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use layer_format::api::{LAUNCH_HEADER, STREAM_MEDIA_TYPE};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::error::ApiError;
use crate::app::Shared;
use crate::service::encode::Encoder;
use crate::service::launches::MAX_ID_LEN;
use crate::service::stream::{StreamError, StreamWriter};

/// A writer, and the answer that carries what it writes.
pub(crate) fn open(app: &Shared, encoder: Encoder) -> (StreamWriter, Response) {
    let (writer, receiver) = StreamWriter::new(encoder, app.config.limits.write_stall_timeout, Arc::clone(&app.metrics));
    (writer, response(receiver))
}

fn response(receiver: mpsc::Receiver<Bytes>) -> Response {
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(STREAM_MEDIA_TYPE));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Ends a stream, saying why if it did not come to its end.
pub(crate) async fn close(writer: StreamWriter, result: Result<(), StreamError>) {
    let text = match result {
        Ok(()) => "",
        Err(StreamError::Gone) => return,
        Err(error) => {
            tracing::error!(error = crate::chain(&error), "an object stream ended early");
            "the registry has a problem; its log says which"
        }
    };
    // A client that is gone by now needs no end.
    let _ = writer.finish(text).await;
}

/// The launch that a request names, if it names one.
pub(crate) fn launch_id(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(LAUNCH_HEADER) else { return Ok(None) };
    match value.to_str() {
        Ok(id) if (1..=MAX_ID_LEN).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => Ok(Some(id.to_owned())),
        _ => Err(ApiError::request_invalid("the header turbo-launch has 1 to 64 hex digits")),
    }
}
