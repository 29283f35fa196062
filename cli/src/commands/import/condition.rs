//! Conditions as people write them.
//!
//! ```text
//! expression  = term { "or" term }
//! term        = factor { "and" factor }
//! factor      = "not" factor | "(" expression ")" | requirement
//! requirement = KEY:VALUE, in quotes if it has spaces or parentheses
//! ```

use anyhow::{Result, bail};
use layer_format::manifest::{Condition, MAX_CONDITION_DEPTH};

use crate::exit::UsageError;

/// What a requirement looks like.
pub const EXPECTED: &str = "expected KEY:VALUE, such as kernel:>=6.1";

/// Whether a text has the form of a requirement.
pub fn is_requirement(text: &str) -> bool {
    let is_key = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    text.split_once(':').is_some_and(|(key, value)| is_key(key) && !value.is_empty() && !value.contains('\0'))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    /// In quotes it is never a keyword.
    Word(String, bool),
}

/// Parses a condition.
///
/// # Errors
/// [`UsageError`]: says what is expected where.
pub fn parse(text: &str) -> Result<Condition> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, text };
    let condition = parser.any(0)?;
    match parser.peek() {
        None => Ok(condition),
        Some(Token::Close) => parser.fail("a closing parenthesis has no opening one"),
        Some(_) => parser.fail("two requirements are joined by `and` or `or`"),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            c if c.is_whitespace() => {}
            '"' | '\'' => {
                let mut word = String::new();
                loop {
                    match chars.next() {
                        Some(end) if end == c => break,
                        Some(inner) => word.push(inner),
                        None => bail!(UsageError(format!("condition `{text}`: a quote is not closed"))),
                    }
                }
                tokens.push(Token::Word(word, true));
            }
            first => {
                let mut word = String::from(first);
                while let Some(next) = chars.next_if(|c| !c.is_whitespace() && !matches!(c, '(' | ')')) {
                    word.push(next);
                }
                tokens.push(Token::Word(word, false));
            }
        }
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: Vec<Token>,
    at: usize,
    text: &'a str,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn fail<T>(&self, reason: &str) -> Result<T> {
        bail!(UsageError(format!("condition `{}`: {reason}", self.text)))
    }

    /// Takes a keyword, if it comes next.
    fn takes(&mut self, keyword: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(word, false)) if word.eq_ignore_ascii_case(keyword));
        self.at += usize::from(found);
        found
    }

    fn any(&mut self, depth: usize) -> Result<Condition> {
        let mut parts = vec![self.all(depth)?];
        while self.takes("or") {
            parts.push(self.all(depth)?);
        }
        Ok(one_or(parts, Condition::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Condition> {
        let mut parts = vec![self.factor(depth)?];
        while self.takes("and") {
            parts.push(self.factor(depth)?);
        }
        Ok(one_or(parts, Condition::All))
    }

    fn factor(&mut self, depth: usize) -> Result<Condition> {
        if depth > MAX_CONDITION_DEPTH {
            return self.fail(&format!("it nests more than {MAX_CONDITION_DEPTH} deep"));
        }
        if self.takes("not") {
            return Ok(Condition::Not(Box::new(self.factor(depth + 1)?)));
        }
        let token = self.peek().cloned();
        self.at += 1;
        match token {
            Some(Token::Open) => {
                let inner = self.any(depth + 1)?;
                if self.peek() != Some(&Token::Close) {
                    return self.fail("a closing parenthesis is missing");
                }
                self.at += 1;
                Ok(inner)
            }
            Some(Token::Word(word, _)) if is_requirement(&word) => Ok(Condition::Host(word)),
            Some(Token::Word(word, _)) => self.fail(&format!("`{word}`: {EXPECTED}")),
            Some(Token::Close) => self.fail(&format!("a closing parenthesis comes too early: {EXPECTED}")),
            None => self.fail(&format!("something is missing at the end: {EXPECTED}")),
        }
    }
}

fn one_or(mut parts: Vec<Condition>, join: impl FnOnce(Vec<Condition>) -> Condition) -> Condition {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        last => join(parts.into_iter().chain(last).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it holds where these requirements do.
    fn holds(text: &str, true_ones: &[&str]) -> bool {
        parse(text).unwrap().holds(&|requirement| true_ones.contains(&requirement))
    }

    #[test]
    fn not_binds_closest_and_before_or() {
        assert!(holds("a:1 or b:1 and c:1", &["a:1"]), "and binds closer than or");
        assert!(!holds("(a:1 or b:1) and c:1", &["a:1"]));
        assert!(holds("not a:1 and b:1", &["b:1"]));
        assert!(!holds("not (a:1 or b:1)", &["b:1"]));
        assert!(holds("NOT not a:1 AND(b:1)", &["a:1", "b:1"]));
        assert!(holds("\"kernel:>=5 <7\" and 'file:/a (b)/and'", &["kernel:>=5 <7", "file:/a (b)/and"]));
        assert_eq!(parse("a:1").unwrap(), Condition::Host("a:1".into()));
        assert_eq!(parse("a:1 and b:1 and c:1").unwrap(), Condition::All(["a:1", "b:1", "c:1"].map(|text| Condition::Host(text.into())).into()));
    }

    #[test]
    fn wrong_conditions_say_what_is_expected() {
        for (text, says) in [
            ("", "missing at the end"),
            ("a:1 and", "missing at the end"),
            ("and a:1", "`and`"),
            ("a:1 b:1", "joined by"),
            ("(a:1", "parenthesis is missing"),
            ("a:1)", "no opening"),
            ("()", "too early"),
            ("not", "missing at the end"),
            ("linux", "KEY:VALUE"),
            ("'a:1", "quote"),
            ("Kernel:1", "KEY:VALUE"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(says), "{text:?}: {error}");
        }
        let deep = "(".repeat(100_000) + "a:1";
        assert!(parse(&deep).unwrap_err().to_string().contains("nests"));
        assert!(parse(&("not ".repeat(100_000) + "a:1")).unwrap_err().to_string().contains("nests"));
    }
}
