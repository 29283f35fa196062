//! Which releases meet a dependency, and which of them is taken.

use std::fmt;

use anyhow::{Context, Result};
use layer_format::Digest;
use layer_format::manifest::Dependency;
use layer_format::reference::{HEAD, ImageReference, Repository, Revision};

use crate::releases::{Range, compare, is_prerelease, is_within};

/// Which image of a repository is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// The newest revision.
    Newest,
    /// This release, or else the newest of its own releases: `8` is met by `8`, and by `8.1`.
    Release(String),
    /// The newest release in the range.
    Range(Range, String),
    /// This image.
    Image(Digest),
    /// The image whose digest starts with these digits.
    Prefix(String),
}

/// A dependency, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The repository.
    pub repository: Repository,
    /// Which image of it.
    pub want: Want,
    /// Who asks for it.
    pub by: String,
}

impl Requirement {
    /// What a manifest says.
    ///
    /// # Errors
    /// If that makes no sense.
    pub fn of(dependency: &Dependency, by: &str) -> Result<Self> {
        let context = || format!("the dependency `{}` of {by}", dependency.reference);
        let reference: ImageReference = dependency.reference.parse().with_context(context)?;
        let want = match (&dependency.releases, reference.revision, dependency.digest) {
            (_, Revision::Digest(digest), _) => Want::Image(digest),
            (_, Revision::Prefix(prefix), _) => Want::Prefix(prefix),
            (Some(range), ..) => Want::Range(Range::parse(range).with_context(context)?, range.clone()),
            (None, Revision::Release(release), _) => Want::Release(release),
            // The image it was built against: for want of any word about releases.
            (None, Revision::Head, Some(digest)) => Want::Image(digest),
            (None, Revision::Head, None) => Want::Newest,
        };
        Ok(Self { repository: reference.repository, want, by: by.to_owned() })
    }

    /// Whether an image with these names meets it, as far as they tell: without a version among them, a range is met.
    pub fn is_met_by(&self, names: &[String], digest: &Digest) -> bool {
        self.want.is_met_by(names, digest)
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.want {
            Want::Newest => self.repository.fmt(f),
            Want::Release(release) => write!(f, "{}:{release}", self.repository),
            Want::Range(_, text) => write!(f, "{} ({text})", self.repository),
            Want::Image(digest) => write!(f, "{}#{}", self.repository, digest.short()),
            Want::Prefix(prefix) => write!(f, "{}#{prefix}", self.repository),
        }
    }
}

impl Want {
    /// The reference that a registry understands, if no list of releases is needed to find the image.
    pub fn direct(&self, repository: &Repository) -> Option<ImageReference> {
        let revision = match self {
            Self::Newest => Revision::Head,
            Self::Release(release) => Revision::Release(release.clone()),
            Self::Image(digest) => Revision::Digest(*digest),
            Self::Prefix(prefix) => Revision::Prefix(prefix.clone()),
            Self::Range(..) => return None,
        };
        Some(ImageReference { repository: repository.clone(), revision })
    }

    /// As [`Requirement::is_met_by`]. Whatever is there counts as the newest.
    pub fn is_met_by(&self, names: &[String], digest: &Digest) -> bool {
        let mut versions = names.iter().filter(|name| crate::releases::is_version(name)).peekable();
        match self {
            Self::Newest => true,
            Self::Image(wanted) => digest == wanted,
            Self::Prefix(prefix) => digest.to_hex().starts_with(prefix.as_str()),
            Self::Release(release) => {
                let known: Vec<&String> = names.iter().filter(|name| *name != HEAD).collect();
                known.is_empty() || known.iter().any(|name| is_within(name, release))
            }
            Self::Range(range, _) => versions.peek().is_none() || versions.any(|name| range.admits(name)),
        }
    }

    /// The name of this image by which it meets the want.
    fn name<'a>(&self, candidate: &'a Candidate) -> Option<&'a str> {
        let names = candidate.names.iter().map(String::as_str);
        match self {
            Self::Newest => names.into_iter().find(|name| *name == HEAD),
            Self::Release(release) => best_name(names.filter(|name| is_within(name, release)), Some(release)),
            Self::Range(range, _) => best_name(names.filter(|name| range.admits(name)), None),
            Self::Image(digest) => (candidate.digest == *digest).then(|| best_name(names, None)).flatten(),
            Self::Prefix(prefix) => candidate.digest.to_hex().starts_with(prefix.as_str()).then(|| best_name(names, None)).flatten(),
        }
    }
}

/// The exact one, else the newest, else `head`.
fn best_name<'a>(names: impl Iterator<Item = &'a str>, exact: Option<&str>) -> Option<&'a str> {
    names.max_by(|one, other| rank(one, exact).cmp(&rank(other, exact)).then_with(|| compare(one, other)).then_with(|| one.cmp(other)))
}

/// Exact ones last, before them real releases, before them pre-releases and names that are no versions.
fn rank(name: &str, exact: Option<&str>) -> u8 {
    match name {
        _ if exact == Some(name) => 3,
        _ if !crate::releases::is_version(name) => 0,
        _ if is_prerelease(name) => 1,
        _ => 2,
    }
}

#[derive(Clone, Debug)]
struct Candidate {
    digest: Digest,
    names: Vec<String>,
}

/// The images of a repository, each with its names.
#[derive(Clone, Debug, Default)]
pub struct Candidates(Vec<Candidate>);

impl Candidates {
    /// From a list of names.
    pub fn new(names: Vec<(String, Digest)>) -> Self {
        let mut found: Vec<Candidate> = Vec::new();
        for (name, digest) in names {
            match found.iter_mut().find(|candidate| candidate.digest == digest) {
                Some(candidate) => candidate.names.push(name),
                None => found.push(Candidate { digest, names: vec![name] }),
            }
        }
        Self(found)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|candidate| &candidate.names).map(String::as_str)
    }

    /// The image that meets all of these and is the best for the first, and by which name.
    pub fn best(&self, wants: &[&Want]) -> Option<(&str, Digest)> {
        let first = wants.first()?;
        let exact = match first {
            Want::Release(release) => Some(release.as_str()),
            _ => None,
        };
        let suitable = self.0.iter().filter(|candidate| wants.iter().all(|want| want.name(candidate).is_some()));
        let named: Vec<(&str, Digest)> = suitable.filter_map(|candidate| Some((first.name(candidate)?, candidate.digest))).collect();
        let best = best_name(named.iter().map(|(name, _)| *name), exact)?;
        named.into_iter().find(|(name, _)| *name == best)
    }
}

/// A reference to a release of a repository.
///
/// # Errors
/// If the name is none.
pub fn reference(repository: &Repository, name: &str) -> Result<ImageReference> {
    if name == HEAD {
        return Ok(ImageReference { repository: repository.clone(), revision: Revision::Head });
    }
    if !layer_format::reference::is_release(name) {
        anyhow::bail!("`{name}` is not the name of a release of {repository}");
    }
    Ok(ImageReference { repository: repository.clone(), revision: Revision::Release(name.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(reference: &str, releases: Option<&str>, digest: Option<Digest>) -> Want {
        Requirement::of(&Dependency { reference: reference.into(), releases: releases.map(Into::into), digest }, "app").unwrap().want
    }

    #[test]
    fn the_best_release_is_taken() {
        let digest = |name: &str| Digest::of(name.as_bytes());
        let names = ["8.1", "8.10", "8.9", "80", "11.0", "12", "12.1-rc1", "stable"].map(|name| (name.to_owned(), digest(name)));
        let head = (HEAD.to_owned(), digest("12"));
        let found = Candidates::new(names.into_iter().chain([head]).collect());
        let best = |wants: &[Want]| found.best(&wants.iter().collect::<Vec<_>>()).map(|(name, _)| name.to_owned());
        for (reference, releases, expected) in [
            ("java:8", None, Some("8.10")),
            ("java:8.1", None, Some("8.1")),
            ("java", None, Some("head")),
            ("java:stable", None, Some("stable")),
            ("java", Some(">=8 <12"), Some("11.0")),
            ("java:8", Some(">=12"), Some("80")),
            ("java:8", Some(">=12 <80"), Some("12")),
            ("java:7", None, None),
            ("java", Some(">=100"), None),
        ] {
            assert_eq!(best(&[want(reference, releases, None)]).as_deref(), expected, "{reference} {releases:?}");
        }
        let built = want("java", None, Some(digest("8.9")));
        assert_eq!(best(std::slice::from_ref(&built)).as_deref(), Some("8.9"), "what it was built against");
        assert_eq!(best(&[built, want("java", Some(">=8 <9"), None)]).as_deref(), Some("8.9"));
        assert_eq!(best(&[want("java", None, None), want("java", Some(">=12"), None)]).as_deref(), Some("head"), "head is 12");
        assert_eq!(best(&[want("java:8", None, None), want("java:11", None, None)]), None);
        assert_eq!(want("java:8", Some(">=9"), Some(digest("x"))), want("java", Some(">=9"), None), "a range decides alone");
        assert!(matches!(want("java:8", None, Some(digest("x"))), Want::Release(_)), "a release that is asked for goes before the digest");
        assert!(Requirement::of(&Dependency { reference: "java".into(), releases: Some("new".into()), digest: None }, "app").is_err());
    }

    #[test]
    fn an_exact_name_goes_before_newer_ones() {
        let names = [("8", "a"), ("8.1", "b")].map(|(name, image)| (name.to_owned(), Digest::of(image.as_bytes())));
        let found = Candidates::new(names.into());
        assert_eq!(found.best(&[&want("java:8", None, None)]).map(|(name, _)| name), Some("8"));
    }

    #[test]
    fn what_takes_part_is_judged_by_what_is_known_of_it() {
        let digest = Digest::of(b"x");
        let met = |want: Want, names: &[&str]| want.is_met_by(&names.iter().map(ToString::to_string).collect::<Vec<_>>(), &digest);
        assert!(met(want("java", Some(">=8"), None), &["head"]), "nothing says that it is older");
        assert!(met(want("java", Some(">=8"), None), &["9"]) && !met(want("java", Some(">=8"), None), &["7", "head"]));
        assert!(met(want("java:8", None, None), &["head", "8.2"]) && !met(want("java:8", None, None), &["9"]));
        assert!(met(want("java", None, Some(digest)), &[]) && !met(want("java", None, Some(Digest::of(b"y"))), &["8"]));
    }
}
