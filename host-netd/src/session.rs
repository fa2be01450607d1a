//! Sessions: the handshake of each link, and a thread with a data loop for it.

use crate::budget::Budget;
use crate::engine::Engine;
use crate::io::{Command, DataLoop, Handle, Services};
use crate::limits::{MAX_ALL_HANDSHAKES, MAX_HANDSHAKES, REPLACED_WITHIN};
use crate::listen::{Accepted, Link, Listener, Peer};
use crate::local::LocalAddresses;
use crate::record::{Facts, Records};
use crate::sparse::Sparse;
use crate::tenant::{Tenant, Tenants};
use anyhow::{Context, bail};
use netd_proto::control::{Goodbye, Reason};
use netd_proto::frame::{Decoder, Kind};
use netd_proto::handshake::{Features, HandshakeError, Offer, SessionId};
use netd_proto::limits::HANDSHAKE_TIMEOUT;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What every session shares.
pub struct Shared {
    /// Runtime, DNS, capture.
    pub services: Services,
    /// Rules and published ports, and for whom they are.
    pub tenants: Tenants,
    /// The parent's own addresses.
    pub own: Arc<LocalAddresses>,
    /// What the sessions may use.
    pub budget: Budget,
    /// What is known of each enclave.
    pub records: Arc<Records>,
}

/// All enclaves of this host-netd.
pub struct Sessions {
    shared: Shared,
    active: Mutex<Vec<Active>>,
    handshakes: Handshakes,
    started: AtomicU64,
    flood_warning: Sparse,
    refusal_warning: Sparse,
}

#[derive(Debug)]
struct Active {
    number: u64,
    session: SessionId,
    peer: Peer,
    tenant: Arc<Tenant>,
    handle: Handle,
    thread: JoinHandle<()>,
}

/// What an enclave is told whose session gives way.
const TOOK_OVER: &str = "a newer link of the same enclave took over";

impl Active {
    /// Whether a new link takes its place: of the same run of an enclave, or of the same CID, which
    /// is one enclave.
    fn gives_way_to(&self, session: SessionId, peer: Peer) -> bool {
        self.peer == peer && (self.session == session || matches!(peer, Peer::Enclave(_)))
    }
}

impl Sessions {
    /// No session yet.
    pub fn new(shared: Shared) -> Arc<Sessions> {
        Arc::new(Sessions {
            shared,
            active: Mutex::default(),
            handshakes: Handshakes::default(),
            started: AtomicU64::new(0),
            flood_warning: Sparse::default(),
            refusal_warning: Sparse::default(),
        })
    }

    /// Whom the sessions belong to.
    pub(crate) fn tenants(&self) -> &Tenants {
        &self.shared.tenants
    }

    /// Accepts links until the runtime ends.
    pub async fn serve(self: Arc<Self>, mut listener: Listener) {
        loop {
            match listener.accept().await {
                Ok(accepted) => {
                    let peer = accepted.peer();
                    if self.handshakes.begin(peer) {
                        tokio::spawn(Arc::clone(&self).greet(accepted));
                    } else {
                        self.flood_warning.warn(|left_out| {
                            let peer = peer.map_or("not allowed".into(), |peer| peer.to_string());
                            tracing::warn!(
                                peer,
                                left_out,
                                "too many handshakes at once: link closed"
                            );
                        });
                    }
                }
                Err(error) => {
                    self.flood_warning.warn(|left_out| {
                        tracing::warn!(%error, left_out, "accepting a link failed; it goes on");
                    });
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// The session that a tenant's published ports lead to: the one that came last.
    pub(crate) fn latest_of(&self, tenant: &Arc<Tenant>) -> Option<Handle> {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        latest(&active, tenant).map(|active| active.handle.clone())
    }

    /// Has every session write its counters to the log.
    pub fn report(&self) {
        for handle in self.handles() {
            if handle.try_send(Command::Report).is_err() {
                tracing::warn!("a session whose enclave does not read its link reports nothing");
            }
        }
    }

    /// Ends every session in good order and waits for their threads.
    pub async fn close(&self) {
        let goodbye = Goodbye::new(Reason::Shutdown, "host-netd ends");
        for handle in self.handles() {
            handle.close(goodbye.clone());
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

    async fn greet(self: Arc<Self>, accepted: Accepted) {
        let peer = accepted.peer();
        match accepted {
            Accepted::Link(link, peer) => self.shake_hands(link, peer).await,
            Accepted::Forbidden(link, cid) => {
                self.refusal_warning.warn(|left_out| {
                    tracing::warn!(%cid, left_out, "link refused: this CID is not allowed (see [[enclave]] and --cid)");
                });
                link.refuse(format!("CID {cid} may not connect here")).await;
            }
        }
        self.handshakes.end(peer);
    }

    async fn shake_hands(self: &Arc<Self>, mut link: Link, peer: Peer) {
        let mut decoder = Decoder::new();
        let hello = tokio::time::timeout(HANDSHAKE_TIMEOUT, link.receive_hello(&mut decoder)).await;
        let offer = match hello {
            Ok(Ok(offer)) => offer,
            Ok(Err(error)) => {
                self.refusal_warning.warn(|left_out| {
                    tracing::warn!(%peer, left_out, "link refused: {error:#}");
                });
                let goodbye = error
                    .downcast_ref::<HandshakeError>()
                    .and_then(HandshakeError::reply);
                if let Some(goodbye) = goodbye {
                    link.dismiss(&goodbye).await;
                }
                return;
            }
            Err(_) => {
                self.refusal_warning.warn(|left_out| {
                    tracing::warn!(%peer, left_out, "link refused: no hello within {HANDSHAKE_TIMEOUT:?}");
                });
                return;
            }
        };
        if let Err(error) = self.start(link, peer, offer, decoder).await {
            self.refusal_warning.warn(|left_out| {
                tracing::warn!(%peer, left_out, "session not started: {error:#}");
            });
        }
    }

    async fn start(
        self: &Arc<Self>,
        mut link: Link,
        peer: Peer,
        offer: Offer,
        decoder: Decoder,
    ) -> anyhow::Result<()> {
        let hello = offer.hello;
        for old in self.replaced_by(hello.session, peer) {
            old.close(Goodbye::new(Reason::Replaced, TOOK_OVER));
            // Its seat and all it had are for the new one.
            let _ = tokio::time::timeout(REPLACED_WITHIN, old.ended()).await;
        }
        self.prune();
        let Shared {
            services,
            tenants,
            own,
            budget,
            records,
        } = &self.shared;
        let tenant = Arc::clone(tenants.of(peer));
        let seat = match tenant.has_table() {
            true => budget.allot_kept(),
            false => budget.allot(),
        };
        let Some(allotment) = seat else {
            let text = "as many enclaves are connected as may be";
            link.dismiss(&Goodbye::new(Reason::Full, text)).await;
            bail!("{text} (max_enclaves; each [[enclave]] table keeps a place)");
        };
        let (welcome, established) = offer.accept(Features::ALL);
        let sent = link.send(Kind::Welcome, &welcome);
        tokio::time::timeout(HANDSHAKE_TIMEOUT, sent)
            .await
            .context("the enclave does not read its link")?
            .context("the link broke")?;
        let now = Instant::now();
        let services = services.for_session(peer, &allotment.shares.dns_queries);
        let engine = Engine::new(
            hello,
            established.features,
            tenant.policy().clone(),
            Arc::clone(own),
            allotment,
            now,
        );
        let stream = link.into_stream().context("the link broke")?;
        let number = 1 + self.started.fetch_add(1, Ordering::Relaxed);
        let udp = (tenant.published())
            .lend(number)
            .context("published UDP ports cannot be lent")?;
        let session = hello.session;
        let record = records.begin(Facts {
            peer,
            session,
            features: established.features,
            addresses: (hello.v4.enclave, hello.v6.enclave),
        });
        let (data_loop, handle) =
            DataLoop::new(stream, decoder, engine, services, udp, record, now)
                .context("no data loop")?;
        let (sessions, of) = (Arc::downgrade(self), Arc::clone(&tenant));
        // Held until the session is in the list, so that one that ends at once is taken out again.
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        // Of several links that shook hands at once the last one stays.
        for old in (active.iter()).filter(|active| active.gives_way_to(session, peer)) {
            (old.handle).close(Goodbye::new(Reason::Replaced, TOOK_OVER));
        }
        let thread = std::thread::Builder::new()
            .name(format!("session {session}"))
            .spawn(move || {
                let _session = tracing::info_span!("session", id = %session, %peer).entered();
                data_loop.run();
                if let Some(sessions) = sessions.upgrade() {
                    sessions.prune();
                    sessions.lend_again(&of, number);
                }
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
        active.push(Active {
            number,
            session,
            peer,
            tenant,
            handle,
            thread,
        });
        Ok(())
    }

    /// The sessions that a new link takes the place of.
    fn replaced_by(&self, session: SessionId, peer: Peer) -> Vec<Handle> {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        (active.iter())
            .filter(|active| active.gives_way_to(session, peer))
            .map(|active| active.handle.clone())
            .collect()
    }

    /// Lets a tenant's published UDP ports lead to its session that came last, after session `ended`
    /// did.
    fn lend_again(&self, tenant: &Arc<Tenant>, ended: u64) {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let published = tenant.published();
        let (Some(heir), true) = (latest(&active, tenant), published.holder() == ended) else {
            return;
        };
        match published.lend(heir.number) {
            Ok(lent) => drop(heir.handle.try_send(Command::Published(lent))),
            Err(error) => tracing::warn!(%error, "published UDP ports cannot be lent"),
        }
    }

    /// Forgets ended sessions.
    fn prune(&self) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.retain(|active| !active.handle.is_closed());
    }
}

/// The tenant's session that came last and still runs.
fn latest<'a>(active: &'a [Active], tenant: &Arc<Tenant>) -> Option<&'a Active> {
    (active.iter().rev())
        .find(|active| Arc::ptr_eq(&active.tenant, tenant) && !active.handle.is_closed())
}

/// Peers whose handshake runs, once for each; `None` is whoever may not connect, all of them
/// together: what one of them does is not counted for an enclave whose number it has.
#[derive(Debug, Default)]
struct Handshakes(Mutex<Vec<Option<Peer>>>);

impl Handshakes {
    /// Takes note of one more. False when `peer`, or all of them, have too many.
    fn begin(&self, peer: Option<Peer>) -> bool {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = running.iter().filter(|other| **other == peer).count();
        let room = running.len() < MAX_ALL_HANDSHAKES && of_peer < MAX_HANDSHAKES;
        if room {
            running.push(peer);
        }
        room
    }

    fn end(&self, peer: Option<Peer>) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = running.iter().position(|other| *other == peer) {
            running.swap_remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netd_proto::address::Cid;

    #[test]
    fn handshakes_are_bounded_for_each_peer_and_for_all() {
        let handshakes = Handshakes::default();
        let begin = |cid| handshakes.begin(Some(Peer::Enclave(Cid(cid))));
        assert_eq!((0..100).filter(|_| begin(16)).count(), MAX_HANDSHAKES);
        assert!(begin(17), "another peer has its own");
        handshakes.end(Some(Peer::Enclave(Cid(16))));
        assert!(begin(16) && !begin(16));

        // Those who may not connect share one part, and have none of an enclave with their number.
        assert_eq!(
            (0..100).filter(|_| handshakes.begin(None)).count(),
            MAX_HANDSHAKES
        );
        (0..MAX_HANDSHAKES).for_each(|_| handshakes.end(None));

        // All peers but the first two, one after the other.
        let others = (100..1000).filter(|cid| begin(*cid)).count();
        assert_eq!(others, MAX_ALL_HANDSHAKES - MAX_HANDSHAKES - 1);
        assert!(!begin(17));
        handshakes.end(Some(Peer::Enclave(Cid(16))));
        assert!(begin(17));
    }
}
