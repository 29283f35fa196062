//! Digests as OCI writes them: `sha256:` and 64 hex digits, or `sha512:` and 128.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A hash function that names content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// SHA-256: every client knows it.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Its registered name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Bytes of a hash.
    pub const fn output_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// By its registered name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Sha256, Self::Sha512].into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// Why a text is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseOciDigestError {
    /// No hash function that we know.
    #[error("a digest begins with sha256: or sha512:")]
    Algorithm,
    /// Not the hash.
    #[error("after the colon of a digest are 64 (sha256) or 128 (sha512) lower-case hex digits")]
    Hex,
}

/// The digest of a blob or manifest: hash function and hash, checked.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OciDigest(String);

impl OciDigest {
    /// The digest with this hash; `None` if it has another length than the function's.
    pub fn new(algorithm: Algorithm, hash: &[u8]) -> Option<Self> {
        use fmt::Write;
        if hash.len() != algorithm.output_len() {
            return None;
        }
        let mut text = format!("{}:", algorithm.name());
        for byte in hash {
            let _ = write!(text, "{byte:02x}");
        }
        Some(Self(text))
    }

    /// `sha256:…` or `sha512:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha512:") { Algorithm::Sha512 } else { Algorithm::Sha256 }
    }

    /// The hex digits.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }
}

impl FromStr for OciDigest {
    type Err = ParseOciDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, hex) = text.split_once(':').ok_or(ParseOciDigestError::Algorithm)?;
        let algorithm = Algorithm::from_name(name).ok_or(ParseOciDigestError::Algorithm)?;
        let is_hex = hex.len() == 2 * algorithm.output_len() && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_hex { Ok(Self(text.to_owned())) } else { Err(ParseOciDigestError::Hex) }
    }
}

impl fmt::Display for OciDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OciDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for OciDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for OciDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_names_a_hash_is_a_digest() {
        let (short, long) = ("ab".repeat(32), "0f".repeat(64));
        let digest: OciDigest = format!("sha256:{short}").parse().unwrap();
        assert_eq!((digest.algorithm(), digest.hex()), (Algorithm::Sha256, short.as_str()));
        assert_eq!(OciDigest::new(Algorithm::Sha256, &[0xab; 32]), Some(digest));
        assert_eq!(OciDigest::new(Algorithm::Sha512, &[0xab; 32]), None);
        assert_eq!(format!("sha512:{long}").parse::<OciDigest>().unwrap().algorithm(), Algorithm::Sha512);
        for bad in [
            String::new(),
            "sha256".into(),
            format!("sha256:{long}"),
            format!("sha512:{short}"),
            format!("sha256:{}", short.to_uppercase()),
            format!("md5:{short}"),
            format!("SHA256:{short}"),
            format!("sha256:{short}/.."),
            format!("sha256:{}é", &short[2..]),
            "sha256:baddigeststring".into(),
        ] {
            assert!(bad.parse::<OciDigest>().is_err(), "{bad}");
        }
    }
}
