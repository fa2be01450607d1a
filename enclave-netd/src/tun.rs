//! The tun device: made, and told what the kernel may leave undone.
//!
//! Every packet read or written has a virtio-net header of 10 bytes before it. With offload on,
//! the kernel hands out TCP super-segments of up to 64 KiB whose checksums are not filled in, and
//! takes such packets back: one read or write moves forty segments. Since Linux 6.2 the same is
//! done for UDP. The device goes with its file descriptor, and its addresses and routes with it.

use netd_proto::handshake::Features;
use netd_proto::offload::VnetHeader;
use netd_proto::packet::Packet;
use netd_proto::run;
use std::ffi::c_int;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use thiserror::Error;

/// What the kernel may leave to this side, from `linux/if_tun.h`.
const TUN_F_CSUM: c_int = 0x01;
const TUN_F_TSO4: c_int = 0x02;
const TUN_F_TSO6: c_int = 0x04;
const TUN_F_USO4: c_int = 0x20;
const TUN_F_USO6: c_int = 0x40;

mod ioctl {
    #![allow(unsafe_code, missing_docs)]
    use std::ffi::c_int;

    nix::ioctl_write_int_bad!(
        set_offload,
        nix::request_code_write!(b'T', 208, size_of::<c_int>())
    );
    nix::ioctl_write_ptr!(set_vnet_header_size, b'T', 216, c_int);
    nix::ioctl_write_ptr!(set_vnet_little_endian, b'T', 220, c_int);
}

/// Why there is no tun device, and what to do.
#[derive(Debug, Error)]
pub(crate) enum TunError {
    #[error(
        "network interface {0} is already there: stop the enclave-netd that owns it, or set \
         network.interface to another name"
    )]
    NameTaken(String),
    #[error(
        "/dev/net/tun is missing: run 'mkdir -p /dev/net && mknod /dev/net/tun c 10 200', with a \
         kernel that has CONFIG_TUN"
    )]
    NoDevice,
    #[error(
        "no permission to make a tun device: enclave-netd needs CAP_NET_ADMIN, run it as root in \
         the enclave"
    )]
    NoPermission,
    #[error("cannot set up the tun device {name}: {source}")]
    Other { name: String, source: io::Error },
}

/// How much of TCP and UDP the kernel leaves to the far side of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Offload {
    /// Nothing: every packet is complete and at most as long as the MTU.
    None,
    /// Checksums only.
    Checksum,
    /// Checksums, and TCP segments of up to 64 KiB.
    Segmentation,
    /// That, and as many UDP datagrams.
    Datagrams,
}

impl Offload {
    /// What this side takes from the link. UDP super-datagrams always: the kernel or
    /// [`Tun::deliver`] cuts them.
    pub(crate) fn features(self) -> Features {
        match self {
            Offload::None => Features::default(),
            Offload::Checksum => Features::CHECKSUM.or(Features::USO),
            Offload::Segmentation | Offload::Datagrams => {
                let tso = Features::TSO4.or(Features::TSO6);
                Offload::Checksum.features().or(tso)
            }
        }
    }

    /// The most that a far side with `features` takes.
    fn permitted(features: Features) -> Offload {
        let tso = Features::TSO4.or(Features::TSO6);
        if !features.contains(Features::CHECKSUM) {
            Offload::None
        } else if !features.contains(tso) {
            Offload::Checksum
        } else if !features.contains(Features::USO) {
            Offload::Segmentation
        } else {
            Offload::Datagrams
        }
    }

    fn flags(self) -> c_int {
        match self {
            Offload::None => 0,
            Offload::Checksum => TUN_F_CSUM,
            Offload::Segmentation => TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6,
            Offload::Datagrams => Offload::Segmentation.flags() | TUN_F_USO4 | TUN_F_USO6,
        }
    }
}

/// An open tun device, not yet up.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
    name: String,
    index: u32,
    offload: Offload,
}

impl Tun {
    /// Makes the device `name`.
    ///
    /// # Errors
    /// See [`TunError`]; nothing is left behind.
    pub(crate) fn open(name: &str) -> Result<Tun, TunError> {
        if nix::net::if_::if_nametoindex(name).is_ok() {
            return Err(TunError::NameTaken(name.to_owned()));
        }
        let mut configuration = tun::Configuration::default();
        configuration.tun_name(name).platform_config(|platform| {
            // Addresses, MTU and state are set by netlink, of both families at once.
            platform.vnet_hdr(true).ensure_root_privileges(false);
        });
        let device = tun::create(&configuration).map_err(|error| explain(name, error))?;
        device
            .set_nonblock()
            .map_err(|source| other(name, source))?;
        Tun::from_file(File::from(owned(device)), name)
    }

    fn from_file(file: File, name: &str) -> Result<Tun, TunError> {
        let offload = set_header(&file).map_err(|source| other(name, source))?;
        let index = nix::net::if_::if_nametoindex(name).map_err(|e| other(name, e.into()))?;
        Ok(Tun {
            file,
            name: name.to_owned(),
            index,
            offload,
        })
    }

    /// The device `name`, made by another process, whose open file this is. It must not block.
    ///
    /// # Errors
    /// See [`TunError`].
    pub(crate) fn inherited(file: OwnedFd, name: &str) -> Result<Tun, TunError> {
        Tun::from_file(File::from(file), name)
    }

    /// Another handle of the same open file.
    ///
    /// # Errors
    /// There is no room for another descriptor.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// The interface's index, for netlink.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The interface's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel agreed to.
    pub(crate) fn offload(&self) -> Offload {
        self.offload
    }

    /// Takes back what the far side of the link is not able to do, for one link. Returns what is
    /// left.
    pub(crate) fn limit_offload(&self, features: Features) -> io::Result<Offload> {
        let offload = self.offload.min(Offload::permitted(features));
        set_offload(&self.file, offload)?;
        Ok(offload)
    }

    /// Reads one packet with its header.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &self.file, buffer)
    }

    /// Reads one packet with its header into several buffers, filled in order.
    pub(crate) fn read_parts(&self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        io::Read::read_vectored(&mut &self.file, parts)
    }

    /// Writes what the guard let in: one packet with its header. A super-datagram is cut here if
    /// the kernel does not know it.
    pub(crate) fn deliver(
        &self,
        vnet: &VnetHeader,
        packet: &Packet<'_>,
        frame: &[u8],
    ) -> io::Result<()> {
        let Some(size) = vnet
            .datagram_size()
            .filter(|_| self.offload < Offload::Datagrams)
        else {
            return self.write(frame).map(drop);
        };
        let mut result = Ok(());
        run::cut(size, packet, |headers, payload| {
            let parts = [IoSlice::new(headers), IoSlice::new(payload)];
            let written = io::Write::write_vectored(&mut &self.file, &parts).map(drop);
            // One that is refused does not keep the others out.
            result = std::mem::replace(&mut result, Ok(())).and(written);
        });
        result
    }

    /// Writes one packet with its header.
    pub(crate) fn write(&self, packet: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut &self.file, packet)
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn owned(device: tun::Device) -> OwnedFd {
    // SAFETY: into_raw_fd gives up ownership of an open descriptor, so nobody else closes it.
    #[allow(unsafe_code)]
    unsafe {
        OwnedFd::from_raw_fd(device.into_raw_fd())
    }
}

fn explain(name: &str, error: tun::Error) -> TunError {
    let source = match error {
        tun::Error::Io(source) => source,
        error => io::Error::other(error),
    };
    use nix::libc;
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => TunError::NoDevice,
        Some(libc::EPERM | libc::EACCES) => TunError::NoPermission,
        Some(libc::EBUSY) => TunError::NameTaken(name.to_owned()),
        _ => other(name, source),
    }
}

fn other(name: &str, source: io::Error) -> TunError {
    TunError::Other {
        name: name.to_owned(),
        source,
    }
}

/// Fixes the header's size and byte order, and asks for as much offload as the kernel has.
#[allow(unsafe_code)]
fn set_header(file: &File) -> io::Result<Offload> {
    let fd = file.as_raw_fd();
    let size = c_int::try_from(VnetHeader::LEN).expect("ten bytes");
    // SAFETY: TUNSETVNETHDRSZ reads one int from the address, which lives over the call.
    unsafe { ioctl::set_vnet_header_size(fd, &size) }?;
    // Kernels without it, and little-endian ones, use the right order anyway.
    // SAFETY: TUNSETVNETLE reads one int from the address, which lives over the call.
    let order = unsafe { ioctl::set_vnet_little_endian(fd, &1) };
    if order.is_err() && cfg!(target_endian = "big") {
        return Err(io::Error::other(
            "the kernel lacks TUNSETVNETLE, and is big-endian",
        ));
    }
    let best = [Offload::Datagrams, Offload::Segmentation, Offload::Checksum];
    Ok(best
        .into_iter()
        .find(|o| set_offload(file, *o).is_ok())
        .unwrap_or(Offload::None))
}

#[allow(unsafe_code)]
fn set_offload(file: &File, offload: Offload) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    unsafe { ioctl::set_offload(file.as_raw_fd(), offload.flags()) }?;
    Ok(())
}
