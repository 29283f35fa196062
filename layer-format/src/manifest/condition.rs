//! Conditions on the host on which an image is started.

use serde::{Deserialize, Serialize};

use crate::codec::FormatError;

/// How deep conditions may nest.
pub const MAX_CONDITION_DEPTH: usize = 16;

/// A condition on the running host. A layer that has one takes part only where it holds.
///
/// A requirement is `KEY:VALUE`: `architecture:x86_64`, `kernel:>=6.1`, `glibc:>=2.36`, `distro:debian`, `os:debian12`,
/// `feature:userns`, `privilege:root`, `file:/path` (the host has it), `env:NAME` or `env:NAME=VALUE`. What a key means is
/// decided where it is evaluated; one that is not known there does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// A requirement holds.
    Host(String),
    /// Each of these holds.
    All(Vec<Condition>),
    /// At least one of these holds.
    Any(Vec<Condition>),
    /// This does not hold.
    Not(Box<Condition>),
}

impl Condition {
    /// Whether it holds, given what single requirements do.
    pub fn holds(&self, requirement: &impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Host(text) => requirement(text),
            Self::All(parts) => parts.iter().all(|part| part.holds(requirement)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(requirement)),
            Self::Not(part) => !part.holds(requirement),
        }
    }

    /// Checks depth and form.
    pub(super) fn check(&self, depth: usize) -> Result<(), FormatError> {
        if depth > MAX_CONDITION_DEPTH {
            return Err(FormatError::TooLarge { what: "depth of a condition", value: depth as u64, max: MAX_CONDITION_DEPTH as u64 });
        }
        match self {
            Self::Host(text) => check_requirement(text),
            Self::All(parts) | Self::Any(parts) => parts.iter().try_for_each(|part| part.check(depth + 1)),
            Self::Not(part) => part.check(depth + 1),
        }
    }
}

/// Whether a requirement has the form `KEY:VALUE`.
pub(super) fn check_requirement(text: &str) -> Result<(), FormatError> {
    let key = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    match text.split_once(':') {
        Some((name, value)) if key(name) && !value.is_empty() && !value.contains('\0') => Ok(()),
        _ => Err(FormatError::invalid("requirement", "a requirement is KEY:VALUE, such as kernel:>=6.1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_nest_and_are_bounded() {
        let host = |text: &str| Condition::Host(text.into());
        let condition = Condition::All(vec![host("a:1"), Condition::Not(Box::new(host("b:1"))), Condition::Any(vec![host("c:1"), host("d:1")])]);
        assert!(condition.check(0).is_ok());
        assert!(condition.holds(&|text| text == "a:1" || text == "d:1"));
        assert!(!condition.holds(&|text| text != "c:1"));
        assert!(Condition::All(vec![]).holds(&|_| false) && !Condition::Any(vec![]).holds(&|_| true));
        let deep = (0..=MAX_CONDITION_DEPTH).fold(host("a:1"), |inner, _| Condition::Not(Box::new(inner)));
        assert!(deep.check(0).is_err());
        for bad in ["", "kernel", ":x", "kernel:", "Kernel:1", "a:\0"] {
            assert!(host(bad).check(0).is_err(), "{bad}");
        }
    }
}
