//! One entry of a layer: a file, directory, link or special file, with all metadata that has to survive.

use crate::codec::{FormatError, Reader, Writer};
use crate::path::{LayerPath, MAX_PATH_LEN};
use crate::recipe::{MAX_INLINE_EXTENTS, MAX_INLINE_NODES, Recipe};

/// Most extended attributes of an entry, and most bytes of one value (Linux: `XATTR_SIZE_MAX`).
pub const MAX_XATTRS: usize = 256;
/// Longest value of an extended attribute, in bytes.
pub const MAX_XATTR_LEN: usize = 65536;
/// Longest target of a symbolic link, in bytes.
pub const MAX_TARGET_LEN: usize = 4096;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file and how its content is rebuilt.
    File(Recipe),
    /// A directory. An *opaque* one hides what lower layers have below it.
    Directory {
        /// Hide the content of lower layers.
        opaque: bool,
    },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket's name (the socket itself does not live in an image).
    Socket,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A tombstone: lower layers' entry of this name is deleted.
    Whiteout,
}

/// Which other names share this file's inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardLink {
    /// Equal for all names of one file, different for different files of a layer: the first eight bytes (little-endian)
    /// of the BLAKE3 of the first name's path.
    pub group: u64,
    /// How many names the file has in this layer, `2..`.
    pub count: u32,
}

/// Permissions, owner, time and attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky: `0..=0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970.
    pub mtime_s: i64,
    /// Modification time: nanoseconds, `0..1_000_000_000`.
    pub mtime_ns: u32,
    /// Extended attributes, sorted by name, no name twice.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Set if the file has more than one name.
    pub hard_link: Option<HardLink>,
}

/// A path and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub path: LayerPath,
    /// Metadata.
    pub meta: Meta,
    /// What.
    pub kind: Kind,
}

impl Entry {
    /// Length of the content in bytes: of a file, or of a link's target; else 0.
    pub fn len(&self) -> u64 {
        match &self.kind {
            Kind::File(recipe) => recipe.len(),
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        }
    }

    /// Whether the content has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Directory { .. })
    }

    /// Appends everything but the path.
    pub(crate) fn encode_body(&self, out: &mut Vec<u8>) {
        let (tag, flag) = match &self.kind {
            Kind::File(_) => (0, false),
            Kind::Directory { opaque } => (1, *opaque),
            Kind::Symlink(_) => (2, false),
            Kind::Fifo => (3, false),
            Kind::Socket => (4, false),
            Kind::CharDevice { .. } => (5, false),
            Kind::BlockDevice { .. } => (6, false),
            Kind::Whiteout => (7, false),
        };
        let meta = &self.meta;
        out.push(tag | u8::from(flag) << 4 | u8::from(!meta.xattrs.is_empty()) << 5 | u8::from(meta.hard_link.is_some()) << 6);
        out.put_varint(meta.mode.into());
        out.put_varint(meta.uid.into());
        out.put_varint(meta.gid.into());
        out.put_signed(meta.mtime_s);
        out.put_varint(meta.mtime_ns.into());
        if !meta.xattrs.is_empty() {
            out.put_varint(meta.xattrs.len() as u64);
            for (name, value) in &meta.xattrs {
                out.put_sized(name);
                out.put_sized(value);
            }
        }
        if let Some(link) = meta.hard_link {
            out.extend_from_slice(&link.group.to_le_bytes());
            out.put_varint(link.count.into());
        }
        match &self.kind {
            Kind::File(recipe) => recipe.encode(out),
            Kind::Symlink(target) => out.put_sized(target),
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                out.put_varint((*major).into());
                out.put_varint((*minor).into());
            }
            Kind::Directory { .. } | Kind::Fifo | Kind::Socket | Kind::Whiteout => {}
        }
    }

    pub(crate) fn decode_body(path: LayerPath, reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let what = "entry";
        let flags = reader.u8()?;
        let mode = reader.varint(0o7777)? as u16;
        let uid = reader.varint(u32::MAX.into())? as u32;
        let gid = reader.varint(u32::MAX.into())? as u32;
        let mtime_s = reader.signed()?;
        let mtime_ns = reader.varint(999_999_999)? as u32;
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        if flags & 1 << 5 != 0 {
            let count = reader.count(MAX_XATTRS as u64, 2)?;
            if count == 0 {
                return Err(FormatError::invalid(what, "an empty list of attributes is left out"));
            }
            for _ in 0..count {
                let name = reader.sized(255)?.to_vec();
                if xattrs.last().is_some_and(|(last, _)| *last >= name) {
                    return Err(FormatError::invalid(what, "attributes are sorted by name"));
                }
                xattrs.push((name, reader.sized(MAX_XATTR_LEN)?.to_vec()));
            }
        }
        let hard_link = match flags & 1 << 6 {
            0 => None,
            _ => match (reader.u64()?, reader.varint(u32::MAX.into())? as u32) {
                (_, 0 | 1) => return Err(FormatError::invalid(what, "a hard link has two names or more")),
                (group, count) => Some(HardLink { group, count }),
            },
        };
        let opaque = flags & 1 << 4 != 0;
        let tag = flags & 0xf;
        if flags & 1 << 7 != 0 || (opaque && tag != 1) {
            return Err(FormatError::invalid(what, "an unknown flag is set"));
        }
        let numbers = |reader: &mut Reader<'_>| Ok::<_, FormatError>((reader.varint(u32::MAX.into())? as u32, reader.varint(u32::MAX.into())? as u32));
        let kind = match tag {
            0 => {
                let recipe = Recipe::decode(reader, MAX_INLINE_EXTENTS.max(MAX_INLINE_NODES))?;
                match &recipe {
                    Recipe::Extents(extents) if extents.len() > MAX_INLINE_EXTENTS => {
                        return Err(FormatError::invalid(what, "many extents stand in recipe nodes"));
                    }
                    _ => Kind::File(recipe),
                }
            }
            1 => Kind::Directory { opaque },
            2 => Kind::Symlink(reader.sized(MAX_TARGET_LEN)?.to_vec()),
            3 => Kind::Fifo,
            4 => Kind::Socket,
            5 => numbers(reader).map(|(major, minor)| Kind::CharDevice { major, minor })?,
            6 => numbers(reader).map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            7 => Kind::Whiteout,
            _ => return Err(FormatError::invalid(what, "the kind is unknown")),
        };
        if path.is_root() && !matches!(kind, Kind::Directory { .. }) {
            return Err(FormatError::invalid(what, "the root is a directory"));
        }
        Ok(Self { path, meta: Meta { mode, uid, gid, mtime_s, mtime_ns, xattrs, hard_link }, kind })
    }
}

/// Appends `path`, written as the length it shares with `previous`, and the rest.
pub(crate) fn put_path(out: &mut Vec<u8>, previous: &[u8], path: &[u8]) {
    let shared = previous.iter().zip(path).take_while(|(a, b)| a == b).count();
    out.put_varint(shared as u64);
    out.put_sized(&path[shared..]);
}

pub(crate) fn read_path(reader: &mut Reader<'_>, previous: &[u8]) -> Result<LayerPath, FormatError> {
    let shared = reader.varint(previous.len() as u64)? as usize;
    let rest = reader.sized(MAX_PATH_LEN)?;
    if previous.get(shared).is_some_and(|next| rest.first() == Some(next)) {
        return Err(FormatError::invalid("path", "the shared part is as long as it can be"));
    }
    LayerPath::new([previous.get(..shared).unwrap_or_default(), rest].concat())
}
