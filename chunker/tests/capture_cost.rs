//! What a capture costs, told by the kernel: the bytes that this process reads. Alone in its file, so that no other test reads.

use std::fs;
use std::os::unix::fs::MetadataExt;

use chunker::{CaptureOptions, MemoryStore, capture};

/// Bytes that this process has asked the kernel to read so far.
fn bytes_read() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn three_changed_files_of_fifty_thousand_cost_three_reads() {
    const FILES: usize = 50_000;
    let folder = tempfile::tempdir().unwrap();
    let upper = folder.path().join("sandbox/upper");
    let name = |number: usize| upper.join(format!("d{}/f{number}", number % 200));
    for number in 0..200 {
        fs::create_dir_all(upper.join(format!("d{number}"))).unwrap();
    }
    for number in 0..FILES {
        fs::write(name(number), format!("{number:>1000}")).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(25));
    let store = MemoryStore::new();
    let options = CaptureOptions::new(folder.path());
    let before = bytes_read();
    let first = capture(&upper, &options, &store, &()).unwrap();
    let all = bytes_read() - before;
    assert_eq!(first.files_read, FILES as u64);
    assert!(all >= 1000 * FILES as u64, "the kernel counts what is read: {all}");
    for number in [5, 25_000, 49_999] {
        fs::write(name(number), format!("changed {number}")).unwrap();
    }
    // Read at their turn, so that a look that does not open the file is seen not to.
    let seen = fs::metadata(name(7)).unwrap();
    let index = fs::metadata(folder.path().join("capture.index")).unwrap().len();
    let before = bytes_read();
    let second = capture(&upper, &options, &store, &()).unwrap();
    let some = bytes_read() - before;
    assert_eq!(second.files_read, 3);
    assert!(some < index + 100_000, "{some} bytes were read, and the index has {index}");
    assert!(index < 150 * FILES as u64, "the index has {index} bytes");
    assert!(second.imported.new_bytes < 200_000, "{}", second.imported.new_bytes);
    assert_eq!(fs::metadata(name(7)).unwrap().atime_nsec(), seen.atime_nsec());
}
