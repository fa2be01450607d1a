//! Packet sockets (packet(7)) that move frames in batches.

#![allow(
    unsafe_code,
    reason = "recvmmsg, sendmmsg and packet options; each block says why"
)]

use super::ring::Ring;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

/// Frames a system call.
const BATCH: usize = 64;
/// What the kernel may keep for a direction: some 20,000 frames.
const BUFFER: libc::c_int = 64 * 1024 * 1024;

/// All frames that come in over one interface; not those that it sends.
pub(super) struct PacketSocket(OwnedFd);

impl PacketSocket {
    pub(super) fn open(interface: &str) -> io::Result<PacketSocket> {
        let index = index(interface)?;
        let all = u16::try_from(libc::ETH_P_ALL).expect("16 bits").to_be();
        // SAFETY: a plain system call; the descriptor is checked, and owned from here on.
        let socket = unsafe {
            let fd = libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                i32::from(all),
            );
            OwnedFd::from_raw_fd(check(fd)?)
        };
        let socket = PacketSocket(socket);
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        socket.set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("16 bits");
        address.sll_protocol = all;
        address.sll_ifindex = index;
        // SAFETY: the pointer and the length are those of `address`.
        check(unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                (&raw const address).cast(),
                length_of(&address),
            )
        })?;
        Ok(socket)
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of `value`.
        check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                length_of(&value),
            )
        })?;
        Ok(())
    }

    /// Waits until a frame is there.
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads frames that are there into free slots, and tells how many.
    pub(super) fn receive(&self, ring: &mut Ring) -> io::Result<usize> {
        let mut parts = [EMPTY_PART; BATCH];
        let mut count = 0;
        for (part, slot) in parts.iter_mut().zip(ring.free(BATCH)) {
            part.iov_base = slot.as_mut_ptr().cast();
            part.iov_len = slot.len();
            count += 1;
        }
        let mut headers = headers(&mut parts);
        // SAFETY: the first `count` headers point to one part each, those to slots of the ring,
        // which nothing else touches during the call.
        let received = unsafe {
            libc::recvmmsg(
                self.0.as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let received = match check(received) {
            Ok(received) => usize::try_from(received).expect("not negative"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        for (number, header) in headers[..received].iter().enumerate() {
            ring.fill(number, header.msg_len as usize);
        }
        Ok(received)
    }

    /// Writes the frames whose time has come, one batch of them, and tells how many.
    pub(super) fn send_due(&self, ring: &mut Ring, now: Instant) -> io::Result<u64> {
        let due = ring.due(now, BATCH);
        let mut parts = [EMPTY_PART; BATCH];
        let mut count = 0;
        for frame in due.clone().map(|number| ring.frame(number)) {
            if !frame.is_empty() {
                parts[count as usize].iov_base = frame.as_ptr().cast_mut().cast();
                parts[count as usize].iov_len = frame.len();
                count += 1;
            }
        }
        let mut headers = headers(&mut parts);
        let mut sent = 0;
        while sent < count {
            let rest = &mut headers[sent as usize..];
            // SAFETY: `count - sent` headers from here on point to one part each, those to frames
            // of the ring, which are only read.
            let n =
                unsafe { libc::sendmmsg(self.0.as_raw_fd(), rest.as_mut_ptr(), count - sent, 0) };
            match check(n) {
                Ok(n) => sent += u32::try_from(n).expect("not negative"),
                // The other end's queue is full: lost, as on a real wire.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => sent += 1,
                Err(error) => return Err(error),
            }
        }
        ring.release(due.end);
        Ok(u64::from(count))
    }

    /// How many frames the kernel dropped because nobody read them in time.
    pub(super) fn overflowed(&self) -> io::Result<u64> {
        // SAFETY: all-zero is a valid tpacket_stats.
        let mut stats: libc::tpacket_stats = unsafe { mem::zeroed() };
        let mut length = length_of(&stats);
        // SAFETY: the pointers are to `stats` and its length.
        check(unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        })?;
        Ok(u64::from(stats.tp_drops))
    }
}

const EMPTY_PART: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// One header for each part; they point into `parts`.
fn headers(parts: &mut [libc::iovec; BATCH]) -> [libc::mmsghdr; BATCH] {
    // SAFETY: all-zero is a valid mmsghdr: no name, no parts, no control data.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    for (header, part) in headers.iter_mut().zip(parts) {
        header.msg_hdr.msg_iov = part;
        header.msg_hdr.msg_iovlen = 1;
    }
    headers
}

fn index(interface: &str) -> io::Result<libc::c_int> {
    let name = CString::new(interface)?;
    // SAFETY: `name` ends with a zero byte and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    match libc::c_int::try_from(index) {
        Ok(1..) => Ok(index.cast_signed()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn length_of<T>(value: &T) -> libc::socklen_t {
    libc::socklen_t::try_from(mem::size_of_val(value)).expect("small")
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
