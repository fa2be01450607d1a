//! What this kernel and its hypervisor offer.

use super::clock::PTP;
use super::entropy::NSM;
use super::lack::Lack;
use crate::socket;
use netd_proto::address::{Cid, LinkAddress, VsockPort};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use tracing::info;

const TUN: &str = "/dev/net/tun";

/// A kernel, by what differs between them.
#[derive(Debug)]
pub(super) struct Features {
    release: String,
    tun: bool,
    vsock: bool,
    ipv6: bool,
    nsm: bool,
    ptp: bool,
    cgroup: &'static str,
}

impl Features {
    /// Looks for each, once file systems and modules are there. What is missing is added to `lacks`.
    pub(super) fn probe(lacks: &mut Vec<Lack>) -> Features {
        let mut probe = |what: &str, found: io::Result<()>, follows| {
            if let Err(why) = &found {
                lacks.push(Lack::new(what, why, follows));
            }
            found.is_ok()
        };
        let tun = File::options().read(true).write(true).open(TUN).map(drop);
        // Any address will do: only a socket is made.
        let vsock = socket::probe(&LinkAddress::Vsock(Cid(0), VsockPort(0)));
        Features {
            release: nix::sys::utsname::uname().map_or_else(
                |error| error.to_string(),
                |name| name.release().to_string_lossy().into_owned(),
            ),
            tun: probe(TUN, tun, "no network can be made; it needs CONFIG_TUN"),
            vsock: probe(
                "AF_VSOCK",
                vsock,
                "the parent cannot be reached by vsock; it needs CONFIG_VSOCKETS and its virtio \
                 transport",
            ),
            ipv6: probe(
                "IPv6",
                there("/proc/net/if_inet6"),
                "programs have IPv4 alone; it needs CONFIG_IPV6",
            ),
            nsm: probe(
                NSM,
                there(NSM),
                "no entropy from the hypervisor and no attestation; in an enclave it needs the \
                 driver nsm",
            ),
            ptp: probe(
                PTP,
                there(PTP),
                "the clock runs by itself, some seconds a week off; it needs \
                 CONFIG_PTP_1588_CLOCK_KVM",
            ),
            cgroup: cgroup(),
        }
    }

    pub(super) fn tell(&self, modules: &[String], entropy_bits: Option<u32>) {
        let Features {
            release,
            tun,
            vsock,
            ipv6,
            nsm,
            ptp,
            cgroup,
        } = self;
        info!(
            kernel = release,
            tun, vsock, ipv6, nsm, ptp, cgroup, "kernel probed"
        );
        if !modules.is_empty() {
            info!(modules = modules.join(" "), "modules loaded");
        }
        if let Some(bits) = entropy_bits {
            info!(bits, source = NSM, "entropy credited");
        }
    }
}

fn there(path: &str) -> io::Result<()> {
    fs::metadata(path).map(drop)
}

/// Which version of control groups is mounted.
fn cgroup() -> &'static str {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        "v2"
    } else if super::mounts::is_mount_point(root) {
        "v1"
    } else {
        "none"
    }
}
