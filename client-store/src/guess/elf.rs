//! What an ELF file needs besides itself: the parts of it that the loader reads at once, and the libraries it names.
//!
//! Works on the part of a file that is here, and says which part it needs. All is bounds-checked by the `object` crate
//! and by [`View`]; a file that is no valid ELF, or a hostile one, needs nothing.

use std::ops::Range;

use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, elf};

/// Most program headers looked at.
const MAX_SEGMENTS: usize = 64;
/// Most libraries named by one file.
const MAX_NEEDED: usize = 256;
/// Most bytes of the dynamic section and of one name.
const MAX_DYNAMIC: u64 = 64 << 10;
const MAX_NAME: u64 = 4096;

/// Parts of a file that are here.
pub(crate) trait View {
    /// These bytes, or `None` if some are not here, or beyond the end.
    fn bytes(&self, range: Range<u64>) -> Option<Vec<u8>>;
}

/// A part of a file that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Offset of its first byte.
    pub(crate) start: u64,
    /// Offset behind its last byte.
    pub(crate) end: u64,
    /// Whether the loader itself touches about all of it: tables at the start, and what is relocated.
    pub(crate) eager: bool,
}

/// What an ELF file says of itself at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// What is loaded, in file order.
    pub(crate) segments: Vec<Segment>,
    /// The program interpreter's path, where it is.
    interpreter: Option<Range<u64>>,
    dynamic: Option<Range<u64>>,
    /// (virtual address, offset, length) of what is loaded.
    map: Vec<(u64, u64, u64)>,
    is_64: bool,
    endian: Endianness,
}

/// What an ELF file names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// Libraries, as they are named.
    pub(crate) needed: Vec<Vec<u8>>,
    /// Folders to search, as they are written: `$ORIGIN` is not replaced.
    pub(crate) search: Vec<Vec<u8>>,
    /// The program interpreter.
    pub(crate) interpreter: Option<Vec<u8>>,
}

/// Reads the start of a file; `None` if it is not ELF.
pub(crate) fn head(start: &[u8]) -> Option<Head> {
    if !start.starts_with(b"\x7fELF") {
        return None;
    }
    match start.get(4)? {
        1 => parse::<elf::FileHeader32<Endianness>>(start, false),
        2 => parse::<elf::FileHeader64<Endianness>>(start, true),
        _ => None,
    }
}

fn parse<H: FileHeader<Endian = Endianness>>(start: &[u8], is_64: bool) -> Option<Head> {
    let header = H::parse(start).ok()?;
    let endian = header.endian().ok()?;
    let mut head = Head { is_64, endian, ..Head::default() };
    for segment in header.program_headers(endian, start).ok()?.iter().take(MAX_SEGMENTS) {
        let (offset, len): (u64, u64) = (segment.p_offset(endian).into(), segment.p_filesz(endian).into());
        let Some(end) = offset.checked_add(len) else { continue };
        match segment.p_type(endian) {
            elf::PT_LOAD if len > 0 => {
                let flags = segment.p_flags(endian);
                let is_code = flags.0 & elf::PF_X.0 != 0;
                // The first part without code holds the tables of symbols and relocations; what can be written is relocated.
                let eager = !is_code && (head.segments.is_empty() || flags.0 & elf::PF_W.0 != 0);
                head.segments.push(Segment { start: offset, end, eager });
                head.map.push((segment.p_vaddr(endian).into(), offset, len));
            }
            elf::PT_DYNAMIC => head.dynamic = Some(offset..end.min(offset.saturating_add(MAX_DYNAMIC))),
            elf::PT_INTERP => head.interpreter = Some(offset..end.min(offset.saturating_add(MAX_NAME))),
            _ => {}
        }
    }
    Some(head)
}

impl Head {
    fn offset_of(&self, address: u64) -> Option<u64> {
        self.map.iter().find_map(|(start, offset, len)| {
            let into = address.checked_sub(*start).filter(|into| into < len)?;
            offset.checked_add(into)
        })
    }

    /// What the file names. `Err` with the part of it that is needed to tell.
    pub(crate) fn names(&self, view: &impl View) -> Result<Names, Range<u64>> {
        let mut names = Names::default();
        if let Some(range) = &self.interpreter {
            names.interpreter = Some(text(&view.bytes(range.clone()).ok_or(range.clone())?));
        }
        let Some(range) = &self.dynamic else { return Ok(names) };
        let bytes = view.bytes(range.clone()).ok_or(range.clone())?;
        let tags = match self.is_64 {
            true => tags::<elf::Dyn64<Endianness>>(&bytes, self.endian),
            false => tags::<elf::Dyn32<Endianness>>(&bytes, self.endian),
        };
        let find = |wanted: elf::DynamicTag| tags.iter().find(|(tag, _)| *tag == wanted.0).map(|(_, value)| *value);
        let (Some(strings), Some(len)) = (find(elf::DT_STRTAB).and_then(|address| self.offset_of(address)), find(elf::DT_STRSZ)) else {
            return Ok(names);
        };
        let string = |at: u64| {
            let start = strings.saturating_add(at.min(len));
            let end = strings.saturating_add(len).min(start.saturating_add(MAX_NAME));
            // A name is short, and the table long: the part that is here may do.
            let short = start..end.min(start.saturating_add(256));
            let found = view.bytes(short.clone()).filter(|bytes| bytes.contains(&0) || short.end == end);
            found.or_else(|| view.bytes(start..end)).map(|bytes| text(&bytes)).ok_or(start..end)
        };
        for (tag, value) in tags.iter().take(4 * MAX_NEEDED) {
            match *tag {
                tag if tag == elf::DT_NEEDED.0 && names.needed.len() < MAX_NEEDED => names.needed.push(string(*value)?),
                tag if tag == elf::DT_RPATH.0 || tag == elf::DT_RUNPATH.0 => {
                    names.search.extend(string(*value)?.split(|byte| *byte == b':').filter(|part| !part.is_empty()).map(<[u8]>::to_vec));
                }
                _ => {}
            }
        }
        Ok(names)
    }
}

fn tags<D: Dyn<Endian = Endianness> + object::Pod>(bytes: &[u8], endian: Endianness) -> Vec<(i64, u64)> {
    let count = bytes.len() / size_of::<D>();
    let Ok((list, _)) = object::pod::slice_from_bytes::<D>(bytes, count) else { return Vec::new() };
    let pairs = list.iter().map(|item| (item.d_tag(endian), item.d_val(endian).into()));
    pairs.map(|(tag, value)| (tag.0, value)).take_while(|(tag, _)| *tag != 0).collect()
}

/// Up to the first zero byte.
fn text(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of which only some parts are here.
    struct Parts<'a>(&'a [u8], Vec<Range<u64>>);

    impl View for Parts<'_> {
        fn bytes(&self, range: Range<u64>) -> Option<Vec<u8>> {
            let here = self.1.iter().any(|part| part.start <= range.start && range.end <= part.end);
            here.then(|| self.0.get(range.start as usize..range.end as usize).map(<[u8]>::to_vec))?
        }
    }

    fn own() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn reads_this_very_program_and_says_which_part_it_needs() {
        let file = own();
        let found = head(&file[..4096]).unwrap();
        assert!(found.segments.iter().any(|segment| segment.eager) && found.segments.iter().any(|segment| !segment.eager));
        let mut parts = Parts(&file, std::iter::once(0..4096).collect());
        let names = loop {
            match found.names(&parts) {
                Ok(names) => break names,
                Err(range) => {
                    assert!(parts.bytes(range.clone()).is_none() && range.end <= file.len() as u64, "{range:?}");
                    parts.1.push(range);
                }
            }
        };
        assert!(names.needed.iter().any(|name| name.starts_with(b"libc.so")), "{names:?}");
        assert!(names.interpreter.is_some_and(|path| path.starts_with(b"/")));
    }

    #[test]
    fn hostile_files_need_nothing_and_do_no_harm() {
        let file = own();
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize
        };
        for _ in 0..3000 {
            let mut start = file[..4096].to_vec();
            for _ in 0..1 + random() % 8 {
                let at = random() % 1024;
                start[at] = random() as u8;
            }
            start.truncate(random() % 4097);
            let Some(found) = head(&start) else { continue };
            // The rest of the file is as it was, or not there.
            let all = Parts(&file, std::iter::once(0..file.len() as u64).collect());
            if let Ok(names) = found.names(&all) {
                assert!(names.needed.len() <= MAX_NEEDED);
            }
            let _ = found.names(&Parts(&start, std::iter::once(0..start.len() as u64).collect()));
        }
        assert_eq!(head(b""), None);
        assert_eq!(head(b"\x7fELF"), None);
    }
}
