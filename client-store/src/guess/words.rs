//! Files name the files that they use: modules in byte code and sources, scripts their interpreter, configurations their
//! parts. The words of a file's content that are names of what lies beside it, or in a folder that the application has
//! searched, are therefore good guesses.

use std::collections::HashSet;

/// Shortest and longest word that may be a name.
const WORD_LEN: std::ops::RangeInclusive<usize> = 2..=48;
/// Most different words of one file.
const MAX_WORDS: usize = 4096;

/// The different words of `content`, in order: runs of letters, digits, `_` and `-`. Parts of a word with dots are words
/// of their own.
pub(crate) fn words(content: &[u8]) -> Vec<&[u8]> {
    let mut seen = HashSet::new();
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let all = content.split(|byte| !is_part(byte)).filter(|word| WORD_LEN.contains(&word.len()) && !word.iter().all(u8::is_ascii_digit));
    all.filter(|word| seen.insert(*word)).take(MAX_WORDS).collect()
}

/// By which word a file is named: its name up to the first dot that is not the first character.
pub(crate) fn stem(name: &[u8]) -> &[u8] {
    let dot = name.iter().skip(1).position(|byte| *byte == b'.').map(|at| at + 1);
    &name[..dot.unwrap_or(name.len())]
}

/// What kind of file it is: its name from the last dot on, without digits. Files of one kind are used alike.
pub(crate) fn kind(name: &[u8]) -> Vec<u8> {
    let start = match name.iter().rposition(|byte| *byte == b'.') {
        Some(0) | None => return Vec::new(),
        Some(dot) if name[dot + 1..].iter().all(u8::is_ascii_digit) => match name.windows(4).position(|part| part == b".so.") {
            Some(library) => library,
            None => dot,
        },
        Some(dot) => dot,
    };
    name[start..].iter().copied().filter(|byte| !byte.is_ascii_digit() && *byte != b'.').collect()
}

/// The interpreter and the arguments that a script's first line names.
pub(crate) fn interpreter(content: &[u8]) -> Vec<&[u8]> {
    let Some(line) = content.strip_prefix(b"#!").and_then(|rest| rest.split(|byte| *byte == b'\n').next()) else { return Vec::new() };
    line[..line.len().min(256)].split(u8::is_ascii_whitespace).filter(|part| !part.is_empty()).collect()
}

/// Whether a file of this name, if it stands in a folder that is named, is what the name means.
pub(crate) fn stands_for_folder(name: &[u8]) -> bool {
    matches!(stem(name), b"__init__" | b"__main__" | b"index" | b"main" | b"package" | b"mod" | b"init")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_content() {
        let found = words(b"\xda\x05numpy\x00import scipy.linalg 1234 a \xffscipy");
        assert_eq!(found, [&b"numpy"[..], b"import", b"scipy", b"linalg"]);
        assert_eq!((stem(b"_fblas.cpython-311-x86_64-linux-gnu.so"), stem(b".hidden.x"), stem(b"plain")), (&b"_fblas"[..], &b".hidden"[..], &b"plain"[..]));
        assert_eq!((kind(b"libm.so.6"), kind(b"a.cpython-311.pyc"), kind(b"README"), kind(b".bashrc")), (b"so".to_vec(), b"pyc".to_vec(), vec![], vec![]));
        assert_eq!(interpreter(b"#! /usr/bin/env python3\nx"), [&b"/usr/bin/env"[..], b"python3"]);
        assert!(interpreter(b"ELF").is_empty() && interpreter(b"#!").is_empty());
    }
}
