//! Splits the bytes of a tar into the contents of its files and all else (*framing*: headers, names, padding, the end), in
//! pieces as they come. Put together in the same order they are the tar, whatever it is: what is not understood goes to one
//! side or the other, and only what is shared with other tars suffers.

use crate::tar_import::header::{BLOCK_LEN, Header};

/// A part of a tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Of no file.
    Framing(&'a [u8]),
    /// Of a file.
    Content(&'a [u8]),
    /// The file ends here.
    Border,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a header block.
    Header,
    /// In a payload or padding.
    Framing { left: u64 },
    /// In a file, of which this much padding follows.
    Content { left: u64, padding: u64 },
    /// Behind what is no header.
    Lost,
}

/// See the module.
#[derive(Debug)]
pub struct TarSplitter {
    state: State,
    block: [u8; BLOCK_LEN],
    filled: usize,
}

impl Default for TarSplitter {
    fn default() -> Self {
        Self { state: State::Header, block: [0; BLOCK_LEN], filled: 0 }
    }
}

/// Whether a stream with this beginning is a tar.
pub fn is_tar(start: &[u8]) -> bool {
    start.first_chunk().is_some_and(|block| Header::new(block).is_some())
}

impl TarSplitter {
    /// Splits the next bytes.
    pub fn split<'a>(&mut self, mut bytes: &'a [u8], mut each: impl FnMut(Piece<'a>)) {
        while !bytes.is_empty() {
            let wanted = match self.state {
                State::Header => (BLOCK_LEN - self.filled) as u64,
                State::Framing { left } | State::Content { left, .. } => left,
                State::Lost => u64::MAX,
            };
            let (now, later) = bytes.split_at(wanted.min(bytes.len() as u64) as usize);
            bytes = later;
            match &mut self.state {
                State::Header => {
                    each(Piece::Framing(now));
                    self.block[self.filled..self.filled + now.len()].copy_from_slice(now);
                    self.filled += now.len();
                    if self.filled == BLOCK_LEN {
                        self.filled = 0;
                        self.state = self.after_header();
                    }
                }
                State::Framing { left } => {
                    each(Piece::Framing(now));
                    *left -= now.len() as u64;
                    if *left == 0 {
                        self.state = State::Header;
                    }
                }
                State::Content { left, padding } => {
                    each(Piece::Content(now));
                    *left -= now.len() as u64;
                    if *left == 0 {
                        each(Piece::Border);
                        self.state = if *padding > 0 { State::Framing { left: *padding } } else { State::Header };
                    }
                }
                State::Lost => each(Piece::Content(now)),
            }
        }
    }

    fn after_header(&self) -> State {
        if self.block.iter().all(|byte| *byte == 0) {
            return State::Header;
        }
        let Some(header) = Header::new(&self.block) else { return State::Lost };
        let Ok(len) = header.size() else { return State::Lost };
        let padded = len.checked_next_multiple_of(BLOCK_LEN as u64).unwrap_or(u64::MAX);
        match header.kind() {
            // Links, devices and directories have no payload, whatever they say.
            b'1'..=b'6' => State::Header,
            _ if len == 0 => State::Header,
            0 | b'0' | b'7' | b'S' => State::Content { left: len, padding: padded - len },
            _ => State::Framing { left: padded },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tar(files: &[Vec<u8>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (at, file) in files.iter().enumerate() {
            let mut header = tar::Header::new_gnu();
            header.set_size(file.len() as u64);
            header.set_mode(0o644);
            // A long name has a header of its own.
            let name = if at % 3 == 0 { format!("{}/{at}", "long".repeat(60)) } else { format!("file-{at}") };
            builder.append_data(&mut header, name, &file[..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn split(bytes: &[u8], piece_len: usize) -> (Vec<u8>, Vec<Vec<u8>>, Vec<u8>) {
        let (mut framing, mut files, mut all) = (Vec::new(), vec![Vec::new()], Vec::new());
        let mut splitter = TarSplitter::default();
        for piece in bytes.chunks(piece_len.max(1)) {
            splitter.split(piece, |piece| match piece {
                Piece::Framing(bytes) => {
                    framing.extend_from_slice(bytes);
                    all.extend_from_slice(bytes);
                }
                Piece::Content(bytes) => {
                    files.last_mut().unwrap().extend_from_slice(bytes);
                    all.extend_from_slice(bytes);
                }
                Piece::Border => files.push(Vec::new()),
            });
        }
        files.pop_if(|last| last.is_empty());
        (framing, files, all)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn contents_are_apart_and_all_comes_back(files in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..2000), 0..12), piece_len in 1usize..3000) {
            let bytes = tar(&files);
            let (framing, contents, all) = split(&bytes, piece_len);
            prop_assert_eq!(&all, &bytes);
            let expected: Vec<Vec<u8>> = files.into_iter().filter(|file| !file.is_empty()).collect();
            prop_assert_eq!(&contents, &expected);
            prop_assert_eq!(framing.len() + expected.iter().map(Vec::len).sum::<usize>(), bytes.len());
        }

        #[test]
        fn anything_else_comes_back_too(bytes in proptest::collection::vec(any::<u8>(), 0..5000), piece_len in 1usize..3000, at in 0usize..4000, cut in 0usize..4000) {
            prop_assert_eq!(&split(&bytes, piece_len).2, &bytes);
            let mut damaged = tar(&[vec![1; 700], vec![2; 600], Vec::new()]);
            let index = at % damaged.len();
            damaged[index] ^= 0x15;
            damaged.truncate(cut.max(1));
            prop_assert_eq!(&split(&damaged, piece_len).2, &damaged);
        }
    }
}
