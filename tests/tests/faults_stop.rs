//! Daemons that stand still, or die, under load.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{
    Census, Daemons, Family, Lab, Pattern, Process, address, connect, echo_compared, serve, until,
    works_again,
};
use nix::libc::{ECONNRESET, ENETUNREACH};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;

/// An echo server that counts what it got, and the connections that ended by a reset.
struct Counting {
    at: SocketAddr,
    bytes: Arc<AtomicUsize>,
    resets: Arc<AtomicUsize>,
}

impl Counting {
    fn new(lab: &Lab) -> Counting {
        let (bytes, resets) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (counted, reset) = (Arc::clone(&bytes), Arc::clone(&resets));
        let at = Family::V4.at(address::SERVER, 7);
        let at = serve(&lab.internet, at, move |mut stream| {
            let mut buffer = vec![0; 64 * 1024];
            let error = loop {
                let passed = match stream.read(&mut buffer) {
                    Ok(0) => return drop(stream.shutdown(Shutdown::Write)),
                    Ok(n) => {
                        counted.fetch_add(n, Ordering::Relaxed);
                        stream.write_all(&buffer[..n])
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = passed {
                    break error;
                }
            };
            if error.raw_os_error() == Some(ECONNRESET) {
                reset.fetch_add(1, Ordering::Relaxed);
            }
        });
        Counting { at, bytes, resets }
    }

    /// Waits until so many more bytes came.
    fn moves(&self, more: usize) {
        let before = self.bytes.load(Ordering::Relaxed);
        until(30, "bytes move", || {
            (self.bytes.load(Ordering::Relaxed) >= before + more).then_some(())
        });
    }
}

/// A connection on which a byte has gone both ways, and nothing is to come.
fn idle(lab: &Lab, echo: SocketAddr) -> TcpStream {
    let mut stream = connect(&lab.enclave, echo, 5).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Host,
    Enclave,
}

impl Which {
    fn of(self, daemons: &Daemons) -> &Process {
        match self {
            Which::Host => &daemons.host,
            Which::Enclave => &daemons.enclave,
        }
    }
}

/// Shorter than a link without a sign of life lasts: all goes on as if nothing had been.
fn a_short_stop(which: Which) {
    let lab = Lab::new();
    let mut daemons = lab.up();
    let echo = Counting::new(&lab);
    works_again(&lab.enclave, echo.at);
    let before = Census::of(&lab, &mut daemons);
    let mut idle = idle(&lab, echo.at);
    let busy = connect(&lab.enclave, echo.at, 5).unwrap();
    let pattern = Pattern::new(11);

    thread::scope(|scope| {
        let transfer = scope.spawn(|| echo_compared(&busy, &pattern, &pattern, 192 * MIB));
        echo.moves(4 * MIB);
        which.of(&daemons).signal(Signal::SIGSTOP);
        let at_stop = echo.bytes.load(Ordering::Relaxed);
        // The time is what is tested.
        thread::sleep(Duration::from_secs(10));
        assert!(at_stop < 192 * MIB, "the transfer was over before the stop");
        which.of(&daemons).signal(Signal::SIGCONT);
        works_again(&lab.enclave, echo.at);
        transfer.join().unwrap().unwrap();
    });

    idle.write_all(b"y").unwrap();
    idle.read_exact(&mut [0]).unwrap();
    assert!(!daemons.enclave.log().contains("lost"), "{which:?}");
    drop((idle, busy));
    Census::assert_no_more_than(&before, 15, &lab, &mut daemons);
}

/// Longer: the other daemon gives the link up, and open flows end.
fn a_long_stop(which: Which) {
    let lab = Lab::new();
    let mut daemons = lab.up();
    let echo = Counting::new(&lab);
    works_again(&lab.enclave, echo.at);
    let before = Census::of(&lab, &mut daemons);
    let mut idle = idle(&lab, echo.at);
    let busy = connect(&lab.enclave, echo.at, 5).unwrap();
    busy.set_write_timeout(None).unwrap();
    let pattern = Pattern::new(12);

    thread::scope(|scope| {
        let transfer = scope.spawn(|| {
            let error = echo_compared(&busy, &pattern, &pattern, 4096 * MIB).unwrap_err();
            (error, Instant::now())
        });
        echo.moves(4 * MIB);
        which.of(&daemons).signal(Signal::SIGSTOP);
        let stopped = Instant::now();
        match which {
            Which::Host => {
                daemons.enclave.wait_log("link to the parent lost", 18);
                // Programs are told at once, though nothing answers on the parent.
                let told = idle.read(&mut [0]).unwrap_err();
                assert_eq!(told.raw_os_error(), Some(ECONNRESET), "{told}");
                let refused = connect(&lab.enclave, echo.at, 3).unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(ENETUNREACH), "{refused}");
            }
            Which::Enclave => {
                daemons.host.wait_log("nothing was heard for 15 s", 18);
                until(2, "servers are told", || {
                    (echo.resets.load(Ordering::Relaxed) >= 2).then_some(())
                });
            }
        }
        let gave_up = stopped.elapsed();
        assert!(gave_up > Duration::from_secs(12), "{which:?}: {gave_up:?}");
        thread::sleep(Duration::from_secs(30).saturating_sub(stopped.elapsed()));
        which.of(&daemons).signal(Signal::SIGCONT);
        let resumed = Instant::now();
        works_again(&lab.enclave, echo.at);
        let (error, at) = transfer.join().unwrap();
        assert_eq!(error.raw_os_error(), Some(ECONNRESET), "{which:?}: {error}");
        assert!(
            at < resumed + Duration::from_secs(2),
            "{which:?}: told late"
        );
    });

    if which == Which::Enclave {
        let told = idle.read(&mut [0]).unwrap_err();
        assert_eq!(told.raw_os_error(), Some(ECONNRESET), "{told}");
    }
    drop((idle, busy));
    Census::assert_no_more_than(&before, 15, &lab, &mut daemons);
}

#[test]
fn a_daemon_that_stands_still_for_ten_seconds_loses_nothing_and_for_thirty_the_flows() {
    thread::scope(|scope| {
        for which in [Which::Host, Which::Enclave] {
            scope.spawn(move || a_long_stop(which));
            scope.spawn(move || a_short_stop(which));
        }
    });
}

#[test]
fn alone_a_new_enclave_netd_resets_what_the_last_one_left() {
    let lab = Lab::new();
    let mut daemons = lab.up();
    let echo = Counting::new(&lab);
    works_again(&lab.enclave, echo.at);
    let before = Census::of(&lab, &mut daemons);
    for (round, by_force) in [true, false, true].into_iter().enumerate() {
        let mut idle = idle(&lab, echo.at);
        let busy = connect(&lab.enclave, echo.at, 5).unwrap();
        let pattern = Pattern::new(13);
        thread::scope(|scope| {
            let transfer = scope.spawn(|| {
                let error = echo_compared(&busy, &pattern, &pattern, 4096 * MIB).unwrap_err();
                (error, Instant::now())
            });
            echo.moves(4 * MIB);
            if by_force {
                daemons.enclave.kill();
            } else {
                assert!(daemons.enclave.terminate().success());
            }
            daemons.host.wait_log_times("session ended", round + 1, 5);
            let refused = connect(&lab.enclave, echo.at, 3).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(ENETUNREACH), "{refused}");

            daemons.enclave = lab.start_enclave("");
            let ready = Instant::now();
            works_again(&lab.enclave, echo.at);
            let told = idle.read(&mut [0]).unwrap_err();
            assert_eq!(told.raw_os_error(), Some(ECONNRESET), "idle: {told}");
            let (told, _) = transfer.join().unwrap();
            assert_eq!(told.raw_os_error(), Some(ECONNRESET), "busy: {told}");
            let took = ready.elapsed();
            assert!(took < Duration::from_secs(2), "told after {took:?}");
        });
    }
    Census::assert_no_more_than(&before, 15, &lab, &mut daemons);
}
