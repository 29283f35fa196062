//! Memory stays bounded, whatever the length of the input, and what repeats far apart is stored once.
//!
//! Each test runs itself again as a child, so that the peak is the import's alone.

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use chunker::{ImportOptions, ObjectSink, PackSink, SinkError, import_directory, import_tar};
use common::Rng;
use layer_format::Digest;
use layer_format::pack::PackIndex;

/// The bound for two workers, in MiB.
const BOUND_MIB: u64 = 64;

/// Keeps digests only.
#[derive(Default)]
struct Sieve {
    objects: Mutex<(HashSet<Digest>, u64)>,
}

struct SievePack<'a>(&'a Sieve);

impl ObjectSink for Sieve {
    fn present(&self, digests: &[Digest]) -> Result<Vec<bool>, SinkError> {
        let objects = self.objects.lock().unwrap();
        Ok(digests.iter().map(|digest| objects.0.contains(digest)).collect())
    }

    fn create_pack(&self) -> Result<Box<dyn PackSink + '_>, SinkError> {
        Ok(Box::new(SievePack(self)))
    }
}

impl Write for SievePack<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl PackSink for SievePack<'_> {
    fn finish(self: Box<Self>, _: Digest, index: PackIndex) -> Result<(), SinkError> {
        let mut objects = self.0.objects.lock().unwrap();
        objects.1 += 1;
        for object in index.objects {
            assert!(objects.0.insert(object.digest), "{} was written twice", object.digest);
        }
        Ok(())
    }
}

/// Runs this test as a child with `input` on its standard input; `None` in the child itself.
fn as_child(test: &str, input: impl FnOnce(&mut dyn Write)) -> Option<()> {
    if std::env::var_os("TURBO_TEST_CHILD").is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env("TURBO_TEST_CHILD", "1").stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    input(&mut child.stdin.take().unwrap());
    assert!(child.wait().unwrap().success());
    Some(())
}

fn check_peak() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak: u64 = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    eprintln!("peak: {} MiB", peak / 1024);
    assert!(peak / 1024 < BOUND_MIB, "peak of {} MiB", peak / 1024);
}

fn options() -> ImportOptions {
    ImportOptions { threads: 2, ..ImportOptions::default() }
}

/// A file of 150 MB twice, through a pipe: more than the bound, and more than one pack apart.
#[test]
fn a_tar_through_a_pipe_takes_bounded_memory() {
    const LEN: u64 = 150_000_000;
    let child = as_child("a_tar_through_a_pipe_takes_bounded_memory", |stdin| {
        for name in ["one", "two"] {
            let mut header = tar::Header::new_gnu();
            header.set_path(name).unwrap();
            header.set_mode(0o644);
            header.set_size(LEN);
            header.set_cksum();
            stdin.write_all(header.as_bytes()).unwrap();
            let mut rng = Rng(1);
            for _ in 0..LEN / 100_000 {
                stdin.write_all(&rng.bytes(100_000)).unwrap();
            }
            stdin.write_all(&[0; 512][..(LEN.next_multiple_of(512) - LEN) as usize]).unwrap();
        }
        stdin.write_all(&[0; 1024]).unwrap();
    });
    if child.is_none() {
        let sieve = Sieve::default();
        let imported = import_tar(io::stdin(), &options(), &sieve, &()).unwrap();
        assert_eq!((imported.bytes, imported.entries), (2 * LEN, 3));
        assert!(imported.new_bytes < LEN + LEN / 100, "{} new bytes", imported.new_bytes);
        assert!(imported.stored_bytes < LEN + LEN / 100);
        assert_eq!(sieve.objects.lock().unwrap().1, 3, "packs of 64 MiB");
        check_peak();
    }
}

/// Many small files, a hard link from the first to the last, and a large file.
#[test]
fn a_directory_takes_bounded_memory() {
    let child = as_child("a_directory_takes_bounded_memory", |_| {});
    if child.is_none() {
        let mut end = Vec::new();
        io::stdin().read_to_end(&mut end).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for number in 0..20_000 {
            let parent = dir.path().join((number % 50).to_string());
            fs::create_dir_all(&parent).unwrap();
            fs::write(parent.join(number.to_string()), Rng(number).text(300)).unwrap();
        }
        fs::hard_link(dir.path().join("0/0"), dir.path().join("9/z")).unwrap();
        let mut large = fs::File::create(dir.path().join("5/large")).unwrap();
        let mut rng = Rng(7);
        for _ in 0..120 {
            large.write_all(&rng.text(1_000_000)).unwrap();
        }
        drop(large);
        let imported = import_directory(dir.path(), &options(), &Sieve::default(), &()).unwrap();
        assert_eq!((imported.entries, imported.files), (20_053, 20_002));
        check_peak();
    }
}
