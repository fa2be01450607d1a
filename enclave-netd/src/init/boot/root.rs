//! Makes the program's root the root.
//!
//! The kernel unpacks an image's ramdisks into the one file system that `pivot_root` does not move.
//! So, as switch_root(8) does, the new root is made a mount point, the mounts that belong to the
//! running system are moved into it, and then it is moved on top of the old one.

use super::mounts::is_mount_point;
use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};
use std::fs;
use std::path::Path;

/// Moved if they are mounted. `/sys` takes the control groups along, `/dev` its own.
const CARRIED: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

const NONE: Option<&str> = None;

pub(super) fn switch(root: &Path) -> Result<()> {
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(root), root, NONE, bind, NONE)
        .with_context(|| format!("cannot make {} a mount point", root.display()))?;
    for from in CARRIED.map(Path::new) {
        if !is_mount_point(from) {
            continue;
        }
        let to = root.join(from.strip_prefix("/")?);
        make_folder(&to)?;
        mount(Some(from), &to, NONE, MsFlags::MS_MOVE, NONE)
            .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))?;
    }
    chdir(root).with_context(|| format!("cannot enter {}", root.display()))?;
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)
        .with_context(|| format!("cannot move {} to /", root.display()))?;
    chroot(".").context("cannot change the root")?;
    chdir("/").context("cannot enter the root")
}

/// A link would lead out of the new root, for the old one still is the root.
fn make_folder(path: &Path) -> Result<()> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    ensure!(
        !is_link,
        "{} is a symbolic link: make it a folder in the image",
        path.display()
    );
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}
