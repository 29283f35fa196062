//! The folders in which a user keeps documents: what `merge-user` opens.
//!
//! Read from `user-dirs.dirs` in the XDG configuration folder, as `xdg-user-dirs` writes it; what that does not name has
//! the usual name below the home folder.

use std::path::{Path, PathBuf};

/// Keys of `user-dirs.dirs`, and the usual names.
const FOLDERS: [(&str, &str); 7] = [
    ("XDG_DESKTOP_DIR", "Desktop"),
    ("XDG_DOCUMENTS_DIR", "Documents"),
    ("XDG_PICTURES_DIR", "Pictures"),
    ("XDG_DOWNLOAD_DIR", "Downloads"),
    ("XDG_MUSIC_DIR", "Music"),
    ("XDG_VIDEOS_DIR", "Videos"),
    ("XDG_TEMPLATES_DIR", "Templates"),
];

/// The user's folders, absolute; none if there is no home folder. They need not exist.
pub fn user_folders() -> Vec<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let Some(home) = absolute("HOME") else { return Vec::new() };
    let config = absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    // A file that is not there, or not readable, names nothing.
    let text = std::fs::read_to_string(config.join("user-dirs.dirs")).unwrap_or_default();
    parse(&home, &text)
}

/// `XDG_DESKTOP_DIR="$HOME/Desktop"`, a line each; other lines are passed over. A folder that is the home folder itself is
/// the specification's way to say that there is none, and is left out: it would open all of the home folder.
fn parse(home: &Path, text: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for (key, usual) in FOLDERS {
        let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='));
        let folder = match line.map(|value| value.trim().trim_matches('"').replace("\\\"", "\"")) {
            None => home.join(usual),
            Some(value) => match value.strip_prefix("$HOME") {
                Some(rest) => home.join(rest.trim_start_matches('/')),
                None => PathBuf::from(value),
            },
        };
        let folder: PathBuf = folder.components().collect();
        let is_below = folder.is_absolute() && folder.parent().is_some() && !folder.components().any(|part| part.as_os_str() == "..");
        if is_below && !home.starts_with(&folder) && !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_names_folders_and_the_rest_have_the_usual_names() {
        let text = "# comment\nXDG_DESKTOP_DIR=\"$HOME/Bureau\"\nXDG_DOCUMENTS_DIR=\"/srv/docs/\"\nXDG_MUSIC_DIR=\"$HOME/\"\nXDG_VIDEOS_DIR=\"/\"\n\
                    XDG_PICTURES_DIR=\"$HOME/../other\"\nXDG_TEMPLATES_DIR=\"relative\"\n";
        let folders = parse(Path::new("/home/me"), text);
        let expected = ["/home/me/Bureau", "/srv/docs", "/home/me/Downloads"].map(PathBuf::from);
        assert_eq!(folders, expected, "the home folder, the root and what leads out of them are no user folders");
        assert_eq!(parse(Path::new("/home/me"), "").len(), 7);
        assert!(parse(Path::new("/home/me"), "").contains(&PathBuf::from("/home/me/Downloads")));
        assert_eq!(parse(Path::new("/home/me"), "XDG_DESKTOP_DIR=\"/home\"\n").len(), 6, "a folder above the home folder would open it");
    }
}
