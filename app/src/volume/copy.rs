//! A tree from one folder to another, where one of the two is a hostile server's.
//!
//! Names are looked up one at a time, in a folder that is open already, and never through a symbolic
//! link or onto another file system: a server that answers each look-up differently cannot lead the
//! copy out of its two folders. Folders and plain files are copied, with their permission bits;
//! anything else is left out and told. A file that could not be copied whole is removed again.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, statat, unlinkat,
};
use rustix::io::Errno;
use serde::Serialize;

use super::watch::Progress;
use crate::limits::volume as limits;

/// Copied bits: neither set-user-ID nor its like.
const PERMISSIONS: u32 = 0o777;

/// What was copied.
#[derive(Debug, Default, Serialize)]
pub(super) struct Tally {
    pub(super) files: u64,
    pub(super) folders: u64,
    pub(super) bytes: u64,
    /// How many names were neither a file nor a folder.
    pub(super) left_out: u64,
    /// The first of them, and what they are.
    pub(super) left_out_names: Vec<String>,
}

/// What was not copied, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display().to_string().escape_debug())]
pub(super) struct Broken {
    path: PathBuf,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Why {
    #[error("cannot read: {0}")]
    Read(io::Error),
    #[error("cannot write: {0}")]
    Write(io::Error),
    #[error("cannot write: something is there that is no file")]
    Target,
    #[error("more than {} MiB in all: raise --limit if the enclave has the memory", .0 >> 20)]
    Memory(u64),
    #[error("more than {} files and folders", limits::ENTRIES)]
    Entries,
    #[error("folders nest deeper than {}", limits::DEPTH)]
    Depth,
}

/// Copies, and counts.
#[derive(Debug)]
pub(super) struct Copier {
    /// Of memory, if what is copied lies there.
    most: u64,
    memory: u64,
    entries: u64,
    piece: Vec<u8>,
    progress: Progress,
    /// Where it is below its two folders, for messages.
    path: PathBuf,
    tally: Tally,
}

impl Copier {
    /// One whose copies take so many bytes of memory at most.
    pub(super) fn new(most: u64, progress: Progress) -> Copier {
        Copier {
            most,
            memory: 0,
            entries: 0,
            piece: vec![0; limits::PIECE],
            progress,
            path: PathBuf::new(),
            tally: Tally::default(),
        }
    }

    /// Copies `name` of one folder into another, or everything in it.
    pub(super) fn run(
        mut self,
        from: &OwnedFd,
        name: Option<&CStr>,
        to: &OwnedFd,
    ) -> Result<Tally, Broken> {
        let done = match name {
            Some(name) => self.entry(from, name, to, 0),
            None => self.folder(from, to, 0),
        };
        match done {
            Ok(()) => Ok(self.tally),
            Err(why) => Err(Broken {
                path: Path::new(".").join(self.path),
                why,
            }),
        }
    }

    fn folder(&mut self, from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<(), Why> {
        if depth > limits::DEPTH {
            return Err(Why::Depth);
        }
        // A mount without a place is a folder that cannot be read itself (O_PATH).
        let listed = open_below(from, c".", OFlags::DIRECTORY, Mode::empty()).map_err(read)?;
        for entry in Dir::new(listed).map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.entry(from, name, to, depth)?;
            }
        }
        Ok(())
    }

    /// On an error, the path stays that of what broke.
    fn entry(
        &mut self,
        from: &OwnedFd,
        name: &CStr,
        to: &OwnedFd,
        depth: usize,
    ) -> Result<(), Why> {
        self.path.push(Path::new(&*name.to_string_lossy()));
        self.progress.made();
        self.entries += 1;
        if self.entries > limits::ENTRIES {
            return Err(Why::Entries);
        }
        self.take(limits::ENTRY)?;
        let found = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(read)?;
        let mode = Mode::from_raw_mode(found.st_mode & PERMISSIONS);
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => match open_below(from, name, OFlags::DIRECTORY, Mode::empty()) {
                Err(Errno::XDEV) => self.leave_out("another file system"),
                opened => {
                    let from = opened.map_err(read)?;
                    let to = make_folder(to, name, mode).map_err(write)?;
                    self.tally.folders += 1;
                    self.folder(&from, &to, depth + 1)?;
                }
            },
            FileType::RegularFile => self.file(from, name, to, mode)?,
            FileType::Symlink => self.leave_out("a symbolic link"),
            _ => self.leave_out("no plain file"),
        }
        self.path.pop();
        Ok(())
    }

    fn file(&mut self, from: &OwnedFd, name: &CStr, to: &OwnedFd, mode: Mode) -> Result<(), Why> {
        // Not blocking, if it has become a pipe since.
        let source = open_below(from, name, OFlags::NONBLOCK, Mode::empty()).map_err(read)?;
        let is_file = fstat(&source).map_err(read)?.st_mode;
        if FileType::from_raw_mode(is_file) != FileType::RegularFile {
            self.leave_out("no plain file");
            return Ok(());
        }
        // The same of what is there under its name.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NONBLOCK;
        let target = open_below(to, name, flags, mode).map_err(|errno| match errno {
            Errno::NXIO => Why::Target, // a pipe that nobody reads
            errno => write(errno),
        })?;
        let is_file = fstat(&target).map_err(write)?.st_mode;
        if FileType::from_raw_mode(is_file) != FileType::RegularFile {
            return Err(Why::Target);
        }
        let target = File::from(target);
        let done = self.bytes(&mut File::from(source), &target);
        if done.is_err() {
            drop(target);
            // It cannot be more than tried.
            let _ = unlinkat(to, name, AtFlags::empty());
        }
        done
    }

    fn bytes(&mut self, source: &mut File, mut target: &File) -> Result<(), Why> {
        loop {
            let length = match source.read(&mut self.piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Why::Read(error)),
            };
            self.progress.made();
            self.tally.bytes += length as u64;
            self.take((length as u64).next_multiple_of(limits::PAGE))?;
            target
                .write_all(&self.piece[..length])
                .map_err(Why::Write)?;
        }
        // On the server's disk, if the server is honest.
        target.sync_all().map_err(Why::Write)?;
        self.tally.files += 1;
        Ok(())
    }

    /// Counts memory that the copy takes.
    fn take(&mut self, bytes: u64) -> Result<(), Why> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > self.most {
            return Err(Why::Memory(self.most));
        }
        Ok(())
    }

    fn leave_out(&mut self, what: &str) {
        self.tally.left_out += 1;
        if self.tally.left_out_names.len() < limits::LEFT_OUT {
            let line = format!("{}: {what}", self.path.display());
            self.tally.left_out_names.push(line);
        }
    }
}

/// Opens a name in a folder, and nothing that is elsewhere.
fn open_below(
    folder: &OwnedFd,
    name: &CStr,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat2(folder.as_fd(), name, flags, mode, resolve)
}

/// Makes a folder, or takes the one that is there.
fn make_folder(parent: &OwnedFd, name: &CStr, mode: Mode) -> rustix::io::Result<OwnedFd> {
    // Its owner can always write into it: there is something to come.
    match mkdirat(parent, name, mode | Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open_below(parent, name, OFlags::DIRECTORY, Mode::empty()),
        Err(errno) => Err(errno),
    }
}

fn read(errno: Errno) -> Why {
    Why::Read(errno.into())
}

fn write(errno: Errno) -> Why {
    Why::Write(errno.into())
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
