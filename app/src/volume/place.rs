//! The folder of the enclave where a volume is put.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use crate::error::{Failure, What};

/// An empty folder. It stays the same one, whatever its name leads to later.
#[derive(Debug)]
pub(super) struct Place {
    folder: File,
    path: PathBuf,
}

impl Place {
    /// Looks at the folder.
    ///
    /// # Errors
    /// What is there is no empty folder.
    pub(super) fn find(path: &Path) -> Result<Place, Failure> {
        let wrong = |why: String| Failure::usage(format!("{}: {why}", path.display()));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let folder = File::options()
            .read(true)
            .custom_flags(i32::from_ne_bytes(flags.bits().to_ne_bytes()))
            .open(path)
            .map_err(|error| wrong(format!("no folder to mount on: {error}")))?;
        let mut entries = fs::read_dir(path).map_err(|error| wrong(error.to_string()))?;
        if entries.next().is_some() {
            return Err(wrong(
                "not empty: what is in it would be hidden by the volume".to_owned(),
            ));
        }
        Ok(Place {
            folder,
            path: path.to_owned(),
        })
    }

    /// Puts a mount there.
    pub(super) fn take(&self, mounted: &OwnedFd) -> Result<(), Failure> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(mounted.as_fd(), "", self.folder.as_fd(), "", flags).map_err(|errno| {
            let path = self.path.display();
            Failure::new(What::Other, format!("cannot mount on {path}: {errno}"))
        })
    }

    /// Takes it away again.
    pub(super) fn leave(&self) {
        if let Err(errno) = unmount(&self.path, UnmountFlags::DETACH) {
            tracing::warn!(folder = %self.path.display(), %errno, "still mounted");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    #[test]
    fn only_an_empty_folder_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let [empty, full, file, link] =
            ["empty", "full", "file", "link"].map(|name| dir.path().join(name));
        fs::create_dir(&empty).unwrap();
        fs::create_dir_all(full.join("inside")).unwrap();
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&empty, &link).unwrap();
        assert!(Place::find(&empty).is_ok());
        for (path, told) in [
            (&full, "not empty"),
            (&file, "no folder"),
            (&link, "no folder"),
        ] {
            let failure = Place::find(path).unwrap_err();
            assert_eq!(failure.what, What::Usage);
            assert!(failure.why.contains(told), "{failure}");
        }
    }
}
