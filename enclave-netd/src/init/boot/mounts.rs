//! The file systems that programs expect.

use super::lack::Lack;
use super::nodes;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::mkdir;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

const NO_SUID: MsFlags = MsFlags::MS_NOSUID;
const NO_DEV: MsFlags = MsFlags::MS_NODEV;
const NO_EXEC: MsFlags = MsFlags::MS_NOEXEC;
const NONE: MsFlags = NO_SUID.union(NO_DEV).union(NO_EXEC);

struct FileSystem {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    options: Option<&'static str>,
    follows: &'static str,
}

/// Without which nothing works: what is in memory, started and connected is seen through them.
const PROC: FileSystem = FileSystem {
    kind: "proc",
    at: "/proc",
    flags: NONE,
    options: None,
    follows: "",
};
const DEV: FileSystem = FileSystem {
    kind: "devtmpfs",
    at: "/dev",
    flags: NO_SUID.union(NO_EXEC),
    options: Some("mode=755"),
    follows: "",
};
const DEV_WITHOUT_DEVTMPFS: FileSystem = FileSystem {
    kind: "tmpfs",
    ..DEV
};

const SYS: FileSystem = FileSystem {
    kind: "sysfs",
    at: "/sys",
    flags: NONE,
    options: None,
    follows: "programs learn nothing about devices",
};

/// Below `/dev`, and beside it. Programs compile and run in `/tmp` and `/dev/shm`.
const OTHERS: [FileSystem; 4] = [
    FileSystem {
        kind: "devpts",
        at: "/dev/pts",
        flags: NO_SUID.union(NO_EXEC),
        // 5 is the group tty nearly everywhere.
        options: Some("mode=620,ptmxmode=666,gid=5"),
        follows: "there are no terminals for shells and debuggers",
    },
    FileSystem {
        kind: "tmpfs",
        at: "/dev/shm",
        flags: NO_SUID.union(NO_DEV),
        options: Some("mode=1777"),
        follows: "programs have no POSIX shared memory",
    },
    FileSystem {
        kind: "tmpfs",
        at: "/run",
        flags: NO_SUID.union(NO_DEV),
        options: Some("mode=755"),
        follows: "what programs write there is in the root's memory, without a bound",
    },
    FileSystem {
        kind: "tmpfs",
        at: "/tmp",
        flags: NO_SUID.union(NO_DEV),
        options: Some("mode=1777"),
        follows: "what programs write there is in the root's memory, without a bound",
    },
];

const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

const CGROUPS: &str = "/sys/fs/cgroup";

/// Who puts devices into `/dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Devices {
    /// The kernel, or who mounted it before us.
    Kernel,
    /// We, by [`find_devices`]: the kernel was built without devtmpfs.
    Us,
}

/// Mounts what is not there yet. What is missing then is added to `lacks`.
///
/// # Errors
/// There is no `/proc` or no `/dev`.
pub(super) fn mount_all(lacks: &mut Vec<Lack>) -> Result<Devices> {
    PROC.mount().context("cannot mount /proc")?;
    SYS.mount_or_say(lacks);
    let devices = match DEV.mount() {
        Err(Errno::ENODEV) => {
            DEV_WITHOUT_DEVTMPFS.mount().context("cannot mount /dev")?;
            lacks.push(Lack::new(
                "devtmpfs",
                "this kernel lacks CONFIG_DEVTMPFS",
                "/dev has the devices that were there at the start and gets no others",
            ));
            Devices::Us
        }
        other => other
            .map(|()| Devices::Kernel)
            .context("cannot mount /dev")?,
    };
    find_devices(devices);
    OTHERS.iter().for_each(|one| one.mount_or_say(lacks));
    for (target, link) in LINKS {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                lacks.push(Lack::new(link, error, "programs that open it by name fail"))
            }
            _ => {}
        }
    }
    if let Err(error) = mount_cgroups() {
        lacks.push(Lack::new(
            "control groups",
            error,
            "programs cannot bound what others use",
        ));
    }
    Ok(devices)
}

/// Puts new devices into `/dev`, if nobody else does.
pub(super) fn find_devices(devices: Devices) {
    if devices == Devices::Us {
        nodes::make_all(Path::new("/sys/dev/char"), Path::new(DEV.at));
    }
}

impl FileSystem {
    fn mount(&self) -> Result<(), Errno> {
        match mkdir(self.at, nix::sys::stat::Mode::from_bits_truncate(0o755)) {
            Err(Errno::EEXIST) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        if is_mount_point(Path::new(self.at)) {
            return Ok(());
        }
        match mount(
            Some(self.kind),
            self.at,
            Some(self.kind),
            self.flags,
            self.options,
        ) {
            // The same file system is there already.
            Err(Errno::EBUSY) => Ok(()),
            other => other,
        }
    }

    fn mount_or_say(&self, lacks: &mut Vec<Lack>) {
        if let Err(error) = self.mount() {
            lacks.push(Lack::new(self.at, error.desc(), self.follows));
        }
    }
}

/// Whether another file system begins there. Works without `/proc`, and does not see a folder that
/// is bound within one file system.
pub(super) fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    match (device(path), device(&path.join(".."))) {
        (Ok(here), Ok(above)) => here != above,
        _ => false,
    }
}

/// The one hierarchy of version 2, or else one of version 1 for each controller.
fn mount_cgroups() -> Result<(), Errno> {
    if is_mount_point(Path::new(CGROUPS)) {
        return Ok(());
    }
    let second = mount(
        Some("cgroup2"),
        CGROUPS,
        Some("cgroup2"),
        NONE,
        None::<&str>,
    );
    if second.is_ok() {
        return Ok(());
    }
    let controllers = fs::read_to_string("/proc/cgroups").map_err(|_| Errno::ENODEV)?;
    let mode = Some("mode=755");
    mount(Some("tmpfs"), CGROUPS, Some("tmpfs"), NONE, mode)?;
    for controller in enabled_controllers(&controllers) {
        let at = Path::new(CGROUPS).join(controller);
        mkdir(&at, nix::sys::stat::Mode::from_bits_truncate(0o755))?;
        mount(Some("cgroup"), &at, Some("cgroup"), NONE, Some(controller))?;
    }
    Ok(())
}

/// Of `/proc/cgroups`: name, hierarchy, groups, enabled.
fn enabled_controllers(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let name = fields.next()?;
            (fields.nth(2) == Some("1")).then_some(name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_that_are_off_are_left_out() {
        let text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
                    cpuset\t0\t1\t1\nmemory\t0\t1\t0\npids\t3\t9\t1\n";
        assert_eq!(
            enabled_controllers(text).collect::<Vec<_>>(),
            ["cpuset", "pids"]
        );
    }

    #[test]
    fn proc_is_a_mount_point_and_a_folder_is_not() {
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")));
        assert!(!is_mount_point(Path::new("/nowhere")));
    }
}
