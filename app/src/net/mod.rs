//! What the services share: connections out, connections in, and when to stop.

pub mod backoff;
pub mod dial;
pub mod server;
mod stall;
pub mod tls;

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Failure, What};

/// Resolves when the service is asked to end: SIGTERM or SIGINT.
///
/// # Errors
/// When the signals cannot be caught.
pub fn stop_signal() -> Result<impl Future<Output = ()> + Send, Failure> {
    let catch = |kind| {
        signal(kind).map_err(|error: io::Error| {
            Failure::new(What::Other, format!("cannot catch signals: {error}"))
        })
    };
    let mut terminate = catch(SignalKind::terminate())?;
    let mut interrupt = catch(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
