//! `docs/configuration.md` against the code: the table of settings is generated, and a test fails if it is not what is there.

use clap::Args;

use super::numbers::BOUNDS;
use super::{Config, Options};

const BEGIN: &str = "<!-- generated: begin -->\n";
const END: &str = "<!-- generated: end -->";
/// With this variable the test writes the page instead of comparing it.
const UPDATE: &str = "TURBO_UPDATE_DOCS";

/// A number as people write it.
fn shown(value: u64, key: &str) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.iter().find(|(unit, _)| key.ends_with("_bytes") && value >= *unit && value.is_multiple_of(*unit));
    unit.map_or_else(|| value.to_string(), |(unit, name)| format!("{} {name}", value / unit))
}

fn table() -> String {
    let mut defaults = Options::default();
    super::numbers::describe(&Config::new("/d"), &mut defaults);
    let defaults = toml::Table::try_from(&defaults).unwrap();
    let mut out = String::from("| key | default | bounds | meaning |\n|---|---|---|---|\n");
    for arg in Options::augment_args(clap::Command::new("serve")).get_arguments() {
        let key = arg.get_id().as_str();
        assert_eq!(arg.get_long().unwrap(), key.replace('_', "-"), "the option of {key}");
        assert_eq!(arg.get_env().unwrap().to_str().unwrap(), format!("TURBO_REGISTRY_{}", key.to_ascii_uppercase()), "the variable of {key}");
        let help = arg.get_help().unwrap().to_string();
        let (meaning, said) = match help.rsplit_once(" [default: ") {
            Some((meaning, default)) => (meaning.to_owned(), default.trim_end_matches(']').to_owned()),
            None => (help.clone(), "–".to_owned()),
        };
        if let Some(default) = defaults.get(key).and_then(toml::Value::as_integer) {
            assert_eq!(said, shown(default.cast_unsigned(), key), "the default in the help of {key}");
        }
        let bounds = BOUNDS.iter().find(|bounds| bounds.key == key);
        let bounds = bounds.map_or_else(String::new, |bounds| format!("{} to {}", shown(bounds.min, key), shown(bounds.max, key)));
        out.push_str(&format!("| `{key}` | {said} | {bounds} | {meaning} |\n"));
    }
    out
}

#[test]
fn the_page_says_what_the_code_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (there, after) = rest.split_once(END).unwrap();
    let wanted = table();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
        return;
    }
    assert!(there == wanted, "docs/configuration.md is not up to date: run this test with {UPDATE}=1");
    for bounds in BOUNDS {
        assert!(wanted.contains(&format!("`{}`", bounds.key)), "{} is bounded and is no setting", bounds.key);
    }
}
