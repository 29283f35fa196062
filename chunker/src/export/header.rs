//! Tar headers and PAX records of an entry.

use std::ops::Range;

use layer_format::LayerPath;
use layer_format::entry::{Entry, Kind};

/// Length of a block in bytes.
pub(super) const BLOCK_LEN: usize = 512;

/// PAX records, in the order in which they are written.
#[derive(Debug, Default)]
pub(super) struct PaxRecords {
    bytes: Vec<u8>,
}

impl PaxRecords {
    /// The records of an entry's metadata.
    pub(super) fn of(entry: &Entry) -> Self {
        let mut pax = Self::default();
        let meta = &entry.meta;
        if meta.mtime_ns != 0 || !(0..=0o777_7777_7777).contains(&meta.mtime_s) {
            pax.push(b"mtime", time(meta.mtime_s, meta.mtime_ns).as_bytes());
        }
        for (key, value) in [(&b"uid"[..], meta.uid), (b"gid", meta.gid)] {
            if value > 0o777_7777 {
                pax.push(key, value.to_string().as_bytes());
            }
        }
        for (name, value) in &meta.xattrs {
            pax.push(&[b"SCHILY.xattr.", &percent_encode(name)[..]].concat(), value);
        }
        pax
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A record states its own length, with the digits of the length.
    fn push(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        self.bytes.extend_from_slice(len.to_string().as_bytes());
        self.bytes.push(b' ');
        self.bytes.extend_from_slice(key);
        self.bytes.push(b'=');
        self.bytes.extend_from_slice(value);
        self.bytes.push(b'\n');
    }

    /// A record with a path, which PAX takes to be UTF-8 unless told otherwise.
    fn push_path(&mut self, key: &[u8], path: &[u8]) {
        if std::str::from_utf8(path).is_err() {
            self.push(b"hdrcharset", b"BINARY");
        }
        self.push(key, path);
    }

    /// The header and the body of the extended header that precedes `header`.
    pub(super) fn encode(&self, header: &Header) -> ([u8; BLOCK_LEN], &[u8]) {
        let last = header.name.split(|byte| *byte == b'/').rfind(|part| !part.is_empty()).unwrap_or(b".");
        let name = [b"PaxHeaders/", &last[..last.len().min(80)]].concat();
        let own = Header { name, kind: b'x', mode: 0o644, size: self.bytes.len() as u64, ..Header::default() };
        (own.encode(), &self.bytes)
    }
}

/// The fields of a ustar header. What does not fit is cut or stands in base 256; then a PAX record overrules it.
#[derive(Debug, Default)]
pub(super) struct Header {
    name: Vec<u8>,
    kind: u8,
    mode: u16,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    link_name: Vec<u8>,
    device: Option<(u32, u32)>,
}

impl Header {
    /// The header of an entry, with size 0; adds the records that its names need.
    pub(super) fn of(entry: &Entry, pax: &mut PaxRecords) -> Self {
        let meta = &entry.meta;
        let mut header =
            Self { name: name(&entry.path), mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime_s.clamp(0, 0o777_7777_7777), ..Self::default() };
        header.kind = match &entry.kind {
            Kind::File(_) | Kind::Socket | Kind::Whiteout => b'0',
            Kind::Directory { .. } => b'5',
            Kind::Symlink(_) => b'2',
            Kind::Fifo => b'6',
            Kind::CharDevice { .. } => b'3',
            Kind::BlockDevice { .. } => b'4',
        };
        match &entry.kind {
            Kind::Directory { .. } => header.name.push(b'/'),
            Kind::Symlink(target) => header.set_link_name(target, pax),
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => header.device = Some((*major, *minor)),
            Kind::File(_) | Kind::Fifo | Kind::Socket | Kind::Whiteout => {}
        }
        if header.name.len() > 100 {
            pax.push_path(b"path", &header.name);
        }
        header
    }

    fn set_link_name(&mut self, target: &[u8], pax: &mut PaxRecords) {
        if target.len() > 100 {
            pax.push_path(b"linkpath", target);
        }
        self.link_name = target.to_vec();
    }

    /// Makes this another name of `first`.
    pub(super) fn link_to(&mut self, first: &LayerPath, pax: &mut PaxRecords) {
        self.kind = b'1';
        self.device = None;
        self.set_link_name(&name(first), pax);
    }

    pub(super) fn set_size(&mut self, size: u64, pax: &mut PaxRecords) {
        if size > 0o777_7777_7777 {
            pax.push(b"size", size.to_string().as_bytes());
        }
        self.size = size;
    }

    /// Makes this a GNU sparse file of version 1.0; returns the map that stands before its data.
    pub(super) fn make_sparse(&mut self, runs: &[Range<u64>], len: u64, pax: &mut PaxRecords) -> Vec<u8> {
        pax.push(b"GNU.sparse.major", b"1");
        pax.push(b"GNU.sparse.minor", b"0");
        pax.push_path(b"GNU.sparse.name", &self.name);
        pax.push(b"GNU.sparse.realsize", len.to_string().as_bytes());
        self.name = [b"GNUSparseFile.0/", self.name.split(|byte| *byte == b'/').next_back().unwrap_or_default()].concat();
        self.name.truncate(100);
        // GNU tar itself ends the map of a file that ends in a hole so.
        let end = runs.last().is_none_or(|last| last.end < len).then_some(len..len);
        let mut map = format!("{}\n", runs.len() + usize::from(end.is_some()));
        for run in runs.iter().chain(&end) {
            map.push_str(&format!("{}\n{}\n", run.start, run.end - run.start));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK_LEN), 0);
        map
    }

    pub(super) fn encode(&self) -> [u8; BLOCK_LEN] {
        let mut block = [0; BLOCK_LEN];
        put(&mut block[0..100], &self.name);
        number(&mut block[100..108], self.mode.into());
        number(&mut block[108..116], self.uid.into());
        number(&mut block[116..124], self.gid.into());
        number(&mut block[124..136], self.size);
        number(&mut block[136..148], self.mtime.unsigned_abs());
        block[148..156].fill(b' ');
        block[156] = self.kind;
        put(&mut block[157..257], &self.link_name);
        block[257..265].copy_from_slice(b"ustar\x0000");
        if let Some((major, minor)) = self.device {
            number(&mut block[329..337], major.into());
            number(&mut block[337..345], minor.into());
        }
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut block[148..155], format!("{sum:06o}\0").as_bytes());
        block
    }
}

/// A path as it stands in a tar; the root is `.`.
fn name(path: &LayerPath) -> Vec<u8> {
    if path.is_root() { b".".to_vec() } else { path.as_bytes().to_vec() }
}

/// Copies what fits.
fn put(field: &mut [u8], bytes: &[u8]) {
    let len = bytes.len().min(field.len());
    field[..len].copy_from_slice(&bytes[..len]);
}

/// Octal digits and a NUL; a larger number in GNU's base 256, which all common tools read.
fn number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    if value < 1 << (3 * digits) {
        put(field, format!("{value:0digits$o}\0").as_bytes());
        return;
    }
    for (place, byte) in field.iter_mut().rev().zip(value.to_le_bytes().into_iter().chain(std::iter::repeat(0))) {
        *place = byte;
    }
    field[0] |= 0x80;
}

/// Seconds since 1970 with a fraction, as short as it can be.
fn time(seconds: i64, nanoseconds: u32) -> String {
    let (sign, whole, fraction) = match (seconds < 0, nanoseconds) {
        (false, _) => ("", seconds.unsigned_abs(), nanoseconds),
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        // -2 s and 0.75 s more are -1.25 s.
        (true, _) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - nanoseconds),
    };
    match fraction {
        0 => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{fraction:09}").trim_end_matches('0').to_owned(),
    }
}

/// As GNU tar writes the name of an attribute, so that it has no `=`.
fn percent_encode(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'=' => out.extend_from_slice(b"%3D"),
            b'%' => out.extend_from_slice(b"%25"),
            byte => out.push(*byte),
        }
    }
    out
}
