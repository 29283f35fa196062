//! Bodies of the registry's native HTTP API; `docs/http-api.md` has the routes.
//!
//! Small, structured things are JSON. Lists of digests and answers with bytes are binary: a list of digests is
//! `u32 count | count x 32 bytes`; a bitmap has one bit a digest, lowest bit first.
//!
//! # The object stream
//! The answer to *give me these chunks* and to *launch*: media type [`STREAM_MEDIA_TYPE`], one zstd stream whose window
//! spans the whole answer and which is flushed after each record that someone may wait for. Decompressed it is a
//! sequence of [`Record`]s, each `u8 kind | u32 length | payload`, ended by [`Record::End`]: an answer that stops before
//! was cut. Objects are not labelled: the receiver hashes each, and its digest is its name. So a damaged object is
//! simply not one of those that were asked for. The compressed bytes may be several zstd frames, one after the other.
//!
//! # Lanes
//! The answer to a launch can be spread over several connections, since each of them begins slowly: the launch request
//! says how many [`LaunchRequest::lanes`] the client opens beside it (`GET …/lanes/{id}`). Then each of the answers has
//! the media type [`LANES_MEDIA_TYPE`] and is a sequence of pieces, each `u32 number | u32 length | bytes`
//! ([`PieceHeader`]); the bytes of all pieces in the order of their numbers, from 0, are the object stream. On one
//! connection numbers only grow.

mod delta;

use serde::{Deserialize, Serialize};

pub use delta::{BASES_MEDIA_TYPE, MAX_WANTED_LEN, WANTED_MEDIA_TYPE, WantedGroup, decode_bases, decode_wanted, encode_bases, encode_wanted};

use crate::chunk::MAX_OBJECT_LEN;
use crate::codec::FormatError;
use crate::digest::Digest;
use crate::frame::MAX_ENCODED_LEN;
use crate::manifest::MAX_MANIFEST_LEN;
use crate::model::MAX_MODEL_LEN;

/// Most digests in one request.
pub const MAX_DIGESTS: usize = 1 << 16;
/// Media type of a list of digests.
pub const DIGESTS_MEDIA_TYPE: &str = "application/vnd.turbo.digests";
/// Media type of a bitmap.
pub const BITMAP_MEDIA_TYPE: &str = "application/vnd.turbo.bitmap";
/// Media type of an object stream.
pub const STREAM_MEDIA_TYPE: &str = "application/vnd.turbo.stream+zstd";
/// Media type of a part of an object stream that is spread over several connections.
pub const LANES_MEDIA_TYPE: &str = "application/vnd.turbo.lanes";
/// Most lanes beside the answer to the launch request itself.
pub const MAX_LANES: u8 = 7;
/// Fewest hex digits of a launch's id that lanes may name: 128 bits cannot be guessed.
pub const MIN_LANES_ID_LEN: usize = 32;
/// Most bytes of a piece.
pub const MAX_PIECE_LEN: usize = 64 << 10;
/// Media type of a pack.
pub const PACK_MEDIA_TYPE: &str = "application/vnd.turbo.pack";
/// Media type of an image manifest.
pub const IMAGE_MEDIA_TYPE: &str = "application/vnd.turbo.image+json";
/// Media type of the manifest of a state.
pub const STATE_MEDIA_TYPE: &str = "application/vnd.turbo.state+json";
/// Media type of a trace.
pub const TRACE_MEDIA_TYPE: &str = "application/vnd.turbo.trace";
/// Media type of a model.
pub const MODEL_MEDIA_TYPE: &str = "application/vnd.turbo.model";
/// Largest window of an object stream, as the power of two that zstd calls `windowLog`: 8 MiB.
pub const STREAM_WINDOW_LOG: u32 = 23;
/// Header that names the digest of an image manifest in answers.
pub const DIGEST_HEADER: &str = "turbo-digest";
/// Header that names a launch, in the launch request and in requests that promote objects out of its stream.
pub const LAUNCH_HEADER: &str = "turbo-launch";

/// Header that names the container of a state, for people; a release's characters ([`crate::reference::is_release`]).
pub const CONTAINER_HEADER: &str = "turbo-container";
/// Fewest hex digits that stand for a state on a registry: fewer would let a caller find states by trying.
pub const MIN_STATE_PREFIX_LEN: usize = 8;
/// Most states in one answer.
pub const MAX_STATES: usize = 1000;

/// Encodes a list of digests.
pub fn encode_digests(digests: &[Digest]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + Digest::LEN * digests.len());
    out.extend_from_slice(&(digests.len() as u32).to_le_bytes());
    for digest in digests {
        out.extend_from_slice(digest.as_bytes());
    }
    out
}

/// Parses a list of at most [`MAX_DIGESTS`] digests.
///
/// # Errors
/// If it is longer, or its length does not match its count.
pub fn decode_digests(bytes: &[u8]) -> Result<Vec<Digest>, FormatError> {
    let mut reader = crate::codec::Reader::new("list of digests", bytes);
    let digests = decode_digest_list(&mut reader)?;
    match reader.finish() {
        Ok(()) => Ok(digests),
        Err(_) => Err(FormatError::invalid("list of digests", "its length does not match its count")),
    }
}

fn decode_digest_list(reader: &mut crate::codec::Reader<'_>) -> Result<Vec<Digest>, FormatError> {
    let what = "list of digests";
    let count = reader.u32()? as usize;
    if count > MAX_DIGESTS {
        return Err(FormatError::TooLarge { what, value: count as u64, max: MAX_DIGESTS as u64 });
    }
    if reader.remaining() < count * Digest::LEN {
        return Err(FormatError::invalid(what, "its length does not match its count"));
    }
    (0..count).map(|_| reader.digest()).collect()
}

/// Encodes one bit for each value, lowest bit of the first byte first.
pub fn encode_bitmap(bits: impl IntoIterator<Item = bool>) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, bit) in bits.into_iter().enumerate() {
        if at % 8 == 0 {
            out.push(0);
        }
        if let Some(last) = out.last_mut() {
            *last |= u8::from(bit) << (at % 8);
        }
    }
    out
}

/// Parses a bitmap of `count` bits.
///
/// # Errors
/// If it has another length, or a bit beyond the last is set.
pub fn decode_bitmap(bytes: &[u8], count: usize) -> Result<Vec<bool>, FormatError> {
    let what = "bitmap";
    if bytes.len() != count.div_ceil(8) {
        return Err(FormatError::invalid(what, "its length does not match what was asked"));
    }
    let bits: Vec<bool> = bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect();
    match bits.split_at_checked(count) {
        Some((bits, rest)) if !rest.contains(&true) => Ok(bits.to_vec()),
        _ => Err(FormatError::invalid(what, "a bit beyond the last is set")),
    }
}

/// One record of an object stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// An object's bytes, whose digest is its name.
    Object(&'a [u8]),
    /// An encoded frame as it is stored (see [`crate::frame`]), all of whose objects were asked for.
    Frame(&'a [u8]),
    /// The registry has no object of this name that the caller may read.
    Missing(Digest),
    /// The image manifest (launch only, first).
    Image(&'a [u8]),
    /// The model that the server predicts with (launch only).
    Model(&'a [u8]),
    /// What else this answer will carry, in order: [`Digest::prefix64`] of each object (launch only). More than one
    /// such record adds up.
    Plan(&'a [u8]),
    /// The answer is complete. The text says why it ends before all that was asked, or is empty.
    End(&'a [u8]),
}

/// Length of the part in front of a record's payload, in bytes.
pub const RECORD_HEADER_LEN: usize = 5;

impl<'a> Record<'a> {
    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Object(bytes) => (1, bytes),
            Self::Frame(bytes) => (2, bytes),
            Self::Missing(digest) => (3, digest.as_bytes()),
            Self::Image(bytes) => (4, bytes),
            Self::Model(bytes) => (5, bytes),
            Self::Plan(bytes) => (6, bytes),
            Self::End(text) => (0, text),
        };
        out.push(kind);
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(payload);
    }

    /// Parses the header of a record: its kind, and the length of the payload that follows, checked against the bound
    /// of that kind.
    ///
    /// # Errors
    /// If the kind is unknown, or the length beyond its bound.
    pub fn decode_header(bytes: [u8; RECORD_HEADER_LEN]) -> Result<(u8, usize), FormatError> {
        let what = "record";
        let [kind, len @ ..] = bytes;
        let len = u32::from_le_bytes(len) as usize;
        let max = match kind {
            0 => 4096,
            1 => MAX_OBJECT_LEN as usize,
            2 => MAX_ENCODED_LEN,
            3 => Digest::LEN,
            4 => MAX_MANIFEST_LEN,
            5 => MAX_MODEL_LEN,
            6 => 8 * MAX_DIGESTS,
            _ => return Err(FormatError::invalid(what, "the kind is unknown")),
        };
        if len > max {
            return Err(FormatError::TooLarge { what, value: len as u64, max: max as u64 });
        }
        Ok((kind, len))
    }

    /// The record of this kind and payload.
    ///
    /// # Errors
    /// If the kind is unknown, or the payload not of its form.
    pub fn decode(kind: u8, payload: &'a [u8]) -> Result<Self, FormatError> {
        let what = "record";
        Ok(match kind {
            0 => Self::End(payload),
            1 => Self::Object(payload),
            2 => Self::Frame(payload),
            3 => Self::Missing(Digest(payload.try_into().map_err(|_| FormatError::invalid(what, "a digest has 32 bytes"))?)),
            4 => Self::Image(payload),
            5 => Self::Model(payload),
            6 if payload.len().is_multiple_of(8) => Self::Plan(payload),
            6 => return Err(FormatError::invalid(what, "a plan is a list of 8-byte numbers")),
            _ => return Err(FormatError::invalid(what, "the kind is unknown")),
        })
    }
}

/// What stands in front of a piece of a stream that is spread over lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceHeader {
    /// Place among all pieces of the stream, from 0.
    pub number: u32,
    /// Bytes that follow: `1..=MAX_PIECE_LEN`.
    pub len: u32,
}

impl PieceHeader {
    /// Length of a header, in bytes.
    pub const LEN: usize = 8;

    /// The header's bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.number.to_le_bytes());
        bytes[4..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// The reverse.
    ///
    /// # Errors
    /// If the length is 0 or beyond [`MAX_PIECE_LEN`].
    pub fn decode(bytes: [u8; Self::LEN]) -> Result<Self, FormatError> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let (number, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        match len as usize {
            0 => Err(FormatError::invalid("piece", "it is empty")),
            1..=MAX_PIECE_LEN => Ok(Self { number, len }),
            _ => Err(FormatError::TooLarge { what: "piece", value: len.into(), max: MAX_PIECE_LEN as u64 }),
        }
    }
}

/// What a client knows of its link to the registry from runs before, for the first choices of both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkHint {
    /// Round trip, in microseconds.
    pub round_trip_us: u64,
    /// Bytes a second on the wire, as compressed as they travel.
    pub bytes_per_s: u64,
}

/// The numbers of a [`Record::Plan`].
pub fn plan_prefixes(payload: &[u8]) -> impl Iterator<Item = u64> {
    payload.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Body of `POST …/launch`: what is started, and what the client has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaunchRequest {
    /// Program or trigger that is started; the image's default startup file if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry_point: Option<String>,
    /// Processor architecture, as `uname -m` names it.
    pub architecture: String,
    /// Whether predicted objects are wanted. Otherwise manifest, layer manifests, tree roots, and the tree objects that
    /// lead to the startup file.
    pub predict: bool,
    /// Most uncompressed bytes of predicted objects to send.
    pub budget_bytes: u64,
    /// What the client has already: a [`HaveFilter`], as lower-case hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub have: Option<String>,
    /// Digest of the model that the client has, so that it is not sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Digest>,
    /// The link as the client remembers it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkHint>,
    /// Every byte costs the client: only what is needed for sure is sent ahead.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub metered: bool,
    /// How many lanes the client opens beside this request, at most [`MAX_LANES`].
    #[serde(skip_serializing_if = "is_zero")]
    pub lanes: u8,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u8) -> bool {
    *value == 0
}

/// A compact summary of digests: a Bloom filter. It may say "has" of what is not there (once in about 100 at ten bits a
/// digest), never the reverse; the client asks for what it turns out to lack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaveFilter {
    bits: Vec<u8>,
}

impl HaveFilter {
    /// Longest filter, in bytes: what a request on a thin line can carry.
    pub const MAX_LEN: usize = 64 << 10;
    const HASHES: u64 = 6;

    /// A filter for about `count` digests.
    pub fn for_count(count: usize) -> Self {
        let len = (count * 10).div_ceil(8).clamp(8, Self::MAX_LEN);
        Self { bits: vec![0; len] }
    }

    /// Takes the bytes of a filter.
    ///
    /// # Errors
    /// If there are none or too many.
    pub fn from_bytes(bits: Vec<u8>) -> Result<Self, FormatError> {
        match bits.len() {
            0 => Err(FormatError::invalid("filter", "it has no bits")),
            len if len > Self::MAX_LEN => Err(FormatError::TooLarge { what: "filter", value: len as u64, max: Self::MAX_LEN as u64 }),
            _ => Ok(Self { bits }),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// The bytes as lower-case hex.
    pub fn to_hex(&self) -> String {
        use std::fmt::Write;
        self.bits.iter().fold(String::with_capacity(2 * self.bits.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// The reverse of [`HaveFilter::to_hex`].
    ///
    /// # Errors
    /// If the text is not hex, or has too many digits.
    pub fn from_hex(text: &str) -> Result<Self, FormatError> {
        let digits: Option<Vec<u8>> = text.chars().take(2 * Self::MAX_LEN + 2).map(|c| c.to_digit(16).map(|d| d as u8)).collect();
        match digits {
            Some(digits) if digits.len().is_multiple_of(2) => Self::from_bytes(digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()),
            _ => Err(FormatError::invalid("filter", "it is not hex")),
        }
    }

    fn positions(&self, digest: &Digest) -> impl Iterator<Item = u64> + use<> {
        // Kirsch and Mitzenmacher: two hash values give all the others.
        let (first, mut second) = (digest.prefix64(), [0; 8]);
        second.copy_from_slice(&digest.as_bytes()[8..16]);
        let (second, bits) = (u64::from_le_bytes(second) | 1, self.bits.len() as u64 * 8);
        (0..Self::HASHES).map(move |n| first.wrapping_add(n.wrapping_mul(second)) % bits)
    }

    /// Adds a digest.
    pub fn insert(&mut self, digest: &Digest) {
        for at in self.positions(digest) {
            self.bits[(at / 8) as usize] |= 1 << (at % 8);
        }
    }

    /// Whether the digest was probably added; `false` is certain.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.positions(digest).all(|at| self.bits[(at / 8) as usize] >> (at % 8) & 1 == 1)
    }
}

/// Answer of `GET /v1/capabilities`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Version of the server.
    pub version: String,
    /// Newest version of the native API.
    pub api: u32,
    /// Most bytes of a pack.
    pub max_pack_bytes: u64,
    /// Most digests of a request.
    pub max_digests: u64,
    /// Most bytes of a manifest.
    pub max_manifest_bytes: u64,
    /// Most bytes of a trace; 0 if the server takes none.
    pub max_trace_bytes: u64,
}

/// Answer of `PUT …/manifests/{reference}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestPut {
    /// The image's digest.
    pub digest: Digest,
    /// Whether the registry had it already.
    pub existed: bool,
}

/// Answer of `PUT …/model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelPut {
    /// The model that launches of the image get now: of what of the sent one is in the image.
    pub digest: Digest,
    /// The image.
    pub image: Digest,
}

/// Body and answer of `PUT …/pins/{release or digest}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelPin {
    /// The model; in a request the one that launches get now if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Digest>,
}

/// Answer of `GET …/tags`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// The repository.
    pub repository: String,
    /// Releases and the image each names, by name.
    pub tags: std::collections::BTreeMap<String, Digest>,
}

/// Answer of `PUT …/states/{digest}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePut {
    /// The state's id.
    pub digest: Digest,
    /// Whether the registry had it already.
    pub existed: bool,
}

/// A state in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateInfo {
    /// The state's id.
    pub digest: Digest,
    /// What the container was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Bytes of all files of the sandbox.
    pub bytes: u64,
    /// When it was pushed last: seconds since 1970.
    pub pushed_at: u64,
}

/// Answer of `GET …/states`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct States {
    /// The repository.
    pub repository: String,
    /// Newest first, at most [`MAX_STATES`].
    pub states: Vec<StateInfo>,
}

/// Every error's body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// At least one.
    pub errors: Vec<ApiError>,
}

/// One error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// For programs: `MANIFEST_UNKNOWN`, `DIGEST_INVALID`, `OBJECTS_MISSING` and so on; `docs/errors.md` lists them.
    pub code: String,
    /// For people.
    pub message: String,
    /// More, for programs; for `OBJECTS_MISSING` a list of digests.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub detail: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bitmaps_come_back(bits in proptest::collection::vec(any::<bool>(), 0..100)) {
            prop_assert_eq!(decode_bitmap(&encode_bitmap(bits.iter().copied()), bits.len()), Ok(bits));
        }

        #[test]
        fn a_filter_never_denies_what_was_added(seeds in proptest::collection::vec(any::<u64>(), 1..300)) {
            let mut filter = HaveFilter::for_count(seeds.len());
            let digests: Vec<Digest> = seeds.iter().map(|seed| Digest::of(&seed.to_le_bytes())).collect();
            digests.iter().for_each(|digest| filter.insert(digest));
            let back = HaveFilter::from_hex(&filter.to_hex()).unwrap();
            prop_assert!(digests.iter().all(|digest| back.contains(digest)));
        }
    }

    #[test]
    fn a_filter_is_rarely_wrong() {
        let mut filter = HaveFilter::for_count(1000);
        (0..1000u32).for_each(|n| filter.insert(&Digest::of(&n.to_le_bytes())));
        let wrong = (1000..11_000u32).filter(|n| filter.contains(&Digest::of(&n.to_le_bytes()))).count();
        assert!(wrong < 200, "{wrong} of 10000");
    }

    #[test]
    fn golden_records() {
        let mut bytes = Vec::new();
        Record::Object(b"ab").encode(&mut bytes);
        Record::Plan(&7u64.to_le_bytes()).encode(&mut bytes);
        Record::End(b"").encode(&mut bytes);
        assert_eq!(bytes, b"\x01\x02\0\0\0ab\x06\x08\0\0\0\x07\0\0\0\0\0\0\0\x00\0\0\0\0");
        assert_eq!(Record::decode_header([1, 2, 0, 0, 0]), Ok((1, 2)));
        assert!(Record::decode_header([1, 255, 255, 255, 255]).is_err());
        assert!(Record::decode_header([9, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn pieces_are_bounded() {
        let header = PieceHeader { number: 7, len: 300 };
        assert_eq!(header.encode(), [7, 0, 0, 0, 44, 1, 0, 0]);
        assert_eq!(PieceHeader::decode(header.encode()), Ok(header));
        assert!(PieceHeader::decode([0; 8]).is_err());
        assert!(PieceHeader::decode(PieceHeader { number: 0, len: MAX_PIECE_LEN as u32 + 1 }.encode()).is_err());
    }

    #[test]
    fn a_launch_request_of_an_older_client_is_taken() {
        let request: LaunchRequest = serde_json::from_str(r#"{"architecture":"x86_64","predict":true,"budget_bytes":5}"#).unwrap();
        assert_eq!((request.lanes, request.metered, request.link), (0, false, None));
        let text = serde_json::to_string(&request).unwrap();
        assert!(!text.contains("lanes") && !text.contains("metered"), "{text}");
    }

    #[test]
    fn lists_of_digests_are_bounded() {
        let digests = [Digest::of(b"a"), Digest::of(b"b")];
        let bytes = encode_digests(&digests);
        assert_eq!(decode_digests(&bytes).unwrap(), digests);
        assert!(decode_digests(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode_digests(&[255, 255, 255, 255]).is_err());
    }
}
