//! Objects compressed against others that one side has.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use layer_format::Digest;
use layer_format::api::{BITMAP_MEDIA_TYPE, MAX_WANTED_LEN, decode_bases, decode_wanted, encode_bitmap};

use super::body::PacedBody;
use super::error::ApiError;
use super::objects::{DEFAULT_LEVEL, namespace, readable};
use super::routes::Call;
use super::streams;
use crate::app::Shared;
use crate::service::deltas::send_like;
use crate::service::encode::Encoder;
use crate::service::stream::send_frames;

async fn body(app: &Shared, call: Call) -> Result<(Call, Vec<u8>), ApiError> {
    let (body, call) = (call.body, Call { body: axum::body::Body::empty(), ..call });
    let bytes = PacedBody::new(app, &call.headers, body, MAX_WANTED_LEN).collect().await?;
    Ok((call, bytes.to_vec()))
}

/// Which of these groups of objects delta frames of a pack may be compressed against. What is there stays for a lease from now.
#[utoipa::path(post, path = "/v1/repositories/{repository}/-/bases", request_body(content_type = "application/vnd.turbo.bases"), responses((status = 200, content_type = "application/vnd.turbo.bitmap")))]
pub(crate) async fn bases(app: &Shared, call: Call) -> Result<Response, ApiError> {
    let (call, bytes) = body(app, call).await?;
    let groups = decode_bases(&bytes)?;
    let answers = match namespace(app, &call.repository).await? {
        Some(namespace) => {
            // What a push is told to be there stays there for a while.
            app.leases.renew(&call.repository).await?;
            app.objects.promise(namespace, &groups.concat()).await?;
            app.objects.frames.are_bases(namespace, &groups).await?
        }
        None => vec![false; groups.len()],
    };
    let bitmap = encode_bitmap(answers);
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(BITMAP_MEDIA_TYPE))], bitmap).into_response())
}

/// Many objects as frames, compressed against what the client has.
#[utoipa::path(post, path = "/v1/repositories/{repository}/-/deltas", request_body(content_type = "application/vnd.turbo.wanted"), responses((status = 200, content_type = "application/vnd.turbo.stream+zstd")))]
pub(crate) async fn stream(app: &Shared, call: Call) -> Result<Response, ApiError> {
    let (call, bytes) = body(app, call).await?;
    let (digests, groups) = decode_wanted(&bytes)?;
    // After the body, so that a slow one holds nothing.
    let permit = app.streams.clone().try_acquire_owned().map_err(|_| ApiError::busy("streams"))?;
    let namespace = namespace(app, &call.repository).await?;
    // Bases, too: how well something compresses against an object tells about it.
    let named: Vec<Digest> = digests.iter().chain(groups.iter().flat_map(|group| &group.bases)).copied().collect();
    let objects = readable(app, &call.visit, &call.repository, &named).await?;
    let level = app.config.compression_level.unwrap_or(DEFAULT_LEVEL);
    let (mut writer, response) = streams::open(app, Encoder::stored(), None);
    tokio::spawn(async move {
        let _permit = permit;
        let result = match namespace {
            Some(namespace) => send_like(&mut writer, &objects, namespace, &digests, groups, level).await,
            None => send_frames(&mut writer, &objects, None, &digests, level).await,
        };
        streams::close(writer, result).await;
    });
    Ok(response)
}
