//! Limits of `volume`, with their reasons.

use std::time::Duration;

/// How long mounting may take once the server has accepted a connection. The kernel itself waits for
/// ever for a server that does not answer.
pub const MOUNT_TIME: Duration = Duration::from_secs(60);

/// How long a copy may stand still. An entry or 1 MiB is a step; the slowest is the server's disk, when
/// a large file is to be kept.
pub const STANDSTILL: Duration = Duration::from_secs(120);

/// How long a request of a `--soft` volume waits for a connection, in tenths of a second, and how often
/// that is repeated: programs get an error after half a minute.
pub const SOFT_TENTHS: u32 = 100;
/// See [`SOFT_TENTHS`].
pub const SOFT_REPEATS: u32 = 2;

/// The most messages of the kernel that are told about a mount that failed, and the length of one.
pub const MESSAGES: usize = 8;
/// See [`MESSAGES`].
pub const MESSAGE: usize = 512;

/// How deep folders may nest in a copy: each level holds three files open, and programs usually get
/// 1,024.
pub const DEPTH: usize = 64;
/// The most files and folders of one copy: a server could make up names for ever.
pub const ENTRIES: u64 = 1_000_000;
/// How many MiB of memory a copy into the enclave may take, unless `--limit` says otherwise: the files of
/// an enclave are in its memory.
pub const PULLED_MIB: u64 = 1024;
/// What a file or a folder takes there by itself, and what the bytes of a file are rounded up to.
pub const ENTRY: u64 = 1024;
/// See [`ENTRY`].
pub const PAGE: u64 = 4096;
/// The longest `HOST:/PATH`: the kernel takes no more.
pub const EXPORT: usize = 255;
/// How much of a file is read at once: the most that an NFS server of Linux answers.
pub const PIECE: usize = 1024 * 1024;
/// How many of the names that were left out the report tells.
pub const LEFT_OUT: usize = 100;
