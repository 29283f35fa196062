//! The files of an image of any size: file `n` has a hundred bytes that depend on `n` alone, so that whoever knows `n` knows the name of
//! its chunk.

use std::io::{self, BufWriter, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use layer_format::Digest;

/// Bytes of a file.
const FILE_LEN: usize = 100;
/// Files in a folder.
const FOLDER_FILES: u64 = 500;

/// Write a tar of many small files to stdout.
#[derive(Debug, clap::Args)]
pub struct PopulationArgs {
    files: u64,
}

/// A process that writes the tar to its stdout, which is a pipe.
pub(super) fn maker(files: u64) -> Result<Child> {
    let own = std::env::current_exe().context("this program has no path")?;
    Command::new(own).args(["growth-tar", &files.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start the maker of the tar")
}

/// Writes the tar.
///
/// # Errors
/// If whoever reads it has gone.
pub fn write_tar(args: &PopulationArgs) -> Result<()> {
    let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 20, io::stdout().lock()));
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(FILE_LEN as u64);
    for number in 0..args.files {
        let path = format!("{:06}/{:03}", number / FOLDER_FILES, number % FOLDER_FILES);
        archive.append_data(&mut header, path, &content(number)[..]).context("cannot write the tar")?;
    }
    archive.into_inner().and_then(|mut out| out.flush()).context("cannot write the tar")
}

/// The name of the chunk of file `number`.
pub(super) fn digest(number: u64) -> Digest {
    Digest::of(&content(number))
}

fn content(number: u64) -> [u8; FILE_LEN] {
    let mut bytes = [0; FILE_LEN];
    let mut state = number;
    for eight in bytes.chunks_mut(8) {
        let word = splitmix64(&mut state).to_le_bytes();
        eight.copy_from_slice(&word[..eight.len()]);
    }
    // No two files are the same, whatever the generator does.
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub(super) fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
