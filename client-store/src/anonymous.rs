//! A trace as it leaves this machine: nothing in it that is not in the image.
//!
//! Paths are the image's already: the reader names what it found, and for what it did not find an entry of the tree object
//! that said so. What is left is the name of what was started, which may be a program of the host or of another image.

use std::borrow::Cow;

use layer_format::manifest::ImageManifest;
use layer_format::trace::{Trace, foreign_entry_point};

/// The trace with its entry point hashed, unless the manifest states it or the image has it: then the run touched it.
pub fn anonymous<'a>(trace: &'a Trace, manifest: &ImageManifest) -> Cow<'a, Trace> {
    let name = trace.entry_point.as_str();
    let is_stated =
        || manifest.startup_files.iter().any(|file| file.command.first().is_some_and(|program| program == name) || file.trigger.as_deref() == Some(name));
    let program = name.trim_start_matches('/').as_bytes();
    let is_touched = || {
        trace.paths.iter().any(|path| match name.contains('/') {
            true => path.as_bytes() == program,
            false => path.name() == program && path.parent().is_some_and(|folder| matches!(folder.name(), b"bin" | b"sbin")),
        })
    };
    match name.is_empty() || is_stated() || is_touched() {
        true => Cow::Borrowed(trace),
        false => Cow::Owned(Trace { entry_point: foreign_entry_point(name), ..trace.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer_format::manifest::StartupFile;
    use layer_format::{Digest, LayerPath};

    #[test]
    fn only_names_of_the_image_leave_the_machine() {
        let mut manifest = ImageManifest::new("x86_64", Vec::new());
        manifest.startup_files.push(StartupFile { command: vec!["/bin/app".into(), "--secret".into()], trigger: Some("serve".into()) });
        let paths = ["usr/bin/python3", "home/ann"].map(|path| LayerPath::new(path).unwrap()).to_vec();
        let trace = |entry_point: &str| Trace {
            image: Digest::of(b"i"),
            entry_point: entry_point.into(),
            architecture: "x86_64".into(),
            duration_us: 0,
            paths: paths.clone(),
            events: Vec::new(),
        };
        for kept in ["", "/bin/app", "serve", "/usr/bin/python3", "python3"] {
            assert_eq!(anonymous(&trace(kept), &manifest).entry_point, kept);
        }
        for hidden in ["/home/ann/tool", "--secret", "ann", "bin/app"] {
            assert_eq!(anonymous(&trace(hidden), &manifest).entry_point, foreign_entry_point(hidden));
        }
    }
}
