//! `cargo xtask package`: what is installed from: Debian packages of client and server, and a container image of the server.
//!
//! Two runs over one checkout make the same bytes: times are those of the last commit (or of `SOURCE_DATE_EPOCH`), owners and
//! orders are fixed. Only the authorities' certificates in the image are those of the machine that makes it.
//!
//! The Debian packages have dynamically linked programs, the image a static one. glibc's resolver is whole in a static program as
//! long as `/etc/nsswitch.conf` asks for files and DNS alone, which an image without that file does; on a host it may name modules
//! (mdns, resolve, sss) that a static program would have to load, and they must be of the very glibc that it was linked with. musl
//! has no such trap, but its allocator is slow with many threads, and Rust's target for it is not on every machine.

mod archive;
mod binaries;
mod containerfile;
mod deb;
mod elf;
mod image;
mod tree;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace;

/// Makes Debian packages and a container image.
#[derive(Debug, clap::Args)]
pub(crate) struct Package {
    /// What to make.
    #[arg(value_enum, default_values_t = [What::Deb, What::Image])]
    what: Vec<What>,
    /// Folder with `turbo` and `turbo-registry`, and a static `static/turbo-registry` for the image, in place of building them.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Where packages and image go [default: target/package].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How the Debian packages are compressed; a trial need not wait for xz.
    #[arg(long, value_name = "METHOD", default_value = "xz", value_parser = ["xz", "gzip", "none"])]
    compression: String,
    /// Bundle of the authorities that the image trusts, PEM.
    #[arg(long, value_name = "FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    authorities: PathBuf,
}

/// What can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// `turbo_*.deb` and `turbo-registry_*.deb`.
    Deb,
    /// `turbo-registry-image.tar` for `docker load`, `podman load` and `skopeo`, and the folder `image` for `deploy/Containerfile`.
    Image,
}

impl Package {
    /// Makes what is asked for, and prints where it is and how large.
    ///
    /// # Errors
    /// If a program does not build, or a tool that packs is missing.
    pub(crate) fn run(&self) -> Result<()> {
        let out = self.out.clone().unwrap_or_else(|| workspace::target_dir().join("package"));
        let out = std::path::absolute(&out).with_context(|| format!("{} is no path", out.display()))?;
        fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
        let wants = |what| self.what.contains(&what);
        let binaries = match &self.binaries {
            Some(folder) => std::path::absolute(folder).with_context(|| format!("{} is no path", folder.display()))?,
            None => binaries::build(&out.join("bin"), wants(What::Image))?,
        };
        let time = source_time()?;
        let mut made = Vec::new();
        if wants(What::Deb) {
            made.extend(deb::make(&binaries, &deb::Packing { out: &out, time, compression: &self.compression })?);
        }
        if wants(What::Image) {
            made.push(image::make(&binaries, &self.authorities, &out, time)?);
        }
        for path in made {
            let len = fs::metadata(&path).with_context(|| format!("cannot see {}", path.display()))?.len();
            println!("{}  {:.1} MB", path.display(), len as f64 / 1e6);
        }
        Ok(())
    }
}

/// The time that everything is said to be of, in seconds since 1970: `SOURCE_DATE_EPOCH`, else that of the last commit, else 0.
fn source_time() -> Result<u64> {
    if let Ok(text) = std::env::var("SOURCE_DATE_EPOCH") {
        return text.parse().with_context(|| format!("SOURCE_DATE_EPOCH={text} is not a number of seconds"));
    }
    let last = Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(workspace::root()).output();
    Ok(last.ok().and_then(|output| String::from_utf8_lossy(&output.stdout).trim().parse().ok()).unwrap_or(0))
}

/// The output of a program, which must succeed.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    anyhow::ensure!(output.status.success(), "{} failed: {} {}", workspace::describe(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}
