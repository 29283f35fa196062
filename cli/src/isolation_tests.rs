use super::*;
use layer_format::Digest;
use layer_format::manifest::{AttributeRule, Attributes, FileRule, IsolationRule};

fn layer(isolation: &[(&str, Mode)]) -> LayerManifest {
    let mut layer = LayerManifest::new(Digest::of(b"root"), 0, 0);
    layer.isolation = isolation.iter().map(|(path, mode)| IsolationRule { path: (*path).into(), mode: *mode }).collect();
    layer
}

fn at(level: &str) -> Circumstances {
    let level = if level.is_empty() { Level::default() } else { level.parse().unwrap() };
    Circumstances { level, allow_merge: true, user_folders: vec!["/home/me/Documents".into(), "/home/me/Desktop".into()] }
}

fn composed(layers: &[(&str, LayerManifest)], circumstances: &Circumstances) -> Composed {
    let stated: Vec<Stated<'_>> = layers.iter().enumerate().map(|(place, (by, layer))| Stated { by, layer, place }).collect();
    compose(&stated, circumstances).unwrap()
}

fn mode(composed: &Composed, path: &str) -> Mode {
    composed.rules.mode(&LayerPath::from_absolute(path.as_bytes()).unwrap())
}

#[test]
fn of_two_images_the_first_decides_both_ways() {
    let git = ("git", layer(&[("/opt/git", Mode::Full)]));
    let nodejs = ("nodejs", layer(&[("/opt/git", Mode::Merge)]));
    let one = composed(&[git.clone(), nodejs.clone()], &at(""));
    assert_eq!((mode(&one, "/opt/git/x"), one.effective[0].overridden[0].as_str()), (Mode::Full, "merge (from nodejs)"));
    let other = composed(&[nodejs, git], &at(""));
    assert_eq!((mode(&other, "/opt/git/x"), other.effective[0].stated_by.as_str()), (Mode::Merge, "nodejs"));
    assert_eq!(mode(&other, "/opt"), Mode::WriteCopy, "what no image states is write-copy");
}

#[test]
fn levels_never_weaken_what_images_state() {
    use Mode::*;
    let image = [("app", layer(&[("/f", Full), ("/w", WriteCopy), ("/m", Merge), ("/h", Hide)]))];
    for (level, full, write_copy, merge, hide, elsewhere) in [
        ("", Full, WriteCopy, Merge, Hide, WriteCopy),
        ("merge", Full, WriteCopy, Merge, Hide, Merge),
        ("write-copy", Full, WriteCopy, WriteCopy, Hide, WriteCopy),
        ("full", Full, Full, Full, Hide, Full),
        ("merge-user", Full, WriteCopy, WriteCopy, Hide, WriteCopy),
        ("full+merge-user", Full, Full, Full, Hide, Full),
    ] {
        let composed = composed(&image, &at(level));
        let modes = ["/f", "/w", "/m", "/h", "/elsewhere"].map(|path| mode(&composed, path));
        assert_eq!(modes, [full, write_copy, merge, hide, elsewhere], "{level}");
        assert_eq!(composed.opened.is_empty(), !level.is_empty(), "an opened folder is told only where nobody asked: {level}");
    }
    let root = [("os", layer(&[("/", Full)]))];
    assert_eq!(mode(&composed(&root, &at("merge")), "/x"), Full);
    assert_eq!(mode(&composed(&[("open", layer(&[("/", Merge)]))], &at("write-copy")), "/x"), WriteCopy);
}

#[test]
fn user_folders_are_merge_unless_something_inside_is_stricter() {
    let image = [("app", layer(&[("/home/me", Mode::Full), ("/home/me/Documents/secret", Mode::Hide), ("/home/me/Documents/open", Mode::Merge)]))];
    for level in ["merge-user", "full+merge-user", "write-copy+merge-user"] {
        let composed = composed(&image, &at(level));
        assert_eq!(mode(&composed, "/home/me/Documents/a/b"), Mode::Merge, "{level}");
        assert_eq!(mode(&composed, "/home/me/Desktop"), Mode::Merge, "{level}");
        assert_eq!(mode(&composed, "/home/me/Documents/secret/x"), Mode::Hide, "{level}");
        assert_eq!(mode(&composed, "/home/me/Documents/open/x"), Mode::Merge, "{level}: the level does not reach inside");
        assert_eq!(mode(&composed, "/home/me/.config"), Mode::Full, "{level}");
    }
    let strict = [("app", layer(&[("/home/me/Documents", Mode::Full)]))];
    assert_eq!(mode(&composed(&strict, &at("merge-user")), "/home/me/Documents/x"), Mode::Full, "an image's own word for the folder stands");
    assert_eq!(mode(&composed(&strict, &at("write-copy")), "/home/me/Desktop"), Mode::WriteCopy);
}

#[test]
fn an_administrator_can_forbid_merge() {
    let mut image = layer(&[("/m", Mode::Merge), ("/f", Mode::Full)]);
    image.files = vec![FileRule { path: "/etc/app.conf".into(), mode: FileMode::Defaulted }];
    for level in ["", "merge", "merge-user"] {
        let forbidden = Circumstances { allow_merge: false, ..at(level) };
        let composed = composed(&[("app", image.clone())], &forbidden);
        for path in ["/m/x", "/elsewhere", "/home/me/Documents/x"] {
            assert_eq!(mode(&composed, path), Mode::WriteCopy, "{level} {path}");
        }
        assert_eq!(mode(&composed, "/f"), Mode::Full);
        assert!(composed.opened.is_empty());
        assert_eq!(composed.rules.stated_files().count(), 0, "a defaulted file is the host's to write");
    }
}

#[test]
fn single_files_attributes_and_kept_files() {
    let path = |text: &str| LayerPath::from_absolute(text.as_bytes()).unwrap();
    let file = |path: &str, mode| FileRule { path: path.into(), mode };
    let attribute = |path: &str, attributes| AttributeRule { path: path.into(), attributes };
    let mut one = layer(&[]);
    one.files = vec![file("/a", FileMode::Full), file("/etc/app.conf", FileMode::Defaulted)];
    one.attributes = vec![attribute("/a", Attributes { hidden: true, ..Attributes::default() })];
    let mut two = layer(&[]);
    two.files = vec![file("/a", FileMode::Hide)];
    two.attributes = vec![attribute("/a", Attributes { read_only: true, no_upgrade: true, ..Attributes::default() })];
    let layers = [("one", one), ("two", two)];
    let stated = composed(&layers, &at(""));
    assert_eq!(stated.rules.file_mode(&path("/a")), Some(FileMode::Full), "the first decides");
    assert!(stated.rules.may_not_be_copied(&path("/a")) && stated.rules.is_read_only(&path("/a")), "attributes add up");
    assert_eq!(stated.rules.kept_by(&path("/a")), Some(1));
    assert_eq!(stated.opened, [("/etc/app.conf".to_owned(), "one".to_owned())]);
    for level in ["write-copy", "full"] {
        assert_eq!(composed(&layers, &at(level)).rules.file_mode(&path("/etc/app.conf")), None, "{level} keeps the host from being written");
    }
    assert_eq!(composed(&layers, &at("merge")).rules.file_mode(&path("/etc/app.conf")), Some(FileMode::Defaulted));
    let hidden = [layers[0].clone(), ("full", layer(&[("/etc", Mode::Full)]))];
    assert_eq!(composed(&hidden, &at("")).rules.file_mode(&path("/etc/app.conf")), None, "a full directory hides the host");
}

#[test]
fn levels_as_users_write_them() {
    for (text, shown) in [
        ("full", "full"),
        ("cow", "write-copy"),
        ("writecopy", "write-copy"),
        ("merge", "merge"),
        ("merge-user", "write-copy+merge-user"),
        ("merge-user+full", "full+merge-user"),
        ("full+merge-user", "full+merge-user"),
    ] {
        let level: Level = text.parse().unwrap();
        assert_eq!(level.to_string(), shown);
        assert_eq!(shown.parse::<Level>().unwrap(), level);
    }
    for bad in ["", "hide", "none", "full+write-copy", "merge-user+merge-user", "full+", "Full", "full+hide"] {
        let error = bad.parse::<Level>().unwrap_err().to_string();
        assert!(error.contains("full+merge-user"), "{bad}: {error}");
    }
}
