//! A folder that lasts: an NFSv4 export of the parent, mounted, or copied from and to.
//!
//! The client is the kernel's. It is asked by `fsopen` and `fsmount`, which make a mount that has no
//! place yet: `mount` puts it into place when nothing can fail any more, `copy` works in it and never
//! does, so nothing is left of either when they fail, are killed, or end.
//!
//! # Who serves it
//! The parent, which is hostile: it reads what is written, changes it, takes it back to an earlier
//! state, and answers each look at a name differently. So programs are not run from a volume, devices
//! and set-user-ID bits are ignored, and symbolic links, which could lead a program that writes to its
//! volume into the enclave's own files, are not followed (`attach`). A copy never follows any either
//! (`copy`). Secrecy and authenticity are left to who uses it: docs/services.md tells how.

mod attach;
mod command;
mod copy;
mod export;
mod place;
mod watch;

pub use command::{Command, run};
