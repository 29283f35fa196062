//! Text from inside, made fit for a terminal.

/// The text without control characters: an escape sequence in a name or message must not reach the user's terminal.
/// They come out as `\u{1b}`; line breaks and tabs as `\n` and `\t`.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Besides the controls: marks that change the order in which what follows is shown.
        if c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn escape_sequences_are_shown_not_obeyed() {
        assert_eq!(printable("a\u{1b}]52;c;eA==\u{7}b\u{9b}2J\r\n"), "a\\u{1b}]52;c;eA==\\u{7}b\\u{9b}2J\\r\\n");
        assert_eq!(printable("x\u{202e}gpj.exe"), "x\\u{202e}gpj.exe");
        assert_eq!(printable("Grüße, 世界"), "Grüße, 世界");
    }
}
