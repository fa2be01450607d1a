//! Gives up what is not needed once the network is up.
//!
//! Capabilities belong to threads, and new threads inherit them: this runs while there is one.
//! Only the thread's own sets shrink. The bounding set stays, and `no_new_privs` is not set, so a
//! command that is started as root gets what the kernel gives root at exec, as without us.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

/// Drops every capability of this thread but that of sending signals, for a command that changed
/// its user. With `foreign_files` the access to other users' files stays as well: to connect to
/// a unix socket of host-netd, which is not root, or to put back a file in another's folder.
///
/// # Errors
/// The kernel refused, which it never does for a set that shrinks.
pub(crate) fn drop_all_but_needed(foreign_files: bool) -> Result<(), CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let mut kept = CapsHashSet::from([Capability::CAP_KILL]);
    if foreign_files {
        kept.insert(Capability::CAP_DAC_OVERRIDE);
    }
    kept.retain(|capability| permitted.contains(capability));
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::clear(None, CapSet::Inheritable)
}
