//! A mapping of a file, for tests.

use std::fs::File;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

/// Writes one byte of a file, `at < len`, through a shared mapping of its first `len` bytes.
pub(crate) fn write_mapped(file: &File, len: usize, at: usize, byte: u8) -> Result<(), Errno> {
    assert!(at < len);
    // SAFETY: the kernel chooses the place, so nothing else is there; nobody else knows the mapping, the byte is inside of it, and
    // it is not used after it is unmapped.
    unsafe {
        let map = mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)?;
        map.cast::<u8>().add(at).write(byte);
        let synced = msync(map, len, MsyncFlags::SYNC);
        munmap(map, len)?;
        synced
    }
}
