//! The container image of the registry: the static program, the authorities that it trusts for S3 and PostgreSQL, and a folder for
//! data that belongs to its user. Nothing else is in it, no shell either.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::archive::{self, Layer};
use super::containerfile::Containerfile;
use super::{elf, tree::Tree};
use crate::workspace;

/// Lays out the context of `deploy/Containerfile` in `out/image`, and writes the image that it describes; the archive's path.
pub(super) fn make(binaries: &Path, authorities: &Path, out: &Path, time: u64) -> Result<PathBuf> {
    let program = binaries.join("static/turbo-registry");
    ensure!(
        program.exists(),
        "{} is missing: the image takes a static program (cargo rustc --bin turbo-registry -- -C target-feature=+crt-static)",
        program.display()
    );
    ensure!(elf::depends(&program)?.is_empty(), "{} is not static: there is nothing in the image that it could load", program.display());
    let text_path = workspace::root().join("deploy/Containerfile");
    let text = fs::read_to_string(&text_path).with_context(|| format!("cannot read {}", text_path.display()))?;
    let file = Containerfile::parse(&text).with_context(|| text_path.display().to_string())?;
    let pem =
        fs::read(authorities).with_context(|| format!("cannot read the authorities' certificates {} (Debian: ca-certificates)", authorities.display()))?;

    let context = Tree::create(out.join("image"))?;
    context.program("rootfs/usr/bin/turbo-registry", &program)?;
    context.file("rootfs/etc/ssl/certs/ca-certificates.crt", 0o644, pem)?;
    let (user, group) = file.owner;
    context.file("rootfs/etc/passwd", 0o644, format!("root:x:0:0:root:/:/sbin/nologin\nturbo-registry:x:{user}:{group}::/data:/sbin/nologin\n"))?;
    context.file("rootfs/etc/group", 0o644, format!("root:x:0:\nturbo-registry:x:{group}:\n"))?;
    // The kernel's resolver modules: what a static program has in it.
    context.file("rootfs/etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n")?;
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        let licence = fs::read(workspace::root().join(name)).with_context(|| format!("cannot read {name}"))?;
        context.file(&format!("rootfs/usr/share/doc/turbo-registry/{name}"), 0o644, licence)?;
    }
    context.folder("data", 0o700)?;

    let mut layers = Vec::new();
    for (from, to, owner) in &file.copies {
        let mut layer = Layer::new(time);
        layer.add(&context.root().join(from.trim_end_matches('/')), to.trim_matches('/'), *owner)?;
        layers.push(layer.finish()?);
    }
    let archive = out.join("turbo-registry-image.tar");
    archive::write(&archive, &format!("turbo-registry:{}", env!("CARGO_PKG_VERSION")), config(&file, time), &layers, time)?;
    Ok(archive)
}

fn config(file: &Containerfile, time: u64) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let created = rfc3339(time);
    let steps: Vec<Value> = file.copies.iter().map(|(from, to, _)| json!({ "created": created, "created_by": format!("COPY {from} {to}") })).collect();
    let mut config = file.config.clone();
    if let Some(labels) = config.get_mut("Labels") {
        labels["org.opencontainers.image.version"] = env!("CARGO_PKG_VERSION").into();
        labels["org.opencontainers.image.created"] = created.clone().into();
    }
    json!({ "created": created, "architecture": architecture, "os": "linux", "config": config, "history": steps })
}

/// Seconds since 1970 as `2026-03-01T12:00:00Z`.
fn rfc3339(time: u64) -> String {
    let (days, seconds) = (time / 86_400, time % 86_400);
    // Counted in years that begin in March, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let (year, day) = (year_of_era + era * 400 + u64::from(month <= 2), of_year - (153 * march_month + 2) / 5 + 1);
    format!("{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_dates() {
        for (time, text) in [(0, "1970-01-01T00:00:00Z"), (951_825_661, "2000-02-29T12:01:01Z"), (1_772_323_199, "2026-02-28T23:59:59Z")] {
            assert_eq!(rfc3339(time), text);
        }
    }

    #[test]
    fn the_containerfile_describes_a_server_that_is_not_root() {
        let text = fs::read_to_string(workspace::root().join("deploy/Containerfile")).unwrap();
        let file = Containerfile::parse(&text).unwrap();
        assert!(file.owner.0 >= 1000 && file.owner.1 >= 1000, "{:?}", file.owner);
        assert!(file.config["Volumes"]["/data"].is_object());
        assert_eq!(file.config["Healthcheck"]["Test"][2], "health");
    }
}
