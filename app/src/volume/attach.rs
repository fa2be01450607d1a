//! An export as a mount without a place.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::export::Export;
use super::watch::watched;
use crate::error::{Failure, What};
use crate::limits::net::CONNECT_TIME;
use crate::limits::volume as limits;
use crate::net::dial;

/// The version of NFS to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Version {
    /// NFSv4.0
    #[value(name = "4.0")]
    Zero,
    /// NFSv4.1
    #[value(name = "4.1")]
    One,
    /// NFSv4.2
    #[value(name = "4.2")]
    Two,
}

impl Version {
    fn text(self) -> &'static str {
        match self {
            Version::Zero => "4.0",
            Version::One => "4.1",
            Version::Two => "4.2",
        }
    }
}

/// How a volume is mounted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) port: u16,
    pub(super) version: Version,
    pub(super) read_only: bool,
    /// Programs get an error when the server is silent, and do not wait for it.
    pub(super) soft: bool,
    /// Programs on it may be run.
    pub(super) executable: bool,
    /// Symbolic links on it are followed.
    pub(super) symlinks: bool,
}

/// What was mounted nowhere; it is unmounted when the last file in it is closed.
#[derive(Debug)]
pub(super) struct Mounted {
    pub(super) root: OwnedFd,
    /// An export may be a file.
    pub(super) kind: FileType,
}

/// Mounts an export nowhere.
pub(super) async fn attach(export: &Export, terms: Terms) -> Result<Mounted, Failure> {
    let (server, own) = reach(export, terms.port).await?;
    let request = Request {
        export: export.clone(),
        server,
        own,
        terms,
    };
    let silent =
        format!("{server} accepts connections and does not answer as an NFS server: is it one?");
    watched(limits::MOUNT_TIME, &silent, move |_| request.mounted()).await?
}

/// Connects to the server, to tell why if that does not work: the kernel would tell much less. The
/// server's address, and the own one towards it.
async fn reach(export: &Export, port: u16) -> Result<(SocketAddr, IpAddr), Failure> {
    let network = |why: String| Failure::new(What::Network, why);
    let found = dial::look_up(&export.host, port).await;
    let found =
        found.map_err(|error| network(format!("cannot look up {}: {error}", export.host)))?;
    let mut failure = None;
    for server in found {
        match connect(server, CONNECT_TIME).await {
            Ok(stream) => match stream.local_addr() {
                Ok(own) => return Ok((server, own.ip())),
                Err(error) => failure = Some(network(error.to_string())),
            },
            Err(error) => {
                failure = Some(network(format!(
                    "{server}: {}",
                    unreachable(&error, server)
                )))
            }
        }
    }
    Err(failure.unwrap_or_else(|| network(format!("{} has no address", export.host))))
}

async fn connect(server: SocketAddr, time: Duration) -> io::Result<TcpStream> {
    timeout(time, TcpStream::connect(server))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What a connection that failed says of the way, and what to do about it.
fn unreachable(error: &io::Error, server: SocketAddr) -> String {
    let advice = match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "no server listens there: start the NFS server on the parent, on its loopback"
                .to_owned()
        }
        // EACCES is what IPv6 says of what is prohibited, EHOSTUNREACH what IPv4 does.
        io::ErrorKind::HostUnreachable | io::ErrorKind::PermissionDenied => {
            let rule = format!("allow tcp {server}");
            format!(
                "closed: {rule:?} must be among the rules of the image (if any deny it) and of host-netd"
            )
        }
        io::ErrorKind::NetworkUnreachable => {
            "there is no network yet: is enclave-netd up?".to_owned()
        }
        io::ErrorKind::TimedOut => "no answer".to_owned(),
        _ => return error.to_string(),
    };
    format!("{advice} ({error})")
}

struct Request {
    export: Export,
    server: SocketAddr,
    own: IpAddr,
    terms: Terms,
}

impl Request {
    fn mounted(&self) -> Result<Mounted, Failure> {
        let root = self.mount()?;
        let found = fstat(&root)
            .map_err(|errno| Failure::new(What::Network, format!("{}: {errno}", self.export)))?;
        let kind = FileType::from_raw_mode(found.st_mode);
        Ok(Mounted { root, kind })
    }

    fn mount(&self) -> Result<OwnedFd, Failure> {
        let context = fsopen("nfs4", FsOpenFlags::FSOPEN_CLOEXEC).map_err(no_client)?;
        self.configure(&context)
            .and_then(|()| fsconfig_create(context.as_fd()))
            .map_err(|errno| self.refused(errno, &messages(&context)))?;
        let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, self.attributes());
        mounted.map_err(|errno| match errno {
            Errno::INVAL if !self.terms.symlinks => Failure::new(
                What::Other,
                "this kernel cannot keep symbolic links from being followed: take Linux 5.14 or later, or give --symlinks",
            ),
            errno => Failure::new(What::Other, format!("cannot mount {}: {errno}", self.export)),
        })
    }

    fn configure(&self, context: &OwnedFd) -> rustix::io::Result<()> {
        let terms = &self.terms;
        let set = |key: &str, value: &str| fsconfig_set_string(context, key, value);
        set("source", &self.export.to_string())?;
        set("vers", terms.version.text())?;
        set("proto", if self.server.is_ipv4() { "tcp" } else { "tcp6" })?;
        set("addr", &self.server.ip().to_string())?;
        set("port", &self.server.port().to_string())?;
        set("clientaddr", &self.own.to_string())?;
        set("sec", "sys")?;
        // The server sees host-netd's ports, which are never privileged.
        fsconfig_set_flag(context, "noresvport")?;
        if terms.soft {
            set("timeo", &limits::SOFT_TENTHS.to_string())?;
            set("retrans", &limits::SOFT_REPEATS.to_string())?;
        }
        fsconfig_set_flag(context, if terms.soft { "soft" } else { "hard" })?;
        if terms.read_only {
            fsconfig_set_flag(context, "ro")?;
        }
        Ok(())
    }

    fn attributes(&self) -> MountAttrFlags {
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        for (is_set, attribute) in [
            (!self.terms.executable, MountAttrFlags::MOUNT_ATTR_NOEXEC),
            (!self.terms.symlinks, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
            (self.terms.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        ] {
            if is_set {
                attributes |= attribute;
            }
        }
        attributes
    }

    /// Why the server or the kernel's client did not mount it.
    fn refused(&self, errno: Errno, messages: &str) -> Failure {
        let version = self.terms.version.text();
        let (what, why) = match errno {
            Errno::NOENT => (What::Request, "the server exports no such folder".to_owned()),
            Errno::NOTDIR => (What::Request, "that is no folder".to_owned()),
            Errno::ACCESS | Errno::PERM => (
                What::Request,
                "the server refuses: does it export this folder to its own loopback, and to clients with any source port (`insecure`)?".to_owned(),
            ),
            Errno::PROTONOSUPPORT | Errno::PFNOSUPPORT => (
                What::Request,
                format!("the server, or this kernel, does not speak NFS {version}: try another --nfs"),
            ),
            Errno::CONNREFUSED | Errno::CONNRESET | Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::IO => {
                (What::Network, "the server broke off, or does not answer".to_owned())
            }
            Errno::INVAL => (What::Other, "this kernel's NFS client does not know an option".to_owned()),
            _ => (What::Other, "the kernel could not mount it".to_owned()),
        };
        Failure::new(what, format!("{}: {why} ({errno}){messages}", self.export))
    }
}

/// Why the kernel has no NFS client for us.
fn no_client(errno: Errno) -> Failure {
    match errno {
        Errno::NODEV => Failure::new(
            What::Other,
            "this kernel has no NFSv4 client: build the image with a kernel that has one (with Debian's: build-enclave --module nfsv4), or see docs/services.md for copying without it",
        ),
        Errno::PERM => Failure::new(
            What::Permission,
            "mounting needs CAP_SYS_ADMIN: run this as root of the enclave",
        ),
        Errno::NOSYS => Failure::new(
            What::Other,
            "this kernel has no fsopen: take Linux 5.6 or later",
        ),
        errno => Failure::new(
            What::Other,
            format!("cannot ask the kernel for NFS: {errno}"),
        ),
    }
}

/// What the kernel says of a mount that failed.
fn messages(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut buffer = [0; limits::MESSAGE];
    for _ in 0..limits::MESSAGES {
        match rustix::io::read(context, &mut buffer) {
            Ok(length) if length > 0 => {
                let line = String::from_utf8_lossy(&buffer[..length]);
                // "e " before an error, "w " and "i " before others.
                let line = line.trim_end().get(2..).unwrap_or_default();
                text.push_str("; the kernel: ");
                text.extend(line.chars().filter(|character| !character.is_control()));
            }
            _ => break,
        }
    }
    text
}
