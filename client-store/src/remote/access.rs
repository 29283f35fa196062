//! What requests are authorised with. A token may expire while an application runs: then it is asked for again where it
//! came from, since somebody may have renewed it there.

use std::sync::Arc;

use parking_lot::Mutex;

/// Gives the token as it is now, such as the content of a file.
pub type TokenSource = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// The token in use.
pub(super) struct Access {
    token: Mutex<Option<String>>,
    source: Option<TokenSource>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("token", &self.token.lock().as_ref().map(|_| "…")).finish_non_exhaustive()
    }
}

impl Access {
    pub(super) fn new(token: Option<String>, source: Option<TokenSource>) -> Self {
        Self { token: Mutex::new(token), source }
    }

    pub(super) fn token(&self) -> Option<String> {
        self.token.lock().clone()
    }

    /// Another token than `refused`, if there is one by now.
    pub(super) fn renewed(&self, refused: Option<&str>) -> Option<String> {
        let current = self.token();
        if current.as_deref() != refused && current.is_some() {
            // Another request has renewed it meanwhile.
            return current;
        }
        let renewed = self.source.as_ref()?().filter(|token| Some(token.as_str()) != refused)?;
        *self.token.lock() = Some(renewed.clone());
        Some(renewed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_token_is_a_renewed_one() {
        let now = Arc::new(Mutex::new(Some("old".to_owned())));
        let source = Arc::clone(&now);
        let access = Access::new(Some("old".into()), Some(Arc::new(move || source.lock().clone())));
        assert_eq!(access.renewed(Some("old")), None);
        *now.lock() = Some("new".into());
        assert_eq!(access.renewed(Some("old")).as_deref(), Some("new"));
        assert_eq!(access.token().as_deref(), Some("new"));
        assert_eq!(access.renewed(Some("old")).as_deref(), Some("new"), "the source is not asked again");
        *now.lock() = None;
        assert_eq!(access.renewed(Some("new")), None);
        assert_eq!(Access::new(Some("old".into()), None).renewed(Some("old")), None);
        assert!(!format!("{access:?}").contains("new"));
    }
}
