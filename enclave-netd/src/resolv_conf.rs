//! Points resolv.conf at the gateway, and puts back what was there.
//!
//! # How
//! The original must never be lost, whatever ends this process, and programs must never read half
//! a file. So:
//!
//! 1. The original gets a second name beside it, `resolv.conf.before-enclave-netd`, by a hard
//!    link: a plain file or a symbolic link is kept with everything that belongs to it.
//! 2. Our file is written under a third name and renamed over the original.
//! 3. Putting back is one rename of the second name over the first.
//!
//! A bind mount (as `ip netns exec` makes of `/etc/netns/NAME/resolv.conf`) cannot be renamed
//! over. There a copy is kept beside it, named after the mounted file's inode because the folder
//! may be shared by several mount namespaces, and the file is rewritten in place, both ways.
//!
//! # After a crash
//! Our file begins with [`MARKER`] and is locked (`flock`) as long as its writer lives. The next
//! start that finds the marker and no lock puts the kept original back before it begins. A file
//! without the marker was written by someone else since: it wins, and what was kept is renamed to
//! `….old`.

use crate::limits::MAX_RESOLV_CONF;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;
use tracing::{info, warn};

const MARKER: &str = "# Written by enclave-netd, which puts the former file back when it ends.";
const BACKUP: &str = ".before-enclave-netd";

/// Why the resolver could not be pointed at the gateway.
#[derive(Debug, Error)]
pub(crate) enum ResolvConfError {
    #[error(
        "{0} is on a read-only file system: set dns.resolv_conf = false and bake 'nameserver' \
         lines into the image, or set it to the path of a file that can be written"
    )]
    ReadOnly(PathBuf),
    #[error(
        "{0} belongs to another enclave-netd that still runs: stop that one, or set \
         dns.resolv_conf = false"
    )]
    Taken(PathBuf),
    #[error("{0} is neither a file nor a symbolic link: set dns.resolv_conf to one, or to false")]
    Kind(PathBuf),
    #[error("cannot {action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// A resolv.conf in custody; put back when dropped.
#[derive(Debug)]
pub(crate) struct ResolvConf {
    path: PathBuf,
    former: Former,
    /// Holds the lock that tells this run from a dead one.
    ours: File,
    restored: bool,
}

/// What was there.
#[derive(Debug)]
enum Former {
    Missing,
    /// Kept under this name by a link.
    Linked(PathBuf),
    /// Copied to this name, and rewritten in place.
    Copied(PathBuf),
}

impl ResolvConf {
    /// Makes `path` name `servers`, after putting back what a dead run left.
    ///
    /// # Errors
    /// See [`ResolvConfError`]; the file is as it was.
    pub(crate) fn point_at(
        path: &Path,
        servers: &[IpAddr],
        search: &[String],
    ) -> Result<ResolvConf, ResolvConfError> {
        recover(path)?;
        let content = content(servers, search);
        let kept = sibling(path, BACKUP);
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let ours = replace(path, &content)?;
                Ok(ResolvConf {
                    path: path.into(),
                    former: Former::Missing,
                    ours,
                    restored: false,
                })
            }
            Err(error) => Err(failed("look at", path)(error)),
            Ok(found) if !found.is_file() && !found.is_symlink() => {
                Err(ResolvConfError::Kind(path.into()))
            }
            Ok(_) => match fs::hard_link(path, &kept) {
                Ok(()) => Self::swap(path, kept, &content),
                // Across mounts: the path is itself a mount point.
                Err(error) if error.raw_os_error() == Some(nix::libc::EXDEV) => {
                    Self::rewrite(path, &content)
                }
                // File systems without hard links: a moment without the file is the price.
                Err(error) if is_unsupported(&error) => {
                    fs::rename(path, &kept).map_err(failed("keep", path))?;
                    Self::swap(path, kept, &content)
                }
                Err(error) => Err(failed("keep a second name of", path)(error)),
            },
        }
    }

    /// The original is kept: put ours in its place.
    fn swap(path: &Path, kept: PathBuf, content: &[u8]) -> Result<Self, ResolvConfError> {
        match replace(path, content) {
            Ok(ours) => {
                let former = Former::Linked(kept);
                Ok(ResolvConf {
                    path: path.into(),
                    former,
                    ours,
                    restored: false,
                })
            }
            Err(error) => {
                put_back(path, &kept).map_err(failed("put back", path))?;
                Err(error)
            }
        }
    }

    fn rewrite(path: &Path, content: &[u8]) -> Result<Self, ResolvConfError> {
        let ours = open(path)?;
        ours.try_lock()
            .map_err(|_| ResolvConfError::Taken(path.into()))?;
        let copy = copy_name(path, &ours)?;
        replace(&copy, &read(path)?)?;
        let former = Former::Copied(copy);
        let custody = ResolvConf {
            path: path.into(),
            former,
            ours,
            restored: false,
        };
        overwrite(&custody.ours, content).map_err(failed("write", path))?;
        Ok(custody)
    }

    /// Whether putting it back takes more than this user's own rights.
    pub(crate) fn is_in_foreign_folder(&self) -> bool {
        let folder = self.path.parent().map(fs::metadata);
        !matches!(folder, Some(Ok(found)) if found.uid() == nix::unistd::geteuid().as_raw())
    }

    /// Puts back what was there.
    ///
    /// # Errors
    /// See [`ResolvConfError`]; what was kept stays kept, and the next start tries again.
    pub(crate) fn restore(mut self) -> Result<(), ResolvConfError> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), ResolvConfError> {
        self.restored = true;
        if !self.is_ours() {
            warn!(
                path = %self.path.display(),
                "someone else rewrote the file: leaving it, and what was there before beside it"
            );
            return match &self.former {
                Former::Missing => Ok(()),
                Former::Linked(kept) | Former::Copied(kept) => retire(kept),
            };
        }
        match &self.former {
            Former::Missing => fs::remove_file(&self.path).map_err(failed("remove", &self.path)),
            Former::Linked(kept) => {
                put_back(&self.path, kept).map_err(failed("put back", &self.path))
            }
            Former::Copied(copy) => copy_back(&self.path, &self.ours, copy),
        }
    }

    /// Whether the path still leads to the file this run wrote.
    fn is_ours(&self) -> bool {
        let Ok(held) = self.ours.metadata() else {
            return false;
        };
        let same = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (held.dev(), held.ino()));
        same && read(&self.path).is_ok_and(|content| content.starts_with(MARKER.as_bytes()))
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        if !self.restored
            && let Err(error) = self.undo()
        {
            warn!(%error, "resolv.conf not put back; the next start tries again");
        }
    }
}

/// Puts back what a run that did not end in order left at `path`.
fn recover(path: &Path) -> Result<(), ResolvConfError> {
    let kept = sibling(path, BACKUP);
    let Ok(found) = fs::symlink_metadata(path) else {
        // Killed between the two renames on a file system without hard links.
        return if fs::symlink_metadata(&kept).is_ok() {
            info!(path = %path.display(), "putting back what a former run left");
            put_back(path, &kept).map_err(failed("put back", path))
        } else {
            Ok(())
        };
    };
    if found.is_file() {
        let left = open(path)?;
        let copy = copy_name(path, &left)?;
        let start = read(path)?;
        // A file cut short within the marker is one that was being copied back.
        let cut = !start.is_empty() && MARKER.as_bytes().starts_with(&start) && copy.exists();
        if cut || start.starts_with(MARKER.as_bytes()) {
            left.try_lock()
                .map_err(|_| ResolvConfError::Taken(path.into()))?;
            info!(path = %path.display(), "putting back what a former run left");
            return if copy.exists() {
                copy_back(path, &left, &copy)
            } else if fs::symlink_metadata(&kept).is_ok() {
                put_back(path, &kept).map_err(failed("put back", path))
            } else {
                // There was none.
                fs::remove_file(path).map_err(failed("remove", path))
            };
        }
        if copy.exists() {
            retire(&copy)?;
        }
    }
    match fs::symlink_metadata(&kept) {
        // Killed before the rename: two names of one file.
        Ok(other) if (other.dev(), other.ino()) == (found.dev(), found.ino()) => {
            fs::remove_file(&kept).map_err(failed("remove", &kept))
        }
        Ok(_) => {
            warn!(path = %path.display(), "rewritten since a former run: keeping the newer");
            retire(&kept)
        }
        Err(_) => Ok(()),
    }
}

fn content(servers: &[IpAddr], search: &[String]) -> Vec<u8> {
    let mut text = format!("{MARKER}\n");
    for server in servers {
        text += &format!("nameserver {server}\n");
    }
    if !search.is_empty() {
        text += &format!("search {}\n", search.join(" "));
    }
    text.into_bytes()
}

/// Writes `content` to a new file and renames it to `path`. The file comes back locked.
fn replace(path: &Path, content: &[u8]) -> Result<File, ResolvConfError> {
    let new = sibling(path, &format!(".new-{}", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&new)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.try_lock()?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        Ok(file)
    };
    write().map_err(|error: io::Error| {
        // Where it was not even made there is nothing to remove.
        let _ = fs::remove_file(&new);
        failed("write", path)(error)
    })
}

/// Writes `content` over the file's. Killed half-way, the file still begins with the marker, or
/// is cut short within it: first the length shrinks, then one write brings the content.
fn overwrite(file: &File, content: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let length = content.len() as u64;
    if content.starts_with(MARKER.as_bytes()) {
        file.write_all_at(content, 0)?;
        file.set_len(length)?;
    } else {
        file.set_len(length.min(file.metadata()?.len()))?;
        file.write_all_at(content, 0)?;
    }
    file.sync_all()
}

fn copy_back(path: &Path, file: &File, copy: &Path) -> Result<(), ResolvConfError> {
    overwrite(file, &read(copy)?).map_err(failed("put back", path))?;
    fs::remove_file(copy).map_err(failed("remove", copy))
}

/// Renames `kept` over `path`. Two names of one file need the second removed by hand: rename(2)
/// leaves both.
fn put_back(path: &Path, kept: &Path) -> io::Result<()> {
    fs::rename(kept, path)?;
    match fs::remove_file(kept) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Keeps a backup that is no longer wanted under a name that nobody looks for.
fn retire(kept: &Path) -> Result<(), ResolvConfError> {
    let old = sibling(kept, ".old");
    fs::rename(kept, &old).map_err(failed("rename", kept))
}

fn open(path: &Path) -> Result<File, ResolvConfError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed("open for writing", path))
}

fn read(path: &Path) -> Result<Vec<u8>, ResolvConfError> {
    let mut content = Vec::new();
    let file = File::open(path).map_err(failed("read", path))?;
    file.take(MAX_RESOLV_CONF + 1)
        .read_to_end(&mut content)
        .map_err(failed("read", path))?;
    if content.len() as u64 > MAX_RESOLV_CONF {
        return Err(failed("read", path)(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(content)
}

fn copy_name(path: &Path, file: &File) -> Result<PathBuf, ResolvConfError> {
    let found = file.metadata().map_err(failed("look at", path))?;
    Ok(sibling(
        path,
        &format!("{BACKUP}.{:x}-{:x}", found.dev(), found.ino()),
    ))
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn is_unsupported(error: &io::Error) -> bool {
    use nix::libc::{EMLINK, EOPNOTSUPP, EPERM};
    matches!(error.raw_os_error(), Some(EPERM | EOPNOTSUPP | EMLINK))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ResolvConfError {
    let path = path.to_owned();
    move |source| match source.raw_os_error() {
        Some(nix::libc::EROFS) => ResolvConfError::ReadOnly(path),
        _ => ResolvConfError::Io {
            action,
            path,
            source,
        },
    }
}

#[cfg(test)]
#[path = "resolv_conf_tests.rs"]
mod tests;
