//! Published ports: of the parent, leading into the enclave.
//!
//! Sockets are bound at start, so that a port in use is an error at once. TCP clients are accepted
//! here and handed to the enclave's data loop; when there is no enclave, or it answers too few, they
//! are reset. UDP sockets are lent to one data loop at a time: who reads them reads what clients
//! sent, and who writes them speaks for the service. Both lead to the enclave of their tenant that
//! came last: see [`crate::tenant`].

use crate::engine::drops::DropReason;
use crate::io::{Command, udp_socket};
use crate::session::Sessions;
use crate::sparse::Sparse;
use crate::tenant::Tenant;
use anyhow::{Context, bail};
use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Clients that wait to be accepted, per port.
const BACKLOG: i32 = 1024;

/// Pause after an accept that failed for want of files: others may end meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Transport of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// `[ADDR:]PORT[:ENCLAVE_PORT][/tcp|/udp]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Where the parent listens; `None` is every address of both families.
    pub address: Option<IpAddr>,
    /// Port of the parent.
    pub port: u16,
    /// Port of the enclave.
    pub enclave_port: u16,
    /// Transport.
    pub transport: Transport,
}

/// The text publishes no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' publishes no port: write [ADDR:]PORT[:ENCLAVE_PORT][/tcp|/udp], such as 8443:443, 192.0.2.1:53/udp or [2001:db8::1]:80:8080"
)]
pub struct PublishError(String);

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Publish, PublishError> {
        parse(text).ok_or_else(|| PublishError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Publish> {
    let (rest, transport) = match text.rsplit_once('/') {
        Some((rest, "tcp")) => (rest, Transport::Tcp),
        Some((rest, "udp")) => (rest, Transport::Udp),
        Some(_) => return None,
        None => (text, Transport::Tcp),
    };
    let (address, ports) = if let Some(rest) = rest.strip_prefix('[') {
        let (address, rest) = rest.split_once("]:")?;
        (Some(IpAddr::V6(address.parse().ok()?)), rest)
    } else {
        match rest.split_once(':') {
            Some((address, ports)) if address.contains('.') => {
                (Some(IpAddr::V4(address.parse().ok()?)), ports)
            }
            _ => (None, rest),
        }
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (outer, inner) = ports.split_once(':').unwrap_or((ports, ports));
    Some(Publish {
        address,
        port: port(outer)?,
        enclave_port: port(inner)?,
        transport,
    })
}

impl Publish {
    /// Whether no two sockets can be bound for both.
    pub fn collides_with(&self, other: &Publish) -> bool {
        let same = |a: IpAddr, b: IpAddr| {
            a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
        };
        (self.transport, self.port) == (other.transport, other.port)
            && families(self).any(|a| families(other).any(|b| same(a, b)))
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).fmt(f)?,
            None => self.port.fmt(f)?,
        }
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, ":{}/{transport}", self.enclave_port)
    }
}

/// Bound sockets of the published ports of one tenant.
#[derive(Debug, Default)]
pub struct Published {
    tcp: Vec<(TcpListener, u16)>,
    udp: Vec<(UdpSocket, u16)>,
    holder: Arc<AtomicU64>,
}

/// A session's right to the UDP sockets, until another session has it.
#[derive(Clone, Debug)]
pub struct Lease {
    holder: Arc<AtomicU64>,
    session: u64,
}

impl Lease {
    /// Whether the session still has it.
    pub fn holds(&self) -> bool {
        self.holder.load(Ordering::Acquire) == self.session
    }
}

/// A UDP socket lent to a session.
#[derive(Debug)]
pub struct Lent {
    /// Shared with those it was lent to before.
    pub socket: UdpSocket,
    /// The enclave's port.
    pub port: u16,
    /// Until when.
    pub lease: Lease,
}

impl Published {
    /// Binds every port.
    ///
    /// # Errors
    /// A port is in use, or needs a privilege, or the address is not the parent's; or two UDP
    /// ports lead to one port of the enclave, whose answers could leave by one only.
    pub fn bind(ports: &[Publish]) -> anyhow::Result<Published> {
        let mut published = Published::default();
        for (index, publish) in ports.iter().enumerate() {
            let same = |other: &Publish| {
                other.transport == Transport::Udp
                    && publish.transport == Transport::Udp
                    && other.enclave_port == publish.enclave_port
                    && families(other)
                        .any(|a| families(publish).any(|b| a.is_ipv4() == b.is_ipv4()))
            };
            if let Some(other) = ports[..index].iter().find(|other| same(other)) {
                bail!(
                    "{publish} and {other} publish the same UDP port of an enclave: leave out one of them"
                );
            }
            published.bind_one(publish)?;
        }
        Ok(published)
    }

    fn bind_one(&mut self, publish: &Publish) -> anyhow::Result<()> {
        for address in families(publish) {
            let address = SocketAddr::new(address, publish.port);
            let bound = match publish.transport {
                Transport::Tcp => {
                    tcp_listener(address).map(|l| self.tcp.push((l, publish.enclave_port)))
                }
                Transport::Udp => {
                    udp_socket(address).map(|s| self.udp.push((s, publish.enclave_port)))
                }
            };
            match bound {
                // Without IPv6 in the kernel there is nothing to publish in it.
                Err(error)
                    if publish.address.is_none()
                        && error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {}
                bound => bound
                    .with_context(|| format!("cannot publish {publish} at {address}"))
                    .map_err(advise)?,
            }
        }
        Ok(())
    }

    /// How many files they are.
    pub fn files(&self) -> usize {
        self.tcp.len() + self.udp.len()
    }

    /// Lends the UDP sockets to the session of this number, and to no other any more.
    pub(crate) fn lend(&self, session: u64) -> io::Result<Vec<Lent>> {
        let lend = |(socket, port): &(UdpSocket, u16)| {
            let holder = Arc::clone(&self.holder);
            Ok(Lent {
                socket: socket.try_clone()?,
                port: *port,
                lease: Lease { holder, session },
            })
        };
        let lent = self.udp.iter().map(lend).collect::<io::Result<_>>()?;
        self.holder.store(session, Ordering::Release);
        Ok(lent)
    }

    /// Which session has the UDP sockets.
    pub(crate) fn holder(&self) -> u64 {
        self.holder.load(Ordering::Acquire)
    }
}

/// Accepts TCP clients of all published ports until the runtime ends.
///
/// # Errors
/// A listener cannot be registered with the runtime.
pub fn serve(sessions: &Arc<Sessions>) -> io::Result<()> {
    for tenant in sessions.tenants().all() {
        for (listener, port) in &tenant.published().tcp {
            let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
            let tenant = Arc::clone(tenant);
            tokio::spawn(accept(listener, *port, tenant, Arc::clone(sessions)));
        }
    }
    Ok(())
}

fn families(publish: &Publish) -> impl Iterator<Item = IpAddr> + use<> {
    let both = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    let one = publish.address;
    both.into_iter().filter(move |_| one.is_none()).chain(one)
}

fn advise(error: anyhow::Error) -> anyhow::Error {
    let errno = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error);
    match errno.map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) => {
            error.context("the port is in use: stop the other program or publish another port")
        }
        Some(Errno::EACCES) => error.context(
            "ports below 1024 need a privilege: publish a higher one or lower the sysctl net.ipv4.ip_unprivileged_port_start",
        ),
        Some(Errno::EADDRNOTAVAIL) => error.context("the address is not one of this host"),
        _ => error,
    }
}

fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn accept(
    listener: tokio::net::TcpListener,
    port: u16,
    tenant: Arc<Tenant>,
    sessions: Arc<Sessions>,
) {
    let (failed, refused) = (Sparse::default(), Sparse::default());
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                if let Err(why) = hand_over(stream, client, port, &tenant, &sessions) {
                    tracing::debug!(%client, port, leads_to = %tenant, why, "client of a published port reset");
                    refused.warn(|left_out| {
                        tracing::warn!(
                            port,
                            leads_to = %tenant,
                            why,
                            left_out,
                            "clients of a published port are reset"
                        );
                    });
                }
            }
            Err(error) => {
                failed.warn(|left_out| {
                    tracing::warn!(%error, port, left_out, "accept failed; it goes on");
                });
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Hands a client to the enclave's data loop; otherwise it is reset, and the error says why.
fn hand_over(
    stream: tokio::net::TcpStream,
    client: SocketAddr,
    port: u16,
    tenant: &Arc<Tenant>,
    sessions: &Sessions,
) -> Result<(), &'static str> {
    let socket = SockRef::from(&stream);
    // Until the enclave takes it, closing it is a reset.
    let prepared = (socket.set_linger(Some(Duration::ZERO)))
        .and_then(|()| socket.set_tcp_nodelay(true))
        .and_then(|()| socket.set_keepalive(true));
    prepared.map_err(|_| "it is gone")?;
    let handle = (sessions.latest_of(tenant)).ok_or("no enclave is connected")?;
    let waiting = handle.admit_client().map_err(DropReason::name)?;
    let stream = stream.into_std().map_err(|_| "it is gone")?;
    handle
        .try_send(Command::Accepted(stream, client, port, waiting))
        .map_err(|_| "the enclave does not read its link")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        for (text, shown) in [
            ("8080", "8080:8080/tcp"),
            ("8443:443", "8443:443/tcp"),
            ("53/udp", "53:53/udp"),
            ("192.0.2.1:8080", "192.0.2.1:8080:8080/tcp"),
            ("192.0.2.1:8080:80/udp", "192.0.2.1:8080:80/udp"),
            ("[2001:db8::1]:80:8080", "[2001:db8::1]:80:8080/tcp"),
        ] {
            assert_eq!(text.parse::<Publish>().expect(text).to_string(), shown);
        }
    }

    #[test]
    fn wrong_forms_say_what_is_right() {
        for text in [
            "",
            "0",
            "65536",
            "a:b",
            "80/sctp",
            "1:2:3",
            "192.0.2.1",
            "2001:db8::1:80",
            "[::1]80",
        ] {
            let error = text.parse::<Publish>().expect_err(text);
            assert!(error.to_string().contains("PORT"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_bound_beside_each_other_collides() {
        let collide = |a: &str, b: &str| {
            let [a, b] = [a, b].map(|text| text.parse::<Publish>().expect(text));
            assert_eq!(a.collides_with(&b), b.collides_with(&a), "{a} {b}");
            a.collides_with(&b)
        };
        assert!(collide("8443:443", "8443:80"));
        assert!(collide("8443", "192.0.2.1:8443:443"));
        assert!(collide("8443", "[2001:db8::1]:8443"));
        assert!(collide("0.0.0.0:8443", "192.0.2.1:8443"));
        assert!(collide("192.0.2.1:53/udp", "192.0.2.1:53/udp"));
        assert!(!collide("8443:443", "8444:443"));
        assert!(!collide("53", "53/udp"));
        assert!(!collide("192.0.2.1:8443", "192.0.2.2:8443"));
        assert!(!collide("0.0.0.0:8443", "[2001:db8::1]:8443"));
    }

    #[test]
    fn a_port_in_use_is_an_error_that_says_so() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = taken.local_addr().expect("bound").port();
        let publish = format!("127.0.0.1:{port}").parse().expect("valid");
        let error = Published::bind(&[publish]).expect_err("in use");
        assert!(format!("{error:#}").contains("in use"), "{error:#}");
    }
}
