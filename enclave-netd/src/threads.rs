//! The connecting thread and the pump's.

use crate::config::Config;
use crate::datapath::Datapath;
use crate::feed::Feed;
use crate::guard::{Addresses, Guard};
use crate::limits::GOODBYE_TIMEOUT;
use crate::link::Connector;
use crate::pump::{self, Command, Event, Pump};
use crate::tun::Tun;
use anyhow::{Context, Result};
use mio::{Poll, Waker};
use netd_proto::address::LinkAddress;
use netd_proto::handshake::{Features, Hello, Lane, Network4, Network6, SessionId};
use netd_proto::limits::MAX_LANES;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use tracing::warn;

/// Held by a thread without which there is no network: a bug that ends the thread ends the daemon,
/// in good order.
struct Alarm<N: Fn(Event)>(N);

impl<N: Fn(Event)> Drop for Alarm<N> {
    fn drop(&mut self) {
        if thread::panicking() {
            let error = io::Error::other("a thread panicked: this is a bug, please report it");
            (self.0)(Event::Failed(error));
        }
    }
}

/// Both threads.
pub(crate) struct Threads {
    commands: SyncSender<Command>,
    waker: Arc<Waker>,
    ended: Receiver<()>,
}

impl Threads {
    /// Starts them; they connect and move packets until they are stopped. `notify` is called by
    /// both.
    ///
    /// # Errors
    /// The kernel has no room for them.
    pub(crate) fn start(
        tun: Tun,
        config: &Config,
        session: SessionId,
        feed: Option<Feed>,
        notify: impl Fn(Event) + Clone + Send + 'static,
    ) -> Result<Threads> {
        let poll = Poll::new().context("cannot make an epoll instance")?;
        let waker = Waker::new(poll.registry(), pump::WAKE).context("cannot make an eventfd")?;
        let waker = Arc::new(waker);
        // A link, a report and a stop may wait at once.
        let (commands, inbox) = sync_channel(4);
        let (to_pump, wake_pump) = (commands.clone(), waker.clone());
        let mut hello = hello(config, &tun, session);
        if feed.is_some() {
            hello.features = hello.features.or(Features::LOG);
        }
        let alarm = Alarm(notify.clone());
        let connector = Connector::start(config.parent.clone(), hello, move |link| {
            let _alarm = &alarm;
            let sent = to_pump.send(Command::Link(Box::new(link))).is_ok();
            sent && wake_pump.wake().is_ok()
        });
        let addresses = Addresses::from(&config.network);
        let guard = Guard::new(addresses, config.publish.clone(), config.rules.clone());
        let is_vsock = matches!(config.parent, LinkAddress::Vsock(..));
        let pump = Pump {
            poll,
            commands: inbox,
            connector: connector.context("cannot start a thread")?,
            notify: notify.clone(),
            datapath: Datapath::new(tun, guard, addresses, is_vsock),
            feed,
        };
        let alarm = Alarm(notify);
        let (end, ended) = sync_channel(1);
        thread::Builder::new()
            .name("pump".into())
            .spawn(move || {
                let _alarm = alarm;
                pump.run();
                // Nobody waits when the daemon ends for another reason.
                let _ = end.send(());
            })
            .context("cannot start a thread")?;
        Ok(Threads {
            commands,
            waker,
            ended,
        })
    }

    /// Tells the pump.
    pub(crate) fn send(&self, command: Command) {
        // A full inbox means that the pump is about to look at it.
        if self.commands.try_send(command).is_ok() {
            let _ = self.waker.wake();
        }
    }

    /// Ends the pump: it says goodbye, and gets a moment for that.
    pub(crate) fn stop(&self) {
        self.send(Command::Stop);
        if self.ended.recv_timeout(2 * GOODBYE_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            warn!("the pump did not end in time");
        }
    }

    /// Waits until the pump has ended by itself.
    pub(crate) fn join(&self) {
        // It is gone, too, when it panicked.
        let _ = self.ended.recv();
    }
}

fn hello(config: &Config, tun: &Tun, session: SessionId) -> Hello {
    let (v4, v6) = (config.network.v4, config.network.v6);
    Hello {
        features: tun.offload().features(),
        session,
        lane: Lane(0),
        lanes: MAX_LANES,
        mtu: config.network.mtu,
        v4: Network4 {
            enclave: v4.address,
            gateway: v4.gateway,
            parent_loopback: v4.parent_loopback,
        },
        v6: Network6 {
            enclave: v6.address,
            gateway: v6.gateway,
            parent_loopback: v6.parent_loopback,
        },
    }
}
