//! Devices by hand, for kernels without devtmpfs: the kernel tells in `/sys/dev/char` which there
//! are, with the same names and modes.

use nix::libc::makedev;
use nix::sys::stat::{Mode, SFlag, mknod};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

/// A device, as the kernel would make it.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    name: String,
    major: u32,
    minor: u32,
    mode: u32,
}

impl Node {
    /// Of a file `uevent`; none for a device that has no name.
    fn parse(uevent: &str) -> Option<Node> {
        let value = |key: &str| {
            uevent
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        };
        let name = value("DEVNAME")?;
        let plain = |c| matches!(c, Component::Normal(_));
        if !Path::new(name).components().all(plain) {
            return None;
        }
        Some(Node {
            name: name.to_owned(),
            major: value("MAJOR")?.parse().ok()?,
            minor: value("MINOR")?.parse().ok()?,
            mode: value("DEVMODE")
                .and_then(|mode| u32::from_str_radix(mode, 8).ok())
                .unwrap_or(0o600),
        })
    }

    fn make(&self, below: &Path) -> io::Result<()> {
        let path = below.join(&self.name);
        fs::create_dir_all(path.parent().unwrap_or(below))?;
        let mode = Mode::from_bits_truncate(self.mode);
        mknod(&path, SFlag::S_IFCHR, mode, makedev(self.major, self.minor))?;
        // The mask of this process has had its say.
        fs::set_permissions(&path, fs::Permissions::from_mode(self.mode))
    }
}

/// Makes a node for each device in `sys` that has none yet.
pub(super) fn make_all(sys: &Path, below: &Path) {
    // Without /sys, or where one is refused, who opens the device says so.
    for entry in fs::read_dir(sys).into_iter().flatten().flatten() {
        if let Ok(uevent) = fs::read_to_string(entry.path().join("uevent"))
            && let Some(node) = Node::parse(&uevent)
        {
            let _ = node.make(below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_the_kernel_writes_it() {
        let tun = "MAJOR=10\nMINOR=200\nDEVNAME=net/tun\nDEVMODE=0666\n";
        let expected = Node {
            name: "net/tun".into(),
            major: 10,
            minor: 200,
            mode: 0o666,
        };
        assert_eq!(Node::parse(tun), Some(expected));
        let nsm = Node::parse("MAJOR=10\nMINOR=144\nDEVNAME=nsm\n").expect("it has a name");
        assert_eq!(nsm.mode, 0o600);
        assert_eq!(Node::parse("MAJOR=10\nMINOR=144\n"), None);
        let outside = "MAJOR=10\nMINOR=144\nDEVNAME=../etc/passwd\n";
        assert_eq!(Node::parse(outside), None);
    }

    #[test]
    fn the_devices_of_this_kernel_are_found() {
        let devices: Vec<_> = fs::read_dir("/sys/dev/char")
            .expect("sysfs")
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path().join("uevent")).ok())
            .filter_map(|uevent| Node::parse(&uevent))
            .collect();
        for (name, minor, mode) in [("null", 3, 0o666), ("urandom", 9, 0o666)] {
            let node = devices.iter().find(|node| node.name == name);
            let node = node.unwrap_or_else(|| panic!("{name} is there"));
            assert_eq!((node.major, node.minor, node.mode), (1, minor, mode));
        }
    }
}
