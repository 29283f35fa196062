//! The configuration file: TOML, one key a setting. A key that does not exist is an error that names the nearest one, since a
//! limit with a typing error is no limit.

use std::path::Path;

use clap::Args;

use super::{ConfigError, Options};

/// Most letters that a misspelt key may differ in.
const MAX_DISTANCE: usize = 4;

impl Options {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// If it cannot be read, is not TOML, has an unknown key, or a value that is out of bounds: each names the file.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(&text).map_err(|source| ConfigError::File { path: path.into(), source: Box::new(source) })
    }

    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = toml::from_str(text).map_err(ConfigError::Parse)?;
        let keys = Self::keys();
        if let Some(unknown) = table.keys().find(|key| !keys.contains(key)) {
            return Err(ConfigError::UnknownKey { nearest: nearest(unknown, &keys), key: unknown.clone() });
        }
        let options: Self = toml::from_str(text).map_err(ConfigError::Parse)?;
        options.check()?;
        Ok(options)
    }

    /// The names of all settings.
    pub(super) fn keys() -> Vec<String> {
        Self::augment_args(clap::Command::new("serve")).get_arguments().map(|arg| arg.get_id().to_string()).collect()
    }
}

/// The name that a misspelt one was probably meant to be.
fn nearest(key: &str, keys: &[String]) -> Option<String> {
    let near = keys.iter().map(|known| (distance(key, known), known)).min();
    near.filter(|(distance, known)| *distance <= MAX_DISTANCE.min(known.len() / 2)).map(|(_, known)| known.clone())
}

/// How many letters must be added, removed or changed (Levenshtein), row by row.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let cost = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, wanted) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("listen", "liste", 1), ("abc", "abc", 0), ("ab", "ba", 2)] {
            assert_eq!(distance(a, b), wanted, "{a} {b}");
            assert_eq!(distance(b, a), wanted, "{b} {a}");
        }
    }

    #[test]
    fn a_misspelt_key_is_refused_and_the_right_one_named() {
        let error = |text: &str| Options::parse(text).unwrap_err().to_string();
        assert!(error("max_stream = 7").ends_with("did you mean `max_streams`?"), "{}", error("max_stream = 7"));
        assert!(error("database-url = 'x'").contains("`database_url`"));
        assert!(error("flavour = 'x'").contains("config check"), "nothing is near");
        assert!(error("[limits]\nmax_streams = 7").contains("`limits`"), "there are no tables");
        assert!(matches!(Options::parse("max_streams = 'many'"), Err(ConfigError::Parse(_))));
        assert!(matches!(Options::parse("max_streams = 0"), Err(ConfigError::OutOfBounds { key: "max_streams", .. })));
        assert!(Options::parse("max_streams = -1").is_err());
    }
}
