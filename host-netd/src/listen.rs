//! Where links are accepted, and from whom.

use crate::io::{LinkStream, set_raw};
use anyhow::{Context, bail};
use netd_proto::address::{Cid, LinkAddress, VsockPort};
use netd_proto::control::{Goodbye, Reason};
use netd_proto::frame::{self, Decoder, Kind};
use netd_proto::handshake::{AwaitHello, HandshakeError, Offer};
use netd_proto::limits::{HANDSHAKE_TIMEOUT, UNIX_BUFFER, VSOCK_BUFFER};
use nix::libc;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};

// linux/vm_sockets.h
const SO_VM_SOCKETS_BUFFER_SIZE: i32 = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: i32 = 2;

/// Who is at the other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The enclave with this CID. For the number vouches the kernel, or the permissions of a unix
    /// socket that is this enclave's alone.
    Enclave(Cid),
    /// Whoever may open the unix socket that is nobody's in particular.
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Enclave(cid) => write!(f, "CID {cid}"),
            Peer::Unix => f.write_str("unix socket"),
        }
    }
}

/// Which vsock peers may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedCids {
    /// Every enclave: CIDs 4 and above. The hypervisor (0), loopback (1), the host (2) and the
    /// parent (3) are none.
    Enclaves,
    /// Just these. One that has a socket of its own is not among them: another enclave may have its
    /// CID here.
    Only(Vec<Cid>),
}

impl AllowedCids {
    fn allow(&self, cid: Cid) -> bool {
        match self {
            AllowedCids::Enclaves => cid > Cid::PARENT && cid != Cid::ANY,
            AllowedCids::Only(cids) => cids.contains(&cid),
        }
    }
}

/// Where links are accepted.
#[derive(Debug)]
pub struct Listener {
    kind: ListenerKind,
    /// Removed at the end.
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum ListenerKind {
    /// All who connect there count as this peer.
    Unix(UnixListener, Peer),
    Vsock(VsockListener, AllowedCids),
}

impl Listener {
    /// Listens at `address`. A unix socket that a dead process left behind is replaced.
    ///
    /// # Errors
    /// The address is in use or not permitted, or the kernel has no AF_VSOCK.
    pub fn bind(address: &LinkAddress, cids: AllowedCids) -> anyhow::Result<Listener> {
        match address {
            LinkAddress::Unix(path) => Listener::unix(path, Peer::Unix),
            LinkAddress::Vsock(cid, VsockPort(port)) => {
                let listener = VsockListener::bind(VsockAddr::new(cid.0, *port)).with_context(|| {
                    format!("cannot listen at {address}: is the port in use, or AF_VSOCK missing (modprobe vhost_vsock)?")
                })?;
                // Inherited by accepted connections. Maximum first: it bounds the other.
                let buffer = |option| set_raw(&listener, libc::AF_VSOCK, option, VSOCK_BUFFER);
                buffer(SO_VM_SOCKETS_BUFFER_MAX_SIZE)
                    .and_then(|()| buffer(SO_VM_SOCKETS_BUFFER_SIZE))
                    .context("cannot set the buffer of the vsock socket")?;
                Ok(Listener {
                    kind: ListenerKind::Vsock(listener, cids),
                    path: None,
                })
            }
        }
    }

    /// Listens at a unix socket that only the enclave with this CID is let to.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn for_enclave(cid: Cid, path: &Path) -> anyhow::Result<Listener> {
        Listener::unix(path, Peer::Enclave(cid))
    }

    fn unix(path: &Path, peer: Peer) -> anyhow::Result<Listener> {
        make_way(path)?;
        let listener = UnixListener::bind(path).with_context(|| {
            format!(
                "cannot listen at unix:{}: the folder must exist and be writable for this user",
                path.display()
            )
        })?;
        Ok(Listener {
            kind: ListenerKind::Unix(listener, peer),
            path: Some(path.to_owned()),
        })
    }

    /// The socket that is removed at the end.
    pub fn socket(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub(crate) async fn accept(&mut self) -> io::Result<Accepted> {
        match &mut self.kind {
            ListenerKind::Unix(listener, peer) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Link(Link::Unix(stream), *peer))
            }
            ListenerKind::Vsock(listener, cids) => {
                let (stream, address) = std::future::poll_fn(|cx| listener.poll_accept(cx)).await?;
                let (link, cid) = (Link::Vsock(stream), Cid(address.cid()));
                Ok(match cids.allow(cid) {
                    true => Accepted::Link(link, Peer::Enclave(cid)),
                    false => Accepted::Forbidden(link, cid),
                })
            }
        }
    }
}

/// A connection to the listener.
pub(crate) enum Accepted {
    /// Of one who may connect.
    Link(Link, Peer),
    /// Of one who may not.
    Forbidden(Link, Cid),
}

impl Accepted {
    /// Who it is, of those who may connect.
    pub(crate) fn peer(&self) -> Option<Peer> {
        match self {
            Accepted::Link(_, peer) => Some(*peer),
            Accepted::Forbidden(..) => None,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It may have been removed by hand.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the socket of a process that is gone.
pub(crate) fn make_way(path: &Path) -> anyhow::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        bail!(
            "cannot listen at unix:{}: there is a file that is no socket; remove it or choose another path",
            path.display()
        );
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
                .with_context(|| format!("cannot remove the stale socket {}", path.display()))
        }
        Ok(_) => bail!(
            "cannot listen at unix:{}: another process listens there; stop it or choose another path",
            path.display()
        ),
        Err(error) => Err(error)
            .with_context(|| format!("cannot tell whether unix:{} is in use", path.display())),
    }
}

async fn say_goodbye(stream: &mut (impl AsyncWrite + Unpin), goodbye: &Goodbye) -> io::Result<()> {
    send_frame(stream, Kind::Goodbye, &goodbye.encode()).await?;
    stream.shutdown().await
}

async fn send_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    payload: &[u8],
) -> io::Result<()> {
    let mut bytes = frame::header(kind, payload.len()).to_vec();
    bytes.extend(payload);
    stream.write_all(&bytes).await
}

/// A link whose handshake is not done.
pub(crate) enum Link {
    Unix(UnixStream),
    Vsock(VsockStream),
}

impl Link {
    pub(crate) async fn receive_hello(&mut self, decoder: &mut Decoder) -> anyhow::Result<Offer> {
        match self {
            Link::Unix(stream) => receive_hello(stream, decoder).await,
            Link::Vsock(stream) => receive_hello(stream, decoder).await,
        }
    }

    pub(crate) async fn send(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        match self {
            Link::Unix(stream) => send_frame(stream, kind, payload).await,
            Link::Vsock(stream) => send_frame(stream, kind, payload).await,
        }
    }

    /// Says goodbye, to one who may not listen.
    pub(crate) async fn dismiss(&mut self, goodbye: &Goodbye) {
        let said = async {
            match self {
                Link::Unix(stream) => say_goodbye(stream, goodbye).await,
                Link::Vsock(stream) => say_goodbye(stream, goodbye).await,
            }
        };
        let said = tokio::time::timeout(HANDSHAKE_TIMEOUT, said).await;
        tracing::trace!(?said, "peer dismissed");
    }

    pub(crate) async fn refuse(mut self, text: String) {
        self.dismiss(&Goodbye::new(Reason::Refused, text)).await;
    }

    pub(crate) fn into_stream(self) -> io::Result<LinkStream> {
        match self {
            Link::Unix(stream) => {
                let stream = stream.into_std()?;
                socket2::SockRef::from(&stream).set_send_buffer_size(UNIX_BUFFER)?;
                Ok(LinkStream::unix(OwnedFd::from(stream)))
            }
            Link::Vsock(stream) => Ok(LinkStream::vsock(OwnedFd::from(stream))),
        }
    }
}

async fn receive_hello(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
) -> anyhow::Result<Offer> {
    loop {
        let read = stream
            .read(decoder.space())
            .await
            .context("the link broke")?;
        if read == 0 {
            bail!("the link was closed before the handshake");
        }
        decoder.advance(read);
        match decoder.next() {
            Ok(Some(frame)) => return Ok(AwaitHello.receive(frame)?),
            Ok(None) => {}
            Err(_) => return Err(HandshakeError::Magic.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enclaves_connect_unless_cids_are_named() {
        for cid in [0, 1, 2, 3, u32::MAX] {
            assert!(!AllowedCids::Enclaves.allow(Cid(cid)), "{cid}");
        }
        assert!(AllowedCids::Enclaves.allow(Cid(16)));

        let only = AllowedCids::Only(vec![Cid(1), Cid(17)]);
        assert!(only.allow(Cid(1)) && only.allow(Cid(17)));
        assert!(!only.allow(Cid(16)));
    }
}
