//! The stream to the parent: time-outs and buffers are set before it connects.

use netd_proto::address::LinkAddress;
use netd_proto::limits::{UNIX_BUFFER, VSOCK_BUFFER};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout, SndBuf};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, VsockAddr, connect, setsockopt, socket,
};
use nix::sys::time::TimeVal;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Options of AF_VSOCK, from `linux/vm_sockets.h`.
mod option {
    #![allow(unsafe_code)]
    use nix::libc::{self, AF_VSOCK};
    use nix::{setsockopt_impl, sockopt_impl};

    const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
    const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;

    // SAFETY: both options take a u64 (af_vsock.c), and the level is the family's number.
    sockopt_impl!(
        /// Bytes that the socket buffers.
        VsockBuffer, SetOnly, AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, u64);
    sockopt_impl!(
        /// Most that `VsockBuffer` may be set to.
        VsockBufferMax, SetOnly, AF_VSOCK, SO_VM_SOCKETS_BUFFER_MAX_SIZE, u64);
}

/// Whether this kernel has the address's family at all.
pub(crate) fn probe(address: &LinkAddress) -> io::Result<()> {
    make(address).map(drop)
}

/// Connects. The stream is blocking; connecting, reading and writing give up after `timeout`.
pub(crate) fn open(address: &LinkAddress, timeout: Duration) -> io::Result<File> {
    let stream = make(address)?;
    set_timeout(&stream, timeout)?;
    match address {
        LinkAddress::Vsock(cid, port) => {
            // The first raises the bound of the second.
            setsockopt(&stream, option::VsockBufferMax, &VSOCK_BUFFER)?;
            setsockopt(&stream, option::VsockBuffer, &VSOCK_BUFFER)?;
            connect(stream.as_raw_fd(), &VsockAddr::new(cid.0, port.0))?;
        }
        LinkAddress::Unix(path) => {
            setsockopt(&stream, SndBuf, &UNIX_BUFFER)?;
            connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
        }
    }
    Ok(File::from(stream))
}

/// Changes how long a blocking read or write may take.
pub(crate) fn set_timeout(stream: &impl AsFd, timeout: Duration) -> io::Result<()> {
    let micros = timeout.as_micros().try_into().unwrap_or(i64::MAX);
    let timeout = <TimeVal as nix::sys::time::TimeValLike>::microseconds(micros);
    setsockopt(stream, ReceiveTimeout, &timeout)?;
    setsockopt(stream, SendTimeout, &timeout)?;
    Ok(())
}

/// Switches between blocking and not.
pub(crate) fn set_nonblocking(stream: &impl AsFd, nonblocking: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(stream, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, nonblocking);
    fcntl(stream, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

fn make(address: &LinkAddress) -> io::Result<OwnedFd> {
    let family = match address {
        LinkAddress::Vsock(..) => AddressFamily::Vsock,
        LinkAddress::Unix(_) => AddressFamily::Unix,
    };
    Ok(socket(
        family,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}
