//! What a program needs of the system, as a Debian `Depends` field says it. `dpkg-shlibdeps` would say the same, but belongs to a
//! source package's tools; this needs `objdump` alone, which comes with every linker.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Libraries that programs of ours may need, and their packages.
const PACKAGES: &[(&str, &str)] = &[
    ("libc.so.6", "libc6"),
    ("libm.so.6", "libc6"),
    ("libdl.so.2", "libc6"),
    ("libpthread.so.0", "libc6"),
    ("ld-linux", "libc6"),
    ("libgcc_s.so.1", "libgcc-s1"),
];

/// `libc6 (>= 2.34), libgcc-s1 (>= 4.2)`; empty for a static program.
///
/// # Errors
/// If it needs a library that no package of the table has.
pub(super) fn depends(program: &Path) -> Result<String> {
    let text = super::output(Command::new("objdump").arg("-p").arg(program)).context("cannot tell what a program needs: it takes binutils")?;
    field(&String::from_utf8_lossy(&text)).with_context(|| program.display().to_string())
}

fn field(objdump: &str) -> Result<String> {
    let package = |library: &str| PACKAGES.iter().find(|(name, _)| library.starts_with(name)).map(|(_, package)| *package);
    let mut needed: Vec<(&str, Vec<u32>)> = Vec::new();
    for line in objdump.lines() {
        if let Some(library) = line.trim().strip_prefix("NEEDED") {
            let Some(package) = package(library.trim()) else { bail!("no package is known for {}", library.trim()) };
            if !needed.iter().any(|(known, _)| *known == package) {
                needed.push((package, Vec::new()));
            }
        }
        // A symbol's version: `0x09691a75 0x00 05 GLIBC_2.2.5`.
        let Some(version) = line.split_whitespace().last().filter(|_| line.contains("0x")) else { continue };
        let (package, number) = match version.split_once('_') {
            Some(("GLIBC", number)) => ("libc6", number),
            Some(("GCC", number)) => ("libgcc-s1", number),
            _ => continue,
        };
        let number: Option<Vec<u32>> = number.split('.').map(|part| part.parse().ok()).collect();
        if let (Some(number), Some((_, newest))) = (number, needed.iter_mut().find(|(known, _)| *known == package)) {
            *newest = number.max(std::mem::take(newest));
        }
    }
    needed.sort();
    let one = |(package, version): &(&str, Vec<u32>)| match version.is_empty() {
        true => (*package).to_owned(),
        false => format!("{package} (>= {})", version.iter().map(u32::to_string).collect::<Vec<_>>().join(".")),
    };
    Ok(needed.iter().map(one).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_counts_and_unknown_libraries_fail() {
        let text = "  NEEDED               libgcc_s.so.1\n  NEEDED               libm.so.6\n  NEEDED               libc.so.6\n
            required from libgcc_s.so.1:\n    0x0b792650 0x00 08 GCC_3.0\n    0x09265f61 0x00 07 GCC_3.3
            required from libc.so.6:\n    0x06969194 0x00 04 GLIBC_2.14\n    0x09691a75 0x00 05 GLIBC_2.2.5\n    0x069691b4 0x00 02 GLIBC_2.34\n";
        assert_eq!(field(text).unwrap(), "libc6 (>= 2.34), libgcc-s1 (>= 3.3)");
        assert_eq!(field("").unwrap(), "");
        assert!(field("  NEEDED   libssl.so.3").is_err());
    }
}
