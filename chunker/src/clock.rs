//! Which times of change can be believed: those that a file system takes from the clock of this machine.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::fstatfs;
use rustix::time::{ClockId, clock_gettime};

/// File systems whose times come from the clock of this machine, by the type that statfs gives: ext2 to ext4, XFS, Btrfs, tmpfs,
/// F2FS, bcachefs, ZFS, overlayfs. A server has a clock of its own.
const OWN_CLOCK: [u64; 8] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010, 0xca45_1a4e, 0x2fc1_2fc1, 0x794c_7630];

/// Whether the file system of `fd` takes its times from the clock of this machine.
pub(crate) fn is_own(fd: impl AsFd) -> bool {
    fstatfs(fd).is_ok_and(|stat| OWN_CLOCK.contains(&(stat.f_type as u64 & 0xffff_ffff)))
}

/// What such a file system would now note as the time of a change, in seconds and nanoseconds: later changes get this or a later one.
#[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
pub(crate) fn now() -> (i64, u32) {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    (now.tv_sec as i64, now.tv_nsec as u32)
}

/// Waits, some milliseconds at most, until the clock is past `time`; the time then. A clock that was set back is not waited for.
pub(crate) fn past(time: (i64, u32)) -> (i64, u32) {
    for _ in 0..20 {
        let now = now();
        if now > time {
            return now;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    now()
}
