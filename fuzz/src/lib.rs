//! Runs an entry point of [`layer_format::fuzz`] by name, so that each fuzz target is one line.

use layer_format::fuzz::TARGETS;

/// Gives `bytes` to the target `name`.
///
/// # Panics
/// If there is no such target, or it finds that its parser does not keep its promise.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name).expect("a fuzz target is named as in `layer_format::fuzz::TARGETS`").1;
    target(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_binary_and_runs() {
        for (name, _) in TARGETS {
            let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fuzz_targets/{name}.rs"));
            assert!(std::fs::read_to_string(file).unwrap().contains(&format!("run(\"{name}\",")));
            run(name, b"");
        }
    }
}
