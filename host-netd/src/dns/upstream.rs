//! The parent's name servers.
//!
//! A try sends the query to one server over UDP, on a fresh socket with a random port and
//! identifier, and again over TCP if the answer did not fit. A server that stays silent is not
//! waited for: after a moment the next one is asked as well, and the first answer wins. The whole
//! takes `timeout * attempts` at most. NOERROR and NXDOMAIN are answers; with SERVFAIL, REFUSED and
//! the like the other servers are asked once each, and if none knows better the first such answer
//! stands.
//!
//! Sockets and framing are hickory's, one layer below its client: that layer hands out the bytes as
//! they came, where the layers above decode each message, refuse some that are valid (empty RDATA,
//! private types) and drop parts of negative ones.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use hickory_proto::op::{Message as HickoryMessage, ResponseCode, SerialMessage};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::RuntimeProvider;
use hickory_resolver::net::tcp::TcpStream;
use hickory_resolver::net::udp::UdpStream;
use hickory_resolver::net::xfer::DnsStreamHandle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::cache::{Cache, Key};
use super::conf::Settings;
use super::response::Response;
use super::socket::Provider;
use super::wire::{self, Malformed, Message, Question};
use super::{limits, query};

/// What is asked of the name servers.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) question: Question,
    pub(super) recursion: bool,
    pub(super) checking_disabled: bool,
    pub(super) dnssec_ok: bool,
}

/// No server gave an answer in time.
#[derive(Debug, thiserror::Error)]
#[error("no name server answered within {within:?}; the last error was: {last}")]
pub(super) struct NoAnswer {
    within: Duration,
    last: ExchangeError,
}

/// Why one try brought no answer.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    #[error("no answer")]
    Silent,
    #[error("{0}")]
    Net(#[from] NetError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("the answer over TCP does not match the query")]
    Foreign,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// The servers of one resolv.conf, and what they answered.
pub(super) struct Upstream {
    settings: Settings,
    cache: Mutex<Cache>,
    sockets: Arc<Semaphore>,
    rotation: AtomicUsize,
    /// The server that answered in place of the first one, and until when it is asked first.
    preferred: Mutex<(usize, Instant)>,
}

impl Upstream {
    /// With `sockets` to open at most, also together with the upstream that it replaces.
    pub(super) fn new(settings: Settings, sockets: Arc<Semaphore>) -> Upstream {
        Upstream {
            settings,
            cache: Mutex::default(),
            sockets,
            rotation: AtomicUsize::new(0),
            preferred: Mutex::new((0, Instant::now())),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The answer, from the cache or from a server.
    pub(super) async fn resolve(&self, ask: &Ask) -> Result<Response, NoAnswer> {
        let key = Key::of(ask);
        if let Some(key) = &key
            && let Some(kept) = self.cache().get(key, Instant::now().into_std())
        {
            return Ok(kept);
        }
        let response = self.race(ask).await?;
        if let Some(key) = key {
            self.cache()
                .insert(key, &response, Instant::now().into_std());
        }
        Ok(response)
    }

    async fn race(&self, ask: &Ask) -> Result<Response, NoAnswer> {
        let servers = &self.settings.servers;
        let (first, rounds) = (self.first_server(), self.settings.attempts);
        let within = self.settings.timeout * rounds;
        let (started, tries) = (Instant::now(), servers.len() * rounds as usize);
        let pace = limits::NEXT_SERVER_AFTER.min(within / u32::try_from(tries).unwrap_or(1).max(1));
        let mut order = (0..tries)
            .map(|index| (first + index) % servers.len())
            .peekable();
        let mut next_at = started;
        let mut running = FuturesUnordered::new();
        let mut unhelpful: Vec<usize> = Vec::new();
        let mut kept = None;
        let mut last = ExchangeError::Silent;
        loop {
            if Instant::now() >= next_at {
                if let Some(server) = order.find(|server| !unhelpful.contains(server)) {
                    running
                        .push(async move { (server, self.exchange(servers[server], ask).await) });
                }
                next_at = Instant::now() + pace;
            }
            if running.is_empty() && order.peek().is_none() || unhelpful.len() == servers.len() {
                break;
            }
            tokio::select! {
                Some((server, result)) = running.next() => {
                    match result {
                        Ok(response) if response.is_final() => {
                            if !unhelpful.contains(&first) {
                                self.answered(first, server);
                            }
                            return Ok(response);
                        }
                        Ok(response) => {
                            let (server_address, rcode) = (servers[server], response.rcode);
                            debug!(%server_address, ?rcode, "asking the next name server");
                            if !unhelpful.contains(&server) {
                                unhelpful.push(server);
                            }
                            kept.get_or_insert(response);
                        }
                        Err(error) => {
                            debug!(server = %servers[server], %error, "a name server failed");
                            last = error;
                        }
                    }
                    next_at = Instant::now();
                }
                () = sleep_until(next_at), if order.peek().is_some() => {}
                () = sleep_until(started + within) => break,
            }
        }
        kept.ok_or(NoAnswer {
            within: started.elapsed(),
            last,
        })
    }

    /// One try with one server. Servers from before EDNS say FORMERR or NOTIMP to it (RFC 6891, 7).
    async fn exchange(&self, server: SocketAddr, ask: &Ask) -> Result<Response, ExchangeError> {
        let _socket = self
            .sockets
            .acquire()
            .await
            .map_err(|_| ExchangeError::Closed)?;
        let response = udp_then_tcp(server, ask, true).await?;
        match response.rcode {
            ResponseCode::FormErr | ResponseCode::NotImp if !response.with_opt => {
                udp_then_tcp(server, ask, false).await
            }
            _ => Ok(response),
        }
    }

    fn first_server(&self) -> usize {
        if self.settings.rotate {
            return self.rotation.fetch_add(1, Ordering::Relaxed) % self.settings.servers.len();
        }
        let preferred = self
            .preferred
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if Instant::now() < preferred.1 {
            preferred.0
        } else {
            0
        }
    }

    fn answered(&self, asked_first: usize, server: usize) {
        if server != asked_first {
            *self
                .preferred
                .lock()
                .unwrap_or_else(PoisonError::into_inner) =
                (server, Instant::now() + limits::PREFER_SERVER);
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn udp_then_tcp(
    server: SocketAddr,
    ask: &Ask,
    edns: bool,
) -> Result<Response, ExchangeError> {
    let (id, query) = encode(ask, edns);
    let message = match udp(server, id, &query, ask).await? {
        Some(message) => message,
        None => tcp(server, id, query, ask).await?,
    };
    Ok(Response::from_upstream(message)?)
}

/// `None` if the answer did not fit into a datagram.
async fn udp(
    server: SocketAddr,
    id: u16,
    query: &[u8],
    ask: &Ask,
) -> Result<Option<Message>, ExchangeError> {
    let (connecting, mut outgoing) = UdpStream::new(server, None, None, false, Provider::default());
    let mut incoming = connecting.await?;
    outgoing.send(SerialMessage::new(query.to_vec(), server))?;
    while let Some(received) = incoming.next().await {
        let (bytes, _) = received?.into_parts();
        match check(bytes, id, ask) {
            Checked::Answer(message) if message.flags() & wire::TC == 0 => {
                return Ok(Some(message));
            }
            Checked::Answer(_) | Checked::Incomplete => return Ok(None),
            // A late or forged one; the real answer may still come.
            Checked::Foreign => {
                debug!(%server, "ignoring a datagram that is no answer to the query")
            }
        }
    }
    Err(ExchangeError::Closed)
}

async fn tcp(
    server: SocketAddr,
    id: u16,
    query: Vec<u8>,
    ask: &Ask,
) -> Result<Message, ExchangeError> {
    // The race's own bound ends a connect that takes too long.
    let connecting = Provider::default().connect_tcp(server, None, Some(limits::TIMEOUT));
    let (mut stream, mut outgoing) = TcpStream::from_stream(connecting.await?, server);
    outgoing.send(SerialMessage::new(query, server))?;
    let received = stream.next().await.ok_or(ExchangeError::Closed)??;
    match check(received.into_parts().0, id, ask) {
        Checked::Answer(message) => Ok(message),
        Checked::Incomplete => Err(Malformed.into()),
        Checked::Foreign => Err(ExchangeError::Foreign),
    }
}

pub(super) enum Checked {
    Answer(Message),
    /// It answers the query, but not to the end.
    Incomplete,
    Foreign,
}

/// An answer has the identifier and the question of the query (RFC 5452, section 9). A server that
/// could not read the query may leave the question out.
pub(super) fn check(bytes: Vec<u8>, id: u16, ask: &Ask) -> Checked {
    let head = bytes.first_chunk::<{ wire::HEADER }>().copied();
    let Some(head) = head else {
        return Checked::Foreign;
    };
    let flags = u16::from_be_bytes([head[2], head[3]]);
    if head[..2] != id.to_be_bytes() || flags & (wire::QR | wire::OPCODE) != wire::QR {
        return Checked::Foreign;
    }
    let same = ask.question.is_of(&bytes);
    match Message::parse(bytes) {
        Ok(message) => match message.question() {
            Some(_) if same => Checked::Answer(message),
            None if cannot_read(ResponseCode::from_low(message.rcode_low())) => {
                Checked::Answer(Message::unasked(&ask.question, &message))
            }
            _ => Checked::Foreign,
        },
        Err(Malformed) if same => Checked::Incomplete,
        Err(Malformed) => Checked::Foreign,
    }
}

fn cannot_read(rcode: ResponseCode) -> bool {
    use ResponseCode::{FormErr, NotImp, Refused, ServFail};
    matches!(rcode, FormErr | NotImp | Refused | ServFail)
}

/// The query with a fresh identifier. The name keeps the case in which the enclave wrote it.
pub(super) fn encode(ask: &Ask, edns: bool) -> (u16, Vec<u8>) {
    let id = HickoryMessage::query().metadata.id;
    let bit = |set: bool, bit: u16| if set { bit } else { 0 };
    let flags = bit(ask.recursion, wire::RD) | bit(ask.checking_disabled, wire::CD) | wire::AD;
    let mut message = Message::bare(Some(&ask.question));
    message.set_header(id, flags);
    let opt = match edns {
        true => query::opt(
            limits::ADVERTISED_UDP,
            ResponseCode::NoError,
            ask.dnssec_ok,
            &[],
        ),
        false => Vec::new(),
    };
    (id, message.finish(&opt))
}
