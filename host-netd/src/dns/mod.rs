//! The resolver of the enclave.
//!
//! # Theory of operation
//!
//! The enclave's resolver is the gateway address. Its queries arrive here as bytes, over UDP and
//! TCP, and are forwarded to the name servers of the parent's resolv.conf. The answer is what a
//! direct query to those servers would have given, for every type and class: the message is kept as
//! the bytes that came (`wire`) and edited in place. Only what belongs to one hop is ours:
//! identifier, OPT, the RD, RA and CD bits, the case of the question as the enclave wrote it, and
//! the cut to the size the query allows. The road of a query:
//!
//! 1. `query`: what is no query is dropped; what cannot be looked up is answered FORMERR, NOTIMP,
//!    REFUSED (zone transfers) or BADVERS.
//! 2. `local`: `localhost` and the loopback's reverse names are answered here.
//! 3. The bound on queries in flight; above it, SERVFAIL at once.
//! 4. `search`: a plain name goes through the search list, as in glibc.
//! 5. `upstream`: the cache, then the servers, over hickory's sockets; TCP when UDP was too small.
//!
//! # Decisions
//!
//! - Of hickory-resolver the message streams are used (sockets, random ports, framing), which give
//!   the bytes. Its layers above, resolver and name-server pool, turn a negative answer or an error
//!   code into an error that keeps part of it, refuse some valid records (empty RDATA, private
//!   types), and know no scope of an IPv6 server.
//! - The cache holds whole answers by name, type, class and the RD, CD and DO bits, until the least
//!   TTL of any record in them. TTLs are those received, less the time kept. A negative answer is
//!   kept as RFC 2308 says and goes out with its SOA. Failures are not kept: RFC 9520 asks it of
//!   resolvers that repeat queries by themselves, and here the bound on queries in flight and at
//!   most `attempts` tries a server contain a failing zone.
//! - ANY is forwarded, and its answer not kept: the server decides what RFC 8482 makes of it. Other
//!   classes (`version.bind` CH TXT) are forwarded too.
//! - OPT is answered to those who sent it. DO, CD and RD are passed on, extended errors (RFC 8914)
//!   passed back. Other options (client subnet, cookies) concern one hop and are not forwarded.
//! - The parent's /etc/hosts is not consulted: names that an operator put there for the host must
//!   not shadow real ones for the enclave.
//! - A new resolv.conf means new servers, hence a new cache. Queries under way finish with the old.
//! - `Resolved` carries the name that was asked, even where CNAMEs or the search list led
//!   elsewhere, and only addresses the chain of aliases leads to. The loopback's own names are not
//!   reported.

mod cache;
mod conf;
#[doc(hidden)]
pub mod fuzzing;
mod limits;
mod local;
mod name;
mod query;
mod response;
mod search;
mod socket;
mod stream;
mod upstream;
mod wire;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::budget::Share;
use crate::sparse::Sparse;
use conf::{ConfError, Settings, Watch};
use query::{Query, Received};
use response::{Reason, Response};
pub use stream::serve_stream;
use upstream::Upstream;

/// How a query came, which bounds the length of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// 512 bytes, or the size the query's OPT record gives, up to 65,000.
    Udp,
    /// 65,535 bytes.
    Tcp,
}

/// What to send back, and what the policy learns from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The message in wire form, without TCP's length.
    pub message: Vec<u8>,
    /// Set if the answer gives addresses.
    pub resolved: Option<Resolved>,
}

/// Addresses handed out for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The name that was asked, in lower case, without a trailing dot.
    pub name: String,
    /// The addresses of the answer's A or AAAA records, in its order.
    pub addresses: Vec<IpAddr>,
    /// The least TTL on the way from the name to the addresses, as the enclave sees it.
    pub ttl: Duration,
}

/// The DNS service. Clones share one cache; each session has its own part of the queries that may
/// be in flight.
#[derive(Clone)]
pub struct Dns {
    service: Arc<Service>,
    in_flight: Share,
}

/// Memory the service takes at worst, in bytes, with so many queries in flight and without TCP
/// connections: see [`serve_stream`].
pub fn memory(queries: usize) -> usize {
    queries * limits::QUERY_MEMORY + limits::CACHE_MEMORY
}

/// SERVFAIL for a query that came by UDP and finds no room; `None` for what must not be answered.
pub fn overloaded(query: &[u8]) -> Option<Vec<u8>> {
    match Query::receive(query) {
        Received::Query(query) => {
            let failure = query.failure(ResponseCode::ServFail, Reason::Other);
            Some(query.answer(failure, Transport::Udp))
        }
        Received::Refused(message, _) => Some(message),
        Received::Nothing => None,
    }
}

struct Service {
    /// `None` until a usable resolv.conf was read.
    upstream: RwLock<Option<Arc<Upstream>>>,
    sockets: Arc<Semaphore>,
    overload_warning: Sparse,
    upstream_warning: Sparse,
}

impl Dns {
    /// Starts the service with the name servers of `resolv_conf`, usually `/etc/resolv.conf`, and
    /// follows its changes until the last clone is dropped. It opens at most `files` sockets at a
    /// time. While no usable file was seen, queries
    /// are answered SERVFAIL; once one was, it stays in force until the next usable one. A WARN
    /// says why a file is not usable.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time and I/O enabled.
    pub fn start(resolv_conf: PathBuf, files: usize) -> Dns {
        let dns = Dns::new(files);
        let mut watch = Watch::default();
        if let Some(outcome) = watch.changed(&resolv_conf) {
            dns.service.apply(&resolv_conf, outcome);
        }
        tokio::spawn(follow(Arc::downgrade(&dns.service), resolv_conf, watch));
        dns
    }

    fn new(files: usize) -> Dns {
        let service = Service {
            upstream: RwLock::new(None),
            sockets: Arc::new(Semaphore::new(files.min(limits::UPSTREAM_SOCKETS))),
            overload_warning: Sparse::default(),
            upstream_warning: Sparse::default(),
        };
        Dns {
            service: Arc::new(service),
            in_flight: Share::alone(limits::QUERIES_IN_FLIGHT),
        }
    }

    /// The same service, for a session that has these queries.
    pub(crate) fn for_session(&self, in_flight: Share) -> Dns {
        let service = Arc::clone(&self.service);
        Dns { service, in_flight }
    }

    /// Answers one query message as it came off the wire; over UDP, the payload of one datagram.
    ///
    /// Every failure is an answer as well. `None` is for what must not be answered: fewer bytes
    /// than a header, or a response. Dropping the future ends the look-up.
    pub async fn answer(&self, query: &[u8], transport: Transport) -> Option<Answer> {
        let started = Instant::now();
        let query = match Query::receive(query) {
            Received::Query(query) => query,
            Received::Refused(message, rcode) => {
                debug!(?rcode, ?transport, "refused a query");
                return Some(Answer {
                    message,
                    resolved: None,
                });
            }
            Received::Nothing => return None,
        };
        let local = local::answer(&query.question);
        let resolvable = local.is_none();
        let response = match local {
            Some(response) => response,
            None => self.look_up(&query).await,
        };
        let name = query.question.lower();
        debug!(
            name = name.as_ref().map(tracing::field::display),
            rtype = %query.question.rtype,
            rcode = ?response.rcode,
            ?transport,
            elapsed = ?started.elapsed(),
            "answered a query"
        );
        Some(Answer::new(&query, response, transport, resolvable))
    }

    async fn look_up(&self, query: &Query) -> Response {
        let Some(_in_flight) = self.in_flight.take() else {
            self.in_flight.refused();
            self.service.overload_warning.warn(|left_out| {
                warn!(
                    limit = "max_dns_queries",
                    most = self.in_flight.most(),
                    left_out,
                    "too many DNS queries in flight"
                );
            });
            return query.failure(ResponseCode::ServFail, Reason::Other);
        };
        self.service.look_up(query).await
    }
}

impl Answer {
    /// `response` as this query gets it; `resolvable` if its addresses are told to the policy.
    fn new(query: &Query, response: Response, transport: Transport, resolvable: bool) -> Answer {
        let name = query.question.lower().filter(|_| resolvable);
        let resolved = name.and_then(|name| {
            let found = response.addresses(&name)?;
            let ttl = Duration::from_secs(found.ttl.into());
            Some(Resolved {
                name: name.to_string(),
                addresses: found.addresses,
                ttl,
            })
        });
        Answer {
            message: query.answer(response, transport),
            resolved,
        }
    }
}

impl Service {
    async fn look_up(&self, query: &Query) -> Response {
        let upstream = self
            .upstream
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(upstream) = upstream else {
            self.upstream_warning.warn(|left_out| {
                warn!(
                    left_out,
                    "a DNS query cannot be answered: no usable resolv.conf was seen yet"
                );
            });
            return query.failure(ResponseCode::ServFail, Reason::NotReady);
        };
        search::resolve(&upstream, &query.ask())
            .await
            .unwrap_or_else(|error| {
                let name = query.question.lower();
                let name = name.as_ref().map(tracing::field::display);
                self.upstream_warning
                    .warn(|left_out| warn!(name, %error, left_out, "a DNS query failed"));
                query.failure(ResponseCode::ServFail, Reason::NoReachableAuthority)
            })
    }

    fn apply(&self, path: &Path, outcome: Result<Settings, ConfError>) {
        let path = path.display();
        let mut upstream = self
            .upstream
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(settings)
                if upstream
                    .as_ref()
                    .is_some_and(|now| *now.settings() == settings) => {}
            Ok(settings) => {
                let Settings {
                    servers, search, ..
                } = &settings;
                info!(%path, ?servers, ?search, "name servers");
                let sockets = Arc::clone(&self.sockets);
                *upstream = Some(Arc::new(Upstream::new(settings, sockets)));
            }
            Err(error) if upstream.is_some() => {
                warn!(%path, %error, "resolv.conf is not usable; the former name servers stay");
            }
            Err(error) => {
                warn!(%path, %error, "resolv.conf is not usable; DNS queries fail until it is");
            }
        }
    }
}

/// Looks at the file until the service is gone.
async fn follow(service: Weak<Service>, path: PathBuf, mut watch: Watch) {
    let path = Arc::new(path);
    loop {
        tokio::time::sleep(limits::RESOLV_CONF_POLL).await;
        if service.strong_count() == 0 {
            return;
        }
        // The file may lie on a file system that hangs.
        let read = Arc::clone(&path);
        let looked = tokio::task::spawn_blocking(move || {
            let outcome = watch.changed(&read);
            (watch, outcome)
        });
        let Ok((next, outcome)) = looked.await else {
            return;
        };
        watch = next;
        if let (Some(service), Some(outcome)) = (service.upgrade(), outcome) {
            service.apply(&path, outcome);
        }
    }
}
