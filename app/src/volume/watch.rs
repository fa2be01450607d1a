//! What a silent server could hold up for ever: the kernel fails no request whose connection stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::error::{Failure, What};

/// That something moved.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Something did.
    pub(super) fn made(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Works on a thread that nobody waits for at the end of the program, as long as something moves
/// within `time`.
///
/// # Errors
/// `silent`, when nothing does.
pub(super) async fn watched<T: Send + 'static>(
    time: Duration,
    silent: &str,
    work: impl FnOnce(Progress) -> T + Send + 'static,
) -> Result<T, Failure> {
    let progress = Progress::default();
    let (told, mut outcome) = oneshot::channel();
    let own = progress.clone();
    std::thread::spawn(move || told.send(work(own)));
    let mut before = 0;
    loop {
        match timeout(time, &mut outcome).await {
            Ok(done) => {
                return done.map_err(|_| Failure::new(What::Other, "its thread has died"));
            }
            Err(_) => {
                let now = progress.0.load(Relaxed);
                if now == before {
                    let why = format!("{silent} (nothing within {} s)", time.as_secs());
                    return Err(Failure::new(What::Network, why));
                }
                before = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;
    use std::sync::mpsc;

    const TIME: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn what_moves_is_waited_for() {
        let slow = |progress: Progress| {
            for _ in 0..10 {
                std::thread::sleep(TIME / 4);
                progress.made();
            }
            7
        };
        assert_eq!(watched(TIME, "silent", slow).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn what_stands_still_is_given_up() {
        let (end, never) = mpsc::channel::<()>();
        let stuck = move |progress: Progress| {
            progress.made();
            let _ = never.recv();
        };
        let failure = watched(TIME, "silent", stuck).await.unwrap_err();
        assert_eq!(failure.what, What::Network);
        assert!(failure.why.starts_with("silent"), "{failure}");
        drop(end);
    }

    #[tokio::test]
    async fn what_dies_is_told() {
        let dies = |_| -> u8 { std::panic::resume_unwind(Box::new(())) };
        let failure = watched(TIME, "silent", dies).await.unwrap_err();
        assert_eq!(failure.what, What::Other);
    }
}
