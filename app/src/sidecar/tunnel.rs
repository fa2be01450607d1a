//! Tunnels: what CONNECT asks for (RFC 9110, 9.3.6).
//!
//! What goes through is between the client and the site. Only the site is chosen here, by the same
//! rules as for everything else.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::net::TcpStream;

use super::body::Way;
use super::metrics::{Gauge, Metrics};

/// Carries bytes both ways until both sides are done, one breaks off, or neither says anything for
/// `idle` (and at most twice that).
pub(super) async fn carry(
    client: OnUpgrade,
    site: TcpStream,
    metrics: Arc<Metrics>,
    idle: Duration,
) -> io::Result<()> {
    let _gauge = Gauge::of(&metrics.tunnels);
    metrics.tunnels_made.fetch_add(1, Relaxed);
    let client = client.await.map_err(io::Error::other)?;
    let moved = Arc::new(AtomicU64::new(0));
    let counted = |way| (Arc::clone(&metrics), way, Arc::clone(&moved));
    let mut client = Counted {
        stream: TokioIo::new(client),
        counted: counted(Way::ToSite),
    };
    let mut site = Counted {
        stream: site,
        counted: counted(Way::ToClient),
    };
    let mut copy = pin!(copy_bidirectional(&mut client, &mut site));
    let mut before = 0;
    loop {
        tokio::select! {
            done = &mut copy => return done.map(drop),
            () = tokio::time::sleep(idle) => {}
        }
        let now = moved.load(Relaxed);
        if now == before {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "idle for too long"));
        }
        before = now;
    }
}

/// A stream of which is counted what is read.
struct Counted<S> {
    stream: S,
    counted: (Arc<Metrics>, Way, Arc<AtomicU64>),
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(context, into);
        let read = (into.filled().len() - before) as u64;
        let (metrics, way, moved) = &self.counted;
        way.bytes(metrics).fetch_add(read, Relaxed);
        moved.fetch_add(read, Relaxed);
        done
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
