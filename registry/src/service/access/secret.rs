//! Secrets of keys: `trk_`, 8 hex digits that tell keys apart, `_`, and 64 hex digits, all random. 256 random bits are not
//! guessed, so a fast hash keeps them, and a lookup by that hash tells nothing by its time.

/// How every secret begins.
const PREFIX: &str = "trk_";
/// Length of what may be shown: [`PREFIX`] and 8 digits.
const SHOWN_LEN: usize = 12;
const LEN: usize = SHOWN_LEN + 1 + 64;
/// What the name of a repository for states is made from, together with the credential (docs/http-api.md).
const OWNER_DOMAIN: &[u8] = b"turbo state owner";

/// A new secret.
pub(crate) fn generate() -> String {
    format!("{PREFIX}{:08x}_{}", rand::random::<u32>(), hex(&rand::random::<[u8; 32]>()))
}

/// What of a secret may be shown.
pub(crate) fn shown(secret: &str) -> &str {
    secret.get(..SHOWN_LEN).unwrap_or_default()
}

/// Whether the text has the form of a secret.
pub(crate) fn is_secret(text: &str) -> bool {
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    text.len() == LEN
        && text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).is_some_and(|(shown, rest)| shown.len() == 8 && is_hex(shown) && is_hex(rest))
}

/// The hash under which a secret is kept.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    *blake3::hash(secret.as_bytes()).as_bytes()
}

/// The namespace in which clients keep the states of this credential.
pub(crate) fn states_namespace(credential: &str) -> String {
    let hash = blake3::Hasher::new().update(OWNER_DOMAIN).update(credential.as_bytes()).finalize();
    format!("states-{}", &hash.to_hex()[..32])
}

/// Bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_have_a_form_and_are_all_different() {
        let (one, other) = (generate(), generate());
        assert_ne!(one, other);
        assert!(is_secret(&one) && one.starts_with(shown(&one)) && shown(&one).len() == 12, "{one}");
        for text in ["", "trk_", &one[1..], &one[..one.len() - 1], &one.to_uppercase(), &one.replace('_', "-"), "trk_é"] {
            assert!(!is_secret(text), "{text}");
        }
        assert_eq!(shown("x"), "");
    }

    #[test]
    fn the_namespace_of_states_is_the_one_that_clients_compute() {
        // The same as in cli/src/states/sharing.rs, whose test has the same line.
        assert_eq!(states_namespace("a token"), format!("states-{}", &layer_format::Digest::of(b"turbo state ownera token").to_hex()[..32]));
    }
}
