//! How a compressed blob is made again from plain chunks: docs/formats/rebuild.md.
//!
//! What is stored is one string of bytes with an ordinary [recipe](crate::recipe): contents of files, then the rest of the plain
//! bytes (*framing*: tar headers and padding), then for each section what it needs besides (*side*: its pieces, its
//! corrections), then the *plan*. [`Rebuild`] says where these parts begin, and [`Plan`] what the sections are.

use crate::codec::{FormatError, Reader, Writer};

/// Newest version.
pub const VERSION: u8 = 1;
const MAGIC: &[u8; 4] = b"TRBD";
/// Longest plan, in bytes.
pub const MAX_PLAN_LEN: u64 = 64 << 20;
/// Most plain bytes of a section.
pub const MAX_SECTION_LEN: u64 = 16 << 20;
/// Longest blob and its plain bytes, in bytes.
const MAX_LEN: u64 = 1 << 50;
/// A section's fields take at least so many bytes.
const MIN_SECTION_LEN: usize = 7;

/// What the blob is, besides its plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// Nothing: the plain bytes are the blob.
    Plain,
    /// gzip, with corrections of this version of the encoders that are predicted.
    Gzip {
        /// Of the corrections.
        version: u8,
    },
}

/// The head: kept in the blob's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebuild {
    /// What is made of the plain bytes.
    pub container: Container,
    /// Bytes of files' contents.
    pub content_len: u64,
    /// Plain bytes that are no content.
    pub framing_len: u64,
    /// Bytes of the sections' side.
    pub side_len: u64,
    /// Bytes of the plan.
    pub plan_len: u64,
}

impl Rebuild {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        match self.container {
            Container::Plain => out.extend_from_slice(&[0, 0]),
            Container::Gzip { version } => out.extend_from_slice(&[1, version]),
        }
        for len in [self.content_len, self.framing_len, self.side_len, self.plan_len] {
            out.put_varint(len);
        }
        out
    }

    /// Parses it.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let what = "rebuild";
        let mut reader = Reader::new(what, bytes);
        reader.header(MAGIC, VERSION)?;
        let container = match (reader.u8()?, reader.u8()?) {
            (0, 0) => Container::Plain,
            (1, version) => Container::Gzip { version },
            _ => return Err(FormatError::invalid(what, "its container is not known")),
        };
        let content_len = reader.varint(MAX_LEN)?;
        let framing_len = reader.varint(MAX_LEN)?;
        let side_len = reader.varint(MAX_LEN)?;
        let plan_len = reader.varint(MAX_PLAN_LEN)?;
        reader.finish()?;
        Ok(Self { container, content_len, framing_len, side_len, plan_len })
    }

    /// Where the plan begins in what is stored, and its length.
    pub fn plan_range(&self) -> std::ops::Range<u64> {
        let start = self.content_len + self.framing_len + self.side_len;
        start..start + self.plan_len
    }

    /// Bytes of all that is stored.
    pub fn len(&self) -> u64 {
        self.plan_range().end
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A section of the blob that is made again on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// Plain bytes, at most [`MAX_SECTION_LEN`].
    pub plain_len: u32,
    /// Plain bytes of those that are framing.
    pub framing_len: u32,
    /// Bytes of the list of pieces.
    pub pieces_len: u32,
    /// Bytes of the corrections, behind the pieces.
    pub corrections_len: u32,
    /// Bits of the blob.
    pub packed_bits: u64,
    /// If the section begins in the middle of a byte: the bits of that byte before it.
    pub partial: u8,
    /// Plain bytes before the section that belong to the same gzip member.
    pub member_offset: u64,
}

/// The sections of a blob, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// See [`Section`].
    pub sections: Vec<Section>,
}

impl Plan {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 * self.sections.len() + 8);
        out.put_varint(self.sections.len() as u64);
        for section in &self.sections {
            for len in [section.plain_len, section.framing_len, section.pieces_len, section.corrections_len] {
                out.put_varint(len.into());
            }
            out.put_varint(section.packed_bits);
            out.push(section.partial);
            out.put_varint(section.member_offset);
        }
        out
    }

    /// Parses it, and checks it against the head.
    ///
    /// # Errors
    /// If the bytes are no plan, or not that of the head.
    pub fn decode(bytes: &[u8], head: &Rebuild) -> Result<Self, FormatError> {
        let what = "rebuild plan";
        let mut reader = Reader::new(what, bytes);
        let count = reader.count(MAX_PLAN_LEN, MIN_SECTION_LEN)?;
        let mut sections = Vec::with_capacity(count);
        let (mut content, mut framing, mut side, mut bits) = (0u64, 0u64, 0u64, 0u64);
        for _ in 0..count {
            let plain_len = reader.varint(MAX_SECTION_LEN)? as u32;
            let section = Section {
                plain_len,
                framing_len: reader.varint(plain_len.into())? as u32,
                pieces_len: reader.varint(2 * MAX_SECTION_LEN)? as u32,
                corrections_len: reader.varint(2 * MAX_SECTION_LEN)? as u32,
                packed_bits: reader.varint(64 * MAX_SECTION_LEN)?,
                partial: reader.u8()?,
                member_offset: reader.varint(MAX_LEN)?,
            };
            content += u64::from(section.plain_len - section.framing_len);
            framing += u64::from(section.framing_len);
            side += u64::from(section.pieces_len) + u64::from(section.corrections_len);
            bits += section.packed_bits;
            if section.member_offset > content + framing - u64::from(section.plain_len) {
                return Err(FormatError::invalid(what, "a member begins before the blob"));
            }
            sections.push(section);
        }
        reader.finish()?;
        if (content, framing, side) != (head.content_len, head.framing_len, head.side_len) || !bits.is_multiple_of(8) {
            return Err(FormatError::invalid(what, "its sections do not add up"));
        }
        Ok(Self { sections })
    }

    /// Bytes of the blob.
    pub fn packed_len(&self) -> u64 {
        self.sections.iter().map(|section| section.packed_bits).sum::<u64>() / 8
    }
}

/// Appends the bytes of a list of pieces: how many bytes of framing and of content follow each other, in turns.
pub fn encode_pieces(pieces: &[(u32, u32)], out: &mut Vec<u8>) {
    for (framing, content) in pieces {
        out.put_varint((*framing).into());
        out.put_varint((*content).into());
    }
}

/// Parses the pieces of a section.
///
/// # Errors
/// If the bytes are no such list, or it is not that of the section.
pub fn decode_pieces(bytes: &[u8], section: &Section) -> Result<Vec<(u32, u32)>, FormatError> {
    let what = "rebuild pieces";
    let mut reader = Reader::new(what, bytes);
    let mut pieces = Vec::with_capacity(bytes.len() / 3);
    let (mut framing, mut content) = (0u64, 0u64);
    while reader.remaining() > 0 {
        let piece = (reader.varint(MAX_SECTION_LEN)? as u32, reader.varint(MAX_SECTION_LEN)? as u32);
        framing += u64::from(piece.0);
        content += u64::from(piece.1);
        pieces.push(piece);
    }
    reader.finish()?;
    if framing != u64::from(section.framing_len) || content != u64::from(section.plain_len.saturating_sub(section.framing_len)) {
        return Err(FormatError::invalid(what, "they do not add up"));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> (Rebuild, Plan) {
        let section = |n: u32| Section {
            plain_len: 2_097_152 + n,
            framing_len: 4096,
            pieces_len: 12 + n,
            corrections_len: 300,
            packed_bits: 800_003 - u64::from(n) * 3,
            partial: n as u8,
            member_offset: u64::from(n) * 2_097_152,
        };
        let plan = Plan { sections: vec![section(0), section(1), section(2), Section { packed_bits: 6, ..section(0) }] };
        let bits: u64 = plan.sections.iter().map(|section| section.packed_bits).sum();
        let mut plan = plan;
        plan.sections[3].packed_bits += 8 - bits % 8;
        let head = Rebuild {
            container: Container::Gzip { version: 1 },
            content_len: plan.sections.iter().map(|one| u64::from(one.plain_len - one.framing_len)).sum(),
            framing_len: 4 * 4096,
            side_len: plan.sections.iter().map(|one| u64::from(one.pieces_len + one.corrections_len)).sum(),
            plan_len: plan.encode().len() as u64,
        };
        (head, plan)
    }

    #[test]
    fn golden() {
        let (head, plan) = sample();
        assert_eq!(Rebuild::decode(&head.encode()), Ok(head));
        assert_eq!(Plan::decode(&plan.encode(), &head), Ok(plan.clone()));
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(&head.encode()), GOLDEN_HEAD);
        assert_eq!(crate::Digest::of(&plan.encode()).to_string(), GOLDEN_PLAN);
    }
    const GOLDEN_HEAD: &str = "545242440101018380ff03808001e3093d";
    const GOLDEN_PLAN: &str = "b3:6623527b7696fb13ae3d194bc70a770e1d9458024bf2bb8990d4830f3dba89c7";

    #[test]
    fn what_does_not_add_up_is_refused() {
        let (head, plan) = sample();
        for change in [
            |section: &mut Section| section.plain_len += 1,
            |section: &mut Section| section.framing_len += 1,
            |section: &mut Section| section.pieces_len -= 1,
            |section: &mut Section| section.packed_bits += 1,
            |section: &mut Section| section.member_offset = u64::MAX >> 20,
        ] {
            let mut plan = plan.clone();
            change(&mut plan.sections[1]);
            assert!(Plan::decode(&plan.encode(), &head).is_err());
        }
        let section = Section { plain_len: 30, framing_len: 10, ..Section::default() };
        let mut bytes = Vec::new();
        encode_pieces(&[(4, 20), (6, 0)], &mut bytes);
        assert_eq!(decode_pieces(&bytes, &section), Ok(vec![(4, 20), (6, 0)]));
        assert!(decode_pieces(&bytes, &Section { plain_len: 31, ..section }).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..200, byte: u8) {
            let (head, plan) = sample();
            let _ = Rebuild::decode(&bytes);
            let _ = Plan::decode(&bytes, &head);
            let _ = decode_pieces(&bytes, &plan.sections[0]);
            let mut damaged = plan.encode();
            let index = at % damaged.len();
            damaged[index] ^= byte;
            let _ = Plan::decode(&damaged, &head);
        }
    }
}
