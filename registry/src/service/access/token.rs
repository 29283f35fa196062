//! Bearer tokens: JSON web tokens (RFC 7519) of one form, HS256 by a key of ours and nothing else.
//!
//! The header's algorithm is compared, never followed; a header with anything in it but `alg`, `typ` and `kid` is refused, so a
//! key or a link to one that a token brings along is never looked at. A token names the generation of its account, or its
//! key: whoever takes rights away need not wait for its end.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::rights::Scope;
use crate::db::signing_key::SigningKeyRow;

/// Who issues tokens, and for whom.
pub(crate) const SERVICE: &str = "turbo-registry";
/// Longest token, in bytes: a header of an HTTP request.
const MAX_LEN: usize = 16 << 10;
/// How much the clocks of two servers may differ.
const SKEW_S: i64 = 30;
/// For how long one key signs.
pub(crate) const SIGNS_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

/// What a token says. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) aud: String,
    /// `user:NAME`, `robot:NAME` or `anonymous`.
    pub(crate) sub: String,
    pub(crate) iat: i64,
    pub(crate) nbf: i64,
    pub(crate) exp: i64,
    /// Tells tokens apart.
    pub(crate) jti: String,
    /// The generation of the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<i64>,
    /// Name and prefix of the key that it was got with: ends with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<(String, String)>,
    /// What it was asked for; everything if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) access: Option<Vec<Scope>>,
}

impl Claims {
    /// Claims of a token that is issued now.
    pub(crate) fn new(sub: String, now_s: i64, life: Duration) -> Self {
        let exp = now_s.saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
        let jti = format!("{:032x}", rand::random::<u128>());
        Self { iss: SERVICE.into(), aud: SERVICE.into(), sub, iat: now_s, nbf: now_s - SKEW_S, exp, jti, generation: None, key: None, access: None }
    }
}

/// Why a token is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// It is not signed by this registry, or not of its form.
    #[error("the token is not one of this registry's")]
    Invalid,
    /// Its time is over, or has not come.
    #[error("the token has expired")]
    Expired,
}

fn mac(key: &SigningKeyRow, signed: &[u8]) -> Result<Hmac<Sha256>, TokenError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.secret).map_err(|_| TokenError::Invalid)?;
    mac.update(signed);
    Ok(mac)
}

fn encode<T: Serialize>(value: &T) -> Result<String, TokenError> {
    serde_json::to_vec(value).map(|json| URL_SAFE_NO_PAD.encode(json)).map_err(|_| TokenError::Invalid)
}

fn decode<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, TokenError> {
    let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Invalid)?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Invalid)
}

/// A signed token.
pub(crate) fn sign(key: &SigningKeyRow, claims: &Claims) -> Result<String, TokenError> {
    let header = Header { alg: "HS256".into(), typ: "JWT".into(), kid: key.id.clone() };
    let signed = format!("{}.{}", encode(&header)?, encode(claims)?);
    let signature = mac(key, signed.as_bytes())?.finalize().into_bytes();
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// What a token says, if one of these keys signed it and its time is now.
pub(crate) fn verify(keys: &[SigningKeyRow], token: &str, now_s: i64) -> Result<Claims, TokenError> {
    if token.len() > MAX_LEN {
        return Err(TokenError::Invalid);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Invalid)?;
    let (header, claims) = signed.split_once('.').ok_or(TokenError::Invalid)?;
    let header: Header = decode(header)?;
    if header.alg != "HS256" || header.typ != "JWT" {
        return Err(TokenError::Invalid);
    }
    let key = keys.iter().find(|key| key.id == header.kid).ok_or(TokenError::Invalid)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Invalid)?;
    mac(key, signed.as_bytes())?.verify_slice(&signature).map_err(|_| TokenError::Invalid)?;
    let claims: Claims = decode(claims)?;
    if claims.iss != SERVICE || claims.aud != SERVICE {
        return Err(TokenError::Invalid);
    }
    match claims.nbf <= now_s && now_s < claims.exp {
        true => Ok(claims),
        false => Err(TokenError::Expired),
    }
}

/// The key that signs now, if it is not too old for that.
pub(crate) fn current(keys: &[SigningKeyRow], now_ms: i64) -> Option<&SigningKeyRow> {
    let oldest = now_ms.saturating_sub(SIGNS_FOR.as_millis() as i64);
    keys.first().filter(|key| key.created_at > oldest)
}

/// A new key.
pub(crate) fn new_key(now_ms: i64) -> SigningKeyRow {
    SigningKeyRow { id: super::secret::hex(&rand::random::<[u8; 8]>()), secret: rand::random(), created_at: now_ms }
}

/// A token, to be shown to no one.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Issued {
    pub(crate) token: String,
    pub(crate) life: Duration,
    pub(crate) issued_s: i64,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("life", &self.life).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: i64 = 1_800_000_000;

    fn forge(key: &SigningKeyRow, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encode(header).unwrap(), encode(claims).unwrap());
        let signature = mac(key, signed.as_bytes()).unwrap().finalize().into_bytes();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn a_token_says_what_was_signed_while_its_time_lasts() {
        let keys = [new_key(2), new_key(1)];
        let claims = Claims { generation: Some(7), ..Claims::new("user:alice".into(), NOW, Duration::from_secs(300)) };
        for key in &keys {
            let token = sign(key, &claims).unwrap();
            assert_eq!(verify(&keys, &token, NOW).unwrap(), claims);
            assert_eq!(verify(&keys, &token, NOW + 299).unwrap(), claims);
            assert_eq!(verify(&keys, &token, NOW + 300), Err(TokenError::Expired));
            assert_eq!(verify(&keys, &token, NOW - SKEW_S - 1), Err(TokenError::Expired), "nbf");
            assert_eq!(verify(&[], &token, NOW), Err(TokenError::Invalid));
            assert_eq!(verify(&[new_key(3)], &token, NOW), Err(TokenError::Invalid));
        }
    }

    #[test]
    fn forged_tokens_are_refused() {
        let key = new_key(1);
        let keys = std::slice::from_ref(&key);
        let claims = serde_json::to_value(Claims::new("user:alice".into(), NOW, Duration::from_secs(300))).unwrap();
        let header = json!({"alg": "HS256", "typ": "JWT", "kid": key.id});
        assert!(verify(keys, &forge(&key, &header, &claims), NOW).is_ok(), "the forger can forge");
        let with = |value: &Value, name: &str, to: Value| {
            let mut value = value.clone();
            value[name] = to;
            value
        };
        let own = new_key(1);
        let jwk = json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(own.secret)});
        for (what, token) in [
            ("another key under the same id", forge(&SigningKeyRow { id: key.id.clone(), ..own.clone() }, &header, &claims)),
            ("a key that it brings along", forge(&own, &with(&with(&header, "jwk", jwk), "kid", json!(own.id)), &claims)),
            ("a key that it brings along beside ours", forge(&key, &with(&header, "jwk", json!({})), &claims)),
            ("a link to a key", forge(&key, &with(&header, "jku", json!("https://example.org")), &claims)),
            ("no algorithm", forge(&key, &with(&header, "alg", json!("none")), &claims)),
            ("no algorithm, in other letters", forge(&key, &with(&header, "alg", json!("nOnE")), &claims)),
            ("another algorithm", forge(&key, &with(&header, "alg", json!("HS512")), &claims)),
            ("another audience", forge(&key, &header, &with(&claims, "aud", json!("other")))),
            ("several audiences", forge(&key, &header, &with(&claims, "aud", json!([SERVICE, "other"])))),
            ("another issuer", forge(&key, &header, &with(&claims, "iss", json!("other")))),
            ("no id of a key", forge(&key, &json!({"alg": "HS256", "typ": "JWT"}), &claims)),
        ] {
            assert_eq!(verify(keys, &token, NOW), Err(TokenError::Invalid), "{what}");
        }
        let good = forge(&key, &header, &claims);
        let (signed, signature) = good.rsplit_once('.').unwrap();
        for token in ["", ".", "..", signed, &format!("{signed}."), &format!("{signed}.{}", &signature[..42]), &format!("{good}="), &"a".repeat(1 << 20)] {
            assert!(verify(keys, token, NOW).is_err(), "{token:.80}");
        }
        // No byte of it can be changed.
        for at in 0..good.len() {
            let mut changed = good.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(verify(keys, &String::from_utf8(changed).unwrap(), NOW).is_err() || good.as_bytes()[at] == b'A', "byte {at}");
        }
    }

    #[test]
    fn old_keys_verify_and_do_not_sign() {
        let month = SIGNS_FOR.as_millis() as i64;
        let keys = [new_key(1000)];
        assert!(current(&keys, 1000 + month - 1).is_some() && current(&keys, 1000 + month).is_none() && current(&[], 0).is_none());
    }
}
