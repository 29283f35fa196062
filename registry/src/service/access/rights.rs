//! The words of access control: rights, what they are on, and who has them.

use std::fmt;
use std::str::FromStr;

use layer_format::reference::Repository;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Namespaces that hold states. Only their owner has rights there, whatever `*` is granted.
const STATES_PREFIX: &str = "states-";
/// The one of them that is everybody's.
pub(crate) const PUBLIC_STATES: &str = "states-public";
/// Where the states of a user are.
const STATES_OF_USER: &str = "states-of-";

/// Why a text is not one of these words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseAccessError {
    text: String,
    expected: &'static str,
}

fn wrong(text: &str, expected: &'static str) -> ParseAccessError {
    ParseAccessError { text: text.chars().take(80).collect(), expected }
}

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// Read: pull, run, list.
    Pull = 1,
    /// Write: push, move releases.
    Push = 2,
    /// Delete releases, images, blobs, states, models.
    Delete = 4,
    /// Grant rights to others; has all other rights, too.
    Admin = 8,
}

impl Right {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Pull, Self::Push, Self::Delete, Self::Admin];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Right {
    type Err = ParseAccessError;

    fn from_str(text: &str) -> Result<Self, ParseAccessError> {
        Self::ALL.into_iter().find(|right| right.name() == text).ok_or_else(|| wrong(text, "a right: pull, push, delete or admin"))
    }
}

/// A set of rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    /// All rights.
    pub const ALL: Self = Self(15);

    /// The set with these bits; unknown ones are left out.
    pub(crate) fn from_bits(bits: i64) -> Self {
        Self((bits & i64::from(Self::ALL.0)) as u8)
    }

    pub(crate) fn bits(self) -> i64 {
        self.0.into()
    }

    /// Whether it names this right.
    pub fn has(self, right: Right) -> bool {
        self.0 & right as u8 != 0
    }

    /// Whether whoever is granted the set has this right: an administrator has all.
    pub fn allows(self, right: Right) -> bool {
        self.has(right) || self.has(Right::Admin)
    }

    /// Whether there is none in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The rights that are in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The rights in it.
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.has(*right))
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        Self(rights.into_iter().fold(0, |bits, right| bits | right as u8))
    }
}

impl FromStr for Rights {
    type Err = ParseAccessError;

    /// `pull,push`.
    fn from_str(text: &str) -> Result<Self, ParseAccessError> {
        text.split(',').map(|part| part.trim().parse::<Right>()).collect()
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Right::name).collect();
        f.write_str(&names.join(","))
    }
}

/// What rights are on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// `*`: all repositories, but no one's private states.
    All,
    /// `tools/*`: all repositories whose names begin so, with the slash.
    Below(String),
    /// `tools/app`.
    Repository(Repository),
    /// `@metrics`: the server's metrics.
    Metrics,
    /// `@catalog`: the list of repositories, which shows what the caller may read.
    Catalog,
}

const TARGET: &str = "something that rights are on: `*`, a namespace such as tools/*, a repository such as tools/app, or @metrics";

impl Target {
    /// All of a namespace.
    pub fn namespace(name: &str) -> Self {
        Self::Below(format!("{name}/"))
    }

    /// The namespace that all of it lies in, if there is one.
    pub(crate) fn own_namespace(&self) -> Option<&str> {
        match self {
            Self::All | Self::Metrics | Self::Catalog => None,
            Self::Below(prefix) => prefix.split('/').next(),
            Self::Repository(repository) => Some(repository.namespace()),
        }
    }

    /// Whether it lies in a namespace of states that are somebody's own.
    pub(crate) fn is_private(&self) -> bool {
        self.own_namespace().is_some_and(|namespace| namespace.starts_with(STATES_PREFIX) && namespace != PUBLIC_STATES)
    }

    /// Whether all of `other` is in it, private states included.
    pub(crate) fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Metrics, Self::Metrics) | (Self::Catalog, Self::Catalog) => true,
            (Self::Metrics | Self::Catalog, _) | (_, Self::Metrics | Self::Catalog) => false,
            (Self::All, _) => true,
            (_, Self::All) => false,
            (Self::Below(prefix), Self::Below(other)) => other.starts_with(prefix.as_str()),
            (Self::Below(prefix), Self::Repository(other)) => other.as_str().starts_with(prefix.as_str()),
            (Self::Repository(one), Self::Repository(other)) => one == other,
            (Self::Repository(_), Self::Below(_)) => false,
        }
    }

    /// Whether a grant on it is one on all of `other`: `*` is not one on private states.
    pub(crate) fn grants(&self, other: &Self) -> bool {
        self.contains(other) && !(*self == Self::All && other.is_private())
    }

    /// Whether anything is in both.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.contains(other) || other.contains(self)
    }
}

impl FromStr for Target {
    type Err = ParseAccessError;

    fn from_str(text: &str) -> Result<Self, ParseAccessError> {
        match text {
            "*" => return Ok(Self::All),
            "@metrics" => return Ok(Self::Metrics),
            "@catalog" => return Ok(Self::Catalog),
            _ => {}
        }
        match text.strip_suffix("/*") {
            // Anything that can be a repository's name with one part more.
            Some(prefix) => match format!("{prefix}/x").parse::<Repository>() {
                Ok(_) => Ok(Self::Below(format!("{prefix}/"))),
                Err(_) => Err(wrong(text, TARGET)),
            },
            None => text.parse().map(Self::Repository).map_err(|_| wrong(text, TARGET)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Below(prefix) => write!(f, "{prefix}*"),
            Self::Repository(repository) => f.write_str(repository.as_str()),
            Self::Metrics => f.write_str("@metrics"),
            Self::Catalog => f.write_str("@catalog"),
        }
    }
}

/// Who rights are granted to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A user.
    User(String),
    /// A key.
    Robot(String),
    /// Everyone who has shown a password, a key or a token.
    Authenticated,
    /// Everyone.
    Anonymous,
}

impl FromStr for Subject {
    type Err = ParseAccessError;

    fn from_str(text: &str) -> Result<Self, ParseAccessError> {
        match text.split_once(':') {
            None if text == "anonymous" => Ok(Self::Anonymous),
            None if text == "authenticated" => Ok(Self::Authenticated),
            Some(("user", name)) if is_name(name) => Ok(Self::User(name.to_owned())),
            Some(("robot", name)) if is_name(name) => Ok(Self::Robot(name.to_owned())),
            _ => Err(wrong(text, "someone who has rights: user:NAME, robot:NAME, authenticated or anonymous")),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user:{name}"),
            Self::Robot(name) => write!(f, "robot:{name}"),
            Self::Authenticated => f.write_str("authenticated"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// What a key, or a token, may do at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// On what.
    pub target: Target,
    /// What.
    pub rights: Rights,
}

impl FromStr for Scope {
    type Err = ParseAccessError;

    /// `tools/*=pull,push`.
    fn from_str(text: &str) -> Result<Self, ParseAccessError> {
        let (target, rights) = text.split_once('=').ok_or_else(|| wrong(text, "a scope, such as tools/*=pull,push"))?;
        Ok(Self { target: target.parse()?, rights: rights.parse()? })
    }
}

/// Longest name of a user or key, in bytes.
const MAX_NAME_LEN: usize = 64;

/// Whether the text can be a user's or key's name: what a part of a repository's name can be.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME_LEN && !text.contains('/') && text.parse::<Repository>().is_ok()
}

/// The namespace of a user's states.
pub(crate) fn states_of_user(name: &str) -> String {
    format!("{STATES_OF_USER}{name}")
}

/// Whether a namespace is set apart for the server's own purposes.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.starts_with(STATES_PREFIX) || matches!(name, "library" | "anonymous" | "authenticated" | "robot" | "token" | "console" | "open")
}

macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Rights, Target, Subject);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for text in ["*", "tools/*", "tools/team/*", "tools/app", "a/b/c", "@metrics"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert_eq!("app".parse::<Target>().unwrap().to_string(), "library/app");
        for text in ["", "/*", "**", "tools/", "Tools/*", "tools/**", "../*", "tools/*/x", "@users", "a//b"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
        for text in ["user:alice", "robot:ci", "authenticated", "anonymous"] {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
        for text in ["alice", "user:", "user:a/b", "user:A", "robot:..", "group:x"] {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
        assert_eq!("push, pull".parse::<Rights>().unwrap().to_string(), "pull,push");
        assert!("pull,fly".parse::<Rights>().is_err() && "".parse::<Rights>().is_err());
    }

    #[test]
    fn what_is_in_what() {
        let target = |text: &str| text.parse::<Target>().unwrap();
        for (one, other, contains, overlaps) in [
            ("*", "tools/app", true, true),
            ("tools/*", "tools/app", true, true),
            ("tools/*", "tools/a/b", true, true),
            ("tools/*", "toolsmith/app", false, false),
            ("tools/*", "tools/a/*", true, true),
            ("tools/a/*", "tools/*", false, true),
            ("tools/app", "tools/*", false, true),
            ("tools/app", "tools/app", true, true),
            ("tools/app", "tools/app/x", false, false),
            ("*", "@metrics", false, false),
            ("tools/*", "*", false, true),
        ] {
            assert_eq!((target(one).contains(&target(other)), target(one).overlaps(&target(other))), (contains, overlaps), "{one} {other}");
        }
        assert!(target("*").grants(&target("states-public/default")) && !target("*").grants(&target("states-of-alice/default")));
        assert!(target("states-of-alice/*").grants(&target("states-of-alice/default")));
    }
}
