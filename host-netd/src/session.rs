//! Links and sessions: who may connect, the handshake, and a thread with a data loop for each.

use crate::engine::Engine;
use crate::io::{Command, DataLoop, Handle, LinkStream, Services, set_raw};
use crate::limits::MAX_SESSIONS;
use crate::local::LocalAddresses;
use crate::publish::Published;
use anyhow::{Context, bail};
use netd_proto::address::{Cid, LinkAddress, VsockPort};
use netd_proto::control::{Goodbye, Reason};
use netd_proto::frame::{self, Decoder, Kind};
use netd_proto::handshake::{AwaitHello, Features, HandshakeError, Offer, SessionId};
use netd_proto::limits::{HANDSHAKE_TIMEOUT, VSOCK_BUFFER};
use netd_proto::policy::Policy;
use nix::libc;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};

// linux/vm_sockets.h
const SO_VM_SOCKETS_BUFFER_SIZE: i32 = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: i32 = 2;

/// Who is at the other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A vsock peer; the kernel vouches for the number.
    Vsock(Cid),
    /// Whoever may open the unix socket.
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Vsock(cid) => write!(f, "CID {cid}"),
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
    /// Just these.
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
    Unix(UnixListener),
    Vsock(VsockListener, AllowedCids),
}

impl Listener {
    /// Listens at `address`. A unix socket that a dead process left behind is replaced.
    ///
    /// # Errors
    /// The address is in use or not permitted, or the kernel has no AF_VSOCK.
    pub fn bind(address: &LinkAddress, cids: AllowedCids) -> anyhow::Result<Listener> {
        match address {
            LinkAddress::Unix(path) => {
                make_way(path)?;
                let listener = UnixListener::bind(path)
                    .with_context(|| format!("cannot listen at {address}: the folder must exist and be writable for this user"))?;
                Ok(Listener {
                    kind: ListenerKind::Unix(listener),
                    path: Some(path.clone()),
                })
            }
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

    async fn accept(&mut self) -> io::Result<(Link, Peer)> {
        match &mut self.kind {
            ListenerKind::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Link::Unix(stream), Peer::Unix))
            }
            ListenerKind::Vsock(listener, cids) => loop {
                let (stream, address) = std::future::poll_fn(|cx| listener.poll_accept(cx)).await?;
                let cid = Cid(address.cid());
                if cids.allow(cid) {
                    return Ok((Link::Vsock(stream), Peer::Vsock(cid)));
                }
                tracing::warn!(%cid, "link refused: this CID is not allowed (see --cid)");
                tokio::spawn(refuse(stream, format!("CID {cid} may not connect here")));
            },
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
fn make_way(path: &Path) -> anyhow::Result<()> {
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

async fn refuse(mut stream: VsockStream, text: String) {
    let goodbye = Goodbye::new(Reason::Refused, text);
    let sent = tokio::time::timeout(HANDSHAKE_TIMEOUT, say_goodbye(&mut stream, &goodbye)).await;
    tracing::trace!(?sent, "refused peer told");
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

enum Link {
    Unix(UnixStream),
    Vsock(VsockStream),
}

impl Link {
    async fn receive_hello(&mut self, decoder: &mut Decoder) -> anyhow::Result<Offer> {
        match self {
            Link::Unix(stream) => receive_hello(stream, decoder).await,
            Link::Vsock(stream) => receive_hello(stream, decoder).await,
        }
    }

    async fn send(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        match self {
            Link::Unix(stream) => send_frame(stream, kind, payload).await,
            Link::Vsock(stream) => send_frame(stream, kind, payload).await,
        }
    }

    async fn say_goodbye(&mut self, goodbye: &Goodbye) -> io::Result<()> {
        match self {
            Link::Unix(stream) => say_goodbye(stream, goodbye).await,
            Link::Vsock(stream) => say_goodbye(stream, goodbye).await,
        }
    }

    fn into_stream(self) -> io::Result<LinkStream> {
        match self {
            Link::Unix(stream) => Ok(LinkStream::unix(OwnedFd::from(stream.into_std()?))),
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

/// What every session shares.
pub struct Shared {
    /// Runtime, DNS, capture.
    pub services: Services,
    /// The operator's rules.
    pub policy: Policy,
    /// The parent's own addresses.
    pub own: Arc<LocalAddresses>,
    /// Published ports.
    pub published: Published,
    /// Flows of one session.
    pub max_flows: usize,
}

/// All enclaves of this host-netd.
pub struct Sessions {
    shared: Shared,
    active: Mutex<Vec<Active>>,
}

#[derive(Debug)]
struct Active {
    session: SessionId,
    peer: Peer,
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Sessions {
    /// No session yet.
    pub fn new(shared: Shared) -> Arc<Sessions> {
        Arc::new(Sessions {
            shared,
            active: Mutex::default(),
        })
    }

    /// The published ports that the sessions serve.
    pub fn published(&self) -> &Published {
        &self.shared.published
    }

    /// Accepts links until the runtime ends.
    pub async fn serve(self: Arc<Self>, mut listener: Listener) {
        loop {
            match listener.accept().await {
                Ok((link, peer)) => {
                    tokio::spawn(Arc::clone(&self).greet(link, peer));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a link failed; it goes on");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// The session that published ports lead to: the one that came last.
    pub(crate) fn published_to(&self) -> Option<Handle> {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active
            .iter()
            .rev()
            .map(|active| &active.handle)
            .find(|handle| !handle.is_closed())
            .cloned()
    }

    /// Has every session write its counters to the log.
    pub async fn report(&self) {
        for handle in self.handles() {
            handle.send(Command::Report).await;
        }
    }

    /// Ends every session in good order and waits for their threads.
    pub async fn close(&self) {
        let goodbye = Goodbye::new(Reason::Shutdown, "host-netd ends");
        for handle in self.handles() {
            handle.send(Command::Close(goodbye.clone())).await;
        }
        let ended: Vec<_> =
            std::mem::take(&mut *self.active.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(|| {
            ended
                .into_iter()
                .map(|active| active.thread.join())
                .filter(Result::is_err)
                .count()
        });
        if let Ok(panicked @ 1..) = joined.await {
            tracing::warn!(panicked, "sessions had ended by a bug");
        }
    }

    fn handles(&self) -> Vec<Handle> {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.iter().map(|active| active.handle.clone()).collect()
    }

    async fn greet(self: Arc<Self>, mut link: Link, peer: Peer) {
        let mut decoder = Decoder::new();
        let hello = tokio::time::timeout(HANDSHAKE_TIMEOUT, link.receive_hello(&mut decoder)).await;
        let offer = match hello {
            Ok(Ok(offer)) => offer,
            Ok(Err(error)) => {
                tracing::warn!(%peer, "link refused: {error:#}");
                let goodbye = error
                    .downcast_ref::<HandshakeError>()
                    .and_then(HandshakeError::reply);
                if let Some(goodbye) = goodbye {
                    // It is gone either way.
                    let _ = link.say_goodbye(&goodbye).await;
                }
                return;
            }
            Err(_) => {
                tracing::warn!(%peer, "link refused: no hello within {HANDSHAKE_TIMEOUT:?}");
                return;
            }
        };
        if let Err(error) = self.start(link, peer, offer, decoder).await {
            tracing::warn!(%peer, "session not started: {error:#}");
        }
    }

    async fn start(
        &self,
        mut link: Link,
        peer: Peer,
        offer: Offer,
        decoder: Decoder,
    ) -> anyhow::Result<()> {
        let hello = offer.hello;
        if let Some(old) = self.same_session(hello.session, peer) {
            let goodbye = Goodbye::new(
                Reason::Replaced,
                "a newer link of the same session took over",
            );
            old.send(Command::Close(goodbye)).await;
        }
        if self.prune() >= MAX_SESSIONS {
            let goodbye = Goodbye::new(
                Reason::Full,
                format!("{MAX_SESSIONS} enclaves are connected"),
            );
            link.say_goodbye(&goodbye).await?;
            bail!("{MAX_SESSIONS} enclaves are connected already");
        }
        let (welcome, established) = offer.accept(Features::ALL);
        link.send(Kind::Welcome, &welcome)
            .await
            .context("the link broke")?;
        let now = Instant::now();
        let Shared {
            services,
            policy,
            own,
            published,
            max_flows,
        } = &self.shared;
        let engine = Engine::new(
            hello,
            established.features,
            policy.clone(),
            Arc::clone(own),
            *max_flows,
            now,
        );
        let stream = link.into_stream().context("the link broke")?;
        let udp = published
            .udp()
            .context("published UDP ports cannot be lent")?;
        let (data_loop, handle) =
            DataLoop::new(stream, decoder, engine, services.clone(), udp, now)
                .context("no data loop")?;
        let session = hello.session;
        let thread = std::thread::Builder::new()
            .name(format!("session {session}"))
            .spawn(move || {
                let _session = tracing::info_span!("session", id = %session, %peer).entered();
                data_loop.run();
            })
            .context("no thread")?;
        tracing::info!(
            %session,
            %peer,
            features = %established.features,
            enclave = %hello.v4.enclave,
            enclave6 = %hello.v6.enclave,
            "session started"
        );
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.push(Active {
            session,
            peer,
            handle,
            thread,
        });
        Ok(())
    }

    fn same_session(&self, session: SessionId, peer: Peer) -> Option<Handle> {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |active: &&Active| active.session == session && active.peer == peer;
        active.iter().find(same).map(|active| active.handle.clone())
    }

    /// Forgets ended sessions and counts the others.
    fn prune(&self) -> usize {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.retain(|active| !active.handle.is_closed());
        active.len()
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
