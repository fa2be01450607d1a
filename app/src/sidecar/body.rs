//! Bodies on their way: counted, never gathered, and not waited for for ever.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::metrics::Metrics;

/// Why a body ended early.
pub(super) type Broken = Box<dyn std::error::Error + Send + Sync>;
/// Any body.
pub(super) type Any = UnsyncBoxBody<Bytes, Broken>;

/// No body.
pub(super) fn empty() -> Any {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A text.
pub(super) fn text(text: String) -> Any {
    Full::from(text)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Which way a body goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    ToSite,
    ToClient,
}

impl Way {
    /// Where its bytes are counted.
    pub(super) fn bytes(self, metrics: &Metrics) -> &AtomicU64 {
        match self {
            Way::ToSite => &metrics.sent,
            Way::ToClient => &metrics.received,
        }
    }
}

/// A body that fails when its sender says nothing for some time.
struct Watched {
    body: Incoming,
    way: Way,
    metrics: Arc<Metrics>,
    time: Duration,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
}

/// A body on its way, counted, that its sender may keep waiting for so long.
pub(super) fn watched(body: Incoming, way: Way, metrics: &Arc<Metrics>, time: Duration) -> Any {
    let watched = Watched {
        body,
        way,
        metrics: Arc::clone(metrics),
        time,
        timer: Box::pin(sleep(time)),
        waiting: false,
    };
    watched.boxed_unsync()
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.waiting = false;
            if let Some(Ok(frame)) = &frame {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.way.bytes(&self.metrics).fetch_add(length, Relaxed);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Broken::from)));
        }
        if !self.waiting {
            self.waiting = true;
            let end = Instant::now() + self.time;
            self.timer.as_mut().reset(end);
        }
        ready!(self.timer.as_mut().poll(context));
        let error = io::Error::new(ErrorKind::TimedOut, "the sender of a body stands still");
        Poll::Ready(Some(Err(error.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
