//! Names of files without what changes from version to version.

/// The shortest run of hexadecimal digits that counts as a hash.
const MIN_HASH_LEN: usize = 6;
/// What may stand between two numbers of one version, as in `1.3.0rc1`.
const PRE_RELEASES: [&[u8]; 6] = [b"alpha", b"beta", b"post", b"dev", b"rc", b"b"];

/// The name with each version number and each hash replaced by `#`: `foo-1.2.3.dist-info` and `foo-1.3.0rc1.dist-info`
/// have the same stem, so have `libx-6cdc3b4a.so` and `libx-a1b2c3d4.so`. A hash is a word of at least six hexadecimal
/// digits, all in one case, of which one is a number and one is not; a version is a number and what numbers follow it after dots.
pub fn name_stem(name: &[u8]) -> Vec<u8> {
    let mut stem = Vec::with_capacity(name.len());
    let mut rest = name;
    let mut in_word = false;
    while let Some(first) = rest.first() {
        let word = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
        let taken = if !in_word && is_hash(&rest[..word]) { word } else { version_len(rest) };
        if taken > 0 {
            stem.push(b'#');
            in_word = true;
            rest = &rest[taken..];
        } else {
            stem.push(*first);
            in_word = first.is_ascii_alphanumeric();
            rest = &rest[1..];
        }
    }
    stem
}

fn is_hash(word: &[u8]) -> bool {
    let all = |digits: fn(&u8) -> bool| word.iter().all(digits);
    let hex = all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) || all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    word.len() >= MIN_HASH_LEN && hex && word.iter().any(u8::is_ascii_digit) && word.iter().any(u8::is_ascii_alphabetic)
}

/// How many bytes at the start are a version; 0 if it is none.
fn version_len(text: &[u8]) -> usize {
    let digits = |at: usize| text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut len = digits(0);
    while len > 0 {
        let dot = usize::from(text.get(len) == Some(&b'.'));
        let word = PRE_RELEASES.iter().find(|word| text[len + dot..].starts_with(word)).map_or(0, |word| word.len());
        let more = if dot + word > 0 { digits(len + dot + word) } else { 0 };
        if more == 0 {
            break;
        }
        len += dot + word + more;
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_hashes_are_replaced_and_nothing_else() {
        for (name, stem) in [
            ("foo-1.2.3.dist-info", "foo-#.dist-info"),
            ("foo-1.3.0rc1.dist-info", "foo-#.dist-info"),
            ("foo-1.3.0.post1.dist-info", "foo-#.dist-info"),
            ("libx-6cdc3b4a.so", "libx-#.so"),
            ("libx-a1b2c3d4.so", "libx-#.so"),
            ("libx-A1B2C3D4.so", "libx-#.so"),
            ("libssl.so.1.1", "libssl.so.#"),
            ("libssl.so.3", "libssl.so.#"),
            ("python3.11", "python#"),
            ("m.cpython-312-x86_64-linux-gnu.so", "m.cpython-#-x#_#-linux-gnu.so"),
            ("app.7f3e9c01b2.js", "app.#.js"),
            ("deface.txt", "deface.txt"),
            ("a1b2c3dx", "a#c#dx"),
            ("6cdc3b4", "#"),
            ("6cdc3", "#cdc#"),
            ("no.version", "no.version"),
            ("1.", "#."),
            ("", ""),
        ] {
            assert_eq!(String::from_utf8(name_stem(name.as_bytes())).unwrap(), stem, "{name}");
        }
        assert_eq!(name_stem(b"\xff1\xff"), b"\xff#\xff");
    }
}
