//! System calls that no crate of ours offers.

use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// One buffer of [`NsmMessage`], from `linux/nsm.h`.
#[repr(C)]
struct NsmBuffer {
    address: u64,
    length: u64,
}

#[repr(C)]
struct NsmMessage {
    request: NsmBuffer,
    response: NsmBuffer,
}

/// From `linux/random.h`; the kernel reads `size` bytes of the buffer.
#[repr(C)]
struct PoolInfo<const N: usize> {
    bits: libc::c_int,
    size: libc::c_int,
    buffer: [u8; N],
}

mod ioctl {
    #![allow(unsafe_code, missing_docs)]
    use super::{NsmMessage, PoolInfo};
    use crate::limits::SEED;

    nix::ioctl_readwrite!(nsm, 0x0a, 0, NsmMessage);
    // The kernel's number counts the two integers in front only.
    nix::ioctl_write_ptr_bad!(
        add_entropy,
        nix::request_code_write!(b'R', 0x03, 8),
        PoolInfo<SEED>
    );
}

// Numbers of 32 bits, in a c_int of musl and a c_ulong of glibc.
const _: () = {
    use nix::sys::ioctl::ioctl_num_type as Number;
    const NSM: u32 = 0xc020_0a00;
    const ADD_ENTROPY: u32 = 0x4008_5203;
    assert!(nix::request_code_readwrite!(0x0a, 0, size_of::<NsmMessage>()) == NSM as Number);
    assert!(nix::request_code_write!(b'R', 0x03, 8) == ADD_ENTROPY as Number);
};

/// Puts a request to the NSM, and tells how long its response is.
///
/// # Errors
/// The driver's, or `InvalidData` for a length that cannot be.
pub(super) fn nsm(device: &File, request: &[u8], response: &mut [u8]) -> io::Result<usize> {
    let mut message = NsmMessage {
        request: NsmBuffer {
            address: request.as_ptr() as u64,
            length: request.len() as u64,
        },
        response: NsmBuffer {
            address: response.as_mut_ptr() as u64,
            length: response.len() as u64,
        },
    };
    // SAFETY: the driver reads the request and writes at most `length` bytes of the response; both
    // buffers and the message live over the call, and the response is borrowed for writing.
    #[allow(unsafe_code)]
    unsafe { ioctl::nsm(device.as_raw_fd(), &mut message) }?;
    usize::try_from(message.response.length)
        .ok()
        .filter(|&length| length <= response.len())
        .ok_or(io::ErrorKind::InvalidData.into())
}

/// Adds bytes to the kernel's pool and counts all their bits as entropy. Returns the bits.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub(super) fn add_entropy(device: &File, seed: &[u8]) -> io::Result<u32> {
    let mut info = PoolInfo {
        bits: 0,
        size: 0,
        buffer: [0; crate::limits::SEED],
    };
    let size = seed.len().min(info.buffer.len());
    info.buffer[..size].copy_from_slice(&seed[..size]);
    let bits = u32::try_from(size * 8).unwrap_or(0);
    info.size = libc::c_int::try_from(size).unwrap_or(0);
    info.bits = info.size * 8;
    // SAFETY: RNDADDENTROPY reads two integers and `size` bytes behind them, which are all within
    // the structure, and that lives over the call.
    #[allow(unsafe_code)]
    unsafe { ioctl::add_entropy(device.as_raw_fd(), &info) }?;
    Ok(bits)
}

/// Moves the system's clock by nanoseconds at once.
///
/// # Errors
/// `EPERM` without CAP_SYS_TIME; `EINVAL` for a time that the kernel does not take.
pub(super) fn step_clock(by: i64) -> io::Result<()> {
    const SECOND: i64 = 1_000_000_000;
    adjust(libc::ADJ_SETOFFSET | libc::ADJ_NANO, |timex| {
        timex.time.tv_sec = by.div_euclid(SECOND);
        // Nanoseconds, despite its name, because of ADJ_NANO.
        timex.time.tv_usec = by.rem_euclid(SECOND);
    })
}

/// Lets the system's clock run faster or slower until it has moved by nanoseconds, instead of what
/// was asked before.
///
/// # Errors
/// `EPERM` without CAP_SYS_TIME.
pub(super) fn slew_clock(by: i64) -> io::Result<()> {
    adjust(libc::ADJ_OFFSET_SINGLESHOT, |timex| {
        timex.offset = by / 1000;
    })
}

fn adjust(modes: libc::c_uint, fill: impl FnOnce(&mut libc::timex)) -> io::Result<()> {
    // SAFETY: the structure is made of integers, for all of which zero is a value.
    #[allow(unsafe_code)]
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = modes;
    fill(&mut timex);
    // SAFETY: adjtimex reads and writes the structure, which lives over the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::adjtimex(&mut timex) };
    Errno::result(result)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use caps::{CapSet, Capability, has_cap};
    use std::io::Read;

    /// What a call that takes a capability has to come to for who runs this.
    fn as_permitted<T>(capability: Capability, result: io::Result<T>) -> Option<T> {
        let has = has_cap(None, CapSet::Effective, capability).expect("capabilities");
        match result {
            Ok(value) if has => Some(value),
            Err(error) if !has => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                None
            }
            Ok(_) => panic!("permitted without {capability}"),
            Err(error) => panic!("the kernel does not understand: {error}"),
        }
    }

    #[test]
    fn the_kernel_takes_a_seed_and_counts_its_bits() {
        // What the kernel gave itself: nothing is counted that is not there.
        let mut seed = [0; 64];
        let mut random = File::open("/dev/urandom").expect("/dev/urandom");
        random.read_exact(&mut seed).expect("bytes");
        let random = File::options().write(true).open("/dev/random");
        let credited = add_entropy(&random.expect("/dev/random"), &seed);
        let bits = as_permitted(Capability::CAP_SYS_ADMIN, credited);
        assert!(bits.is_none_or(|bits| bits == 512));
    }

    #[test]
    fn the_kernel_takes_corrections_of_both_signs() {
        for by in [-1_000, 1_000] {
            as_permitted(Capability::CAP_SYS_TIME, step_clock(by));
        }
        for by in [-1_000, 0] {
            as_permitted(Capability::CAP_SYS_TIME, slew_clock(by));
        }
    }

    #[test]
    fn what_is_no_nsm_does_not_answer() {
        let device = File::open("/dev/zero").expect("/dev/zero");
        let error = nsm(&device, b"x", &mut [0; 16]).expect_err("no NSM");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
