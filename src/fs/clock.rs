//! When a file's stamp proves that a later change must show in it.
//!
//! A change sets a file's ctime to what the file system's clock shows. That clock advances in steps, so a change right
//! after the one that a stamp shows can leave the stamp as it is. A stamp proves something only from the next step on.
//! On Linux, file systems on local disks take ctime from the kernel's coarse clock, which programs can read, so the end
//! of the step is known exactly (`current_time` in the kernel's `fs/inode.c`). Elsewhere (network file systems, FAT, other
//! kernels) the clock is unknown, and [`GRAIN`] is waited for.

use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::fs::File;
use crate::fs::PathError;
use crate::fs::Stamp;

/// The longest step of the clock of a common file system: FAT's.
pub const GRAIN: Duration = Duration::from_secs(2);
/// A moment longer than a step of the kernel's clock (1 to 10 ms).
const STEP: Duration = Duration::from_millis(11);
/// A stamp further in the future than this is not waited for: the clock was set back.
const FUTURE: Duration = Duration::from_millis(200);

/// A moment, by the wall clock and by the kernel's clock for stamps. All times are in nanoseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    wall: i128,
    /// `None` where that clock cannot be read.
    kernel: Option<i64>,
}

impl Moment {
    /// Returns the present.
    pub fn now() -> Self {
        Self {
            wall: nanos(SystemTime::now()),
            kernel: kernel_clock(),
        }
    }

    /// Returns a moment by the wall clock alone.
    pub fn at(time: SystemTime) -> Self {
        Self {
            wall: nanos(time),
            kernel: None,
        }
    }
}

impl Stamp {
    /// Returns true if any change of the file at or after `moment` must change this stamp of it.
    pub fn is_settled(&self, moment: &Moment) -> bool {
        if let Some(kernel) = self.kernel_clock(moment) {
            return self.ctime_ns < kernel;
        }
        // The ctime, which only the kernel sets, must be older than the grain. So must be the mtime, for file systems that
        // have no true ctime; but one that lies further in the future than the grain proves as much, since a change would
        // bring it back to the present.
        let grain = GRAIN.as_nanos().cast_signed();
        let (mtime, ctime) = (i128::from(self.mtime_ns), i128::from(self.ctime_ns));
        ctime < moment.wall - grain && !(moment.wall - grain..=moment.wall + grain).contains(&mtime)
    }

    /// Returns how long to wait until the stamp can be settled: never more than the grain and a moment. A stamp from the
    /// future is not waited for.
    pub fn settles_in(&self, now: &Moment) -> Duration {
        const MOMENT: i128 = 1_000_000;
        if let Some(kernel) = self.kernel_clock(now) {
            let ahead = u64::try_from(self.ctime_ns - kernel).ok().map(Duration::from_nanos);
            return match ahead {
                Some(ahead) if ahead < FUTURE => ahead + STEP,
                _ => Duration::ZERO,
            };
        }
        let grain = GRAIN.as_nanos().cast_signed();
        let wait = [self.mtime_ns, self.ctime_ns]
            .into_iter()
            .map(|time| i128::from(time) + grain + MOMENT - now.wall)
            .filter(|wait| (1..=grain + MOMENT).contains(wait))
            .max();
        wait.and_then(|wait| u64::try_from(wait).ok())
            .map_or(Duration::ZERO, Duration::from_nanos)
    }

    /// Returns what the clock that this stamp's ctime was taken from shows at a moment, if that is known.
    fn kernel_clock(&self, moment: &Moment) -> Option<i64> {
        // A file system that keeps whole milliseconds or seconds cuts off what would tell two changes apart.
        let is_fine = self.ctime_ns % 1_000_000 != 0;
        moment.kernel.filter(|_| is_fine && has_kernel_clock(self.dev))
    }
}

/// Waits until the stamp of an open file proves that a later change must show in it: some milliseconds where the file
/// system's clock is known, else two seconds at most. Returns the stamp, and a moment before it was taken. A stamp that
/// cannot settle (it lies in the future, or the file keeps changing) is returned as it is. `path` is only for the error.
pub fn settle(file: &File, path: &Path) -> Result<(Stamp, Moment), PathError> {
    const TRIES: usize = 3;
    for _ in 1..TRIES {
        let now = Moment::now();
        let stamp = Stamp::of_file(file, path)?;
        let wait = stamp.settles_in(&now);
        if stamp.is_settled(&now) || wait.is_zero() {
            return Ok((stamp, now));
        }
        std::thread::sleep(wait);
    }
    let now = Moment::now();
    Ok((Stamp::of_file(file, path)?, now))
}

/// Returns a time in nanoseconds since 1970.
pub fn nanos(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos().cast_signed(),
        Err(error) => -(error.duration().as_nanos().cast_signed()),
    }
}

#[cfg(target_os = "linux")]
fn kernel_clock() -> Option<i64> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec.checked_mul(1_000_000_000)?.checked_add(now.tv_nsec)
}

#[cfg(not(target_os = "linux"))]
fn kernel_clock() -> Option<i64> {
    None
}

/// Returns whether the files of a device get their times from this kernel's clock, at its full resolution. Asked once for
/// each device.
#[cfg(target_os = "linux")]
fn has_kernel_clock(device: u64) -> bool {
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::sync::PoisonError;

    static KNOWN: Mutex<Option<HashMap<u64, bool>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.get_or_insert_default().entry(device).or_insert_with(|| {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        file_system_of(&mounts, &number).is_some_and(|name| LOCAL.contains(&name))
    })
}

#[cfg(not(target_os = "linux"))]
fn has_kernel_clock(_device: u64) -> bool {
    false
}

/// File systems on local disks or in memory that keep nanoseconds. (What ext2 and ext3 keep shows in the stamps.)
#[cfg(target_os = "linux")]
const LOCAL: [&str; 9] = [
    "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs",
];

/// Returns the type of the file system of a device (`major:minor`), as `/proc/self/mountinfo` lists it (proc(5)).
#[cfg(target_os = "linux")]
fn file_system_of<'m>(mounts: &'m str, device: &str) -> Option<&'m str> {
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        (mount.split(' ').nth(2) == Some(device)).then_some(())?;
        file_system.split(' ').next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mtime: i64, ctime: i64) -> Stamp {
        Stamp {
            dev: 1,
            ino: 2,
            size: 3,
            mtime_ns: mtime * 1_000_000_000,
            ctime_ns: ctime * 1_000_000_000,
        }
    }

    fn second(second: u64) -> Moment {
        Moment::at(UNIX_EPOCH + Duration::from_secs(second))
    }

    #[test]
    fn without_a_known_clock_a_stamp_is_settled_when_it_is_older_than_the_grain() {
        assert!(at(100, 100).is_settled(&second(103)));
        assert!(
            !at(100, 100).is_settled(&second(102)),
            "as old as the grain is not older"
        );
        assert!(!at(100, 100).is_settled(&second(100)));
        assert!(!at(50, 100).is_settled(&second(101)), "mtime put back, ctime young");
        assert!(!at(100, 50).is_settled(&second(101)), "no true ctime, mtime young");
        assert!(!at(100, 100).is_settled(&second(90)), "the clock was set back");
        assert!(
            at(9_000_000, 100).is_settled(&second(103)),
            "an mtime far in the future cannot come by itself"
        );
    }

    #[test]
    fn the_wait_is_never_longer_than_the_grain_and_a_moment() {
        assert_eq!(at(100, 100).settles_in(&second(103)), Duration::ZERO);
        let wait = at(100, 101).settles_in(&second(102));
        assert_eq!(wait, Duration::from_millis(1001));
        assert_eq!(at(9_000_000, 9_000_000).settles_in(&second(103)), Duration::ZERO);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_type_of_a_file_system_is_read_from_the_list_of_mounts() {
        let mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            36 22 0:31 / /mnt/a\\040b rw - nfs4 server:/x rw,vers=4.2\n\
            40 22 0:32 / /tmp rw shared:5 master:2 - tmpfs tmpfs rw\n";
        assert_eq!(file_system_of(mounts, "254:0"), Some("ext4"));
        assert_eq!(file_system_of(mounts, "0:31"), Some("nfs4"));
        assert_eq!(file_system_of(mounts, "0:32"), Some("tmpfs"));
        assert_eq!(file_system_of(mounts, "0:3"), None);
    }

    #[test]
    fn a_settled_stamp_changes_with_every_change_that_follows() {
        use std::io::Write as _;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for round in 0..40_u32 {
            std::fs::write(&path, round.to_le_bytes()).unwrap();
            let times = std::fs::metadata(&path).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            let (settled, now) = settle(&file, &path).unwrap();
            assert!(settled.is_settled(&now));
            (&file).write_all(&(round + 1).to_le_bytes()).unwrap();
            file.set_times(std::fs::FileTimes::new().set_modified(times.modified().unwrap()))
                .unwrap();
            assert_ne!(Stamp::of(&path).unwrap(), settled, "round {round}");
        }
    }
}
