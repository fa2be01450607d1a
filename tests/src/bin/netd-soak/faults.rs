//! The faults, one after the other.

use crate::datagrams::{self, NAMED};
use crate::exchange::{Exchange, Patterns, SERVING};
use crate::ledger::{Fault, Window};
use crate::memory::Watched;
use crate::random::Random;
use crate::workers::{PORT, Stop};
use netd_tests::{Answer, Daemons, FakeDns, Family, Lab, Machine, Process, Tap, address, connect};
use nix::sys::signal::Signal;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a server may take to start, in seconds.
const START: u64 = 20;
/// The longest that a dead link may stand, in seconds: 15 in silence and some.
const GIVEN_UP: u64 = 25;
/// Then the wait for service is given up.
const HOPELESS: Duration = Duration::from_secs(20);

/// What faults are done to.
pub(crate) struct Bed<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) tap: &'a Tap,
    pub(crate) daemons: Daemons,
    pub(crate) host: &'a Watched,
    patterns: &'a Patterns,
    server: Process,
    _inside: Process,
    names: Option<FakeDns>,
    /// Which of the two addresses serves names.
    moved: bool,
    /// Logs of daemons that were.
    pub(crate) logs: Vec<PathBuf>,
}

impl<'a> Bed<'a> {
    /// host-netd's arguments, and the enclave's configuration.
    pub(crate) const HOST: [&'static str; 4] = ["--publish", "7000", "--publish", "7000/udp"];
    pub(crate) const ENCLAVE: &'static str = r#"publish = ["7000/tcp", "7000/udp"]"#;

    /// Starts the servers.
    pub(crate) fn new(
        lab: &'a Lab,
        tap: &'a Tap,
        daemons: Daemons,
        host: &'a Watched,
        patterns: &'a Patterns,
    ) -> Bed<'a> {
        host.is_now(daemons.host.pid());
        Bed {
            lab,
            tap,
            server: serve(&lab.internet, address::SERVER),
            _inside: serve(&lab.enclave, address::ENCLAVE),
            names: Some(names(lab, false)),
            moved: false,
            logs: vec![daemons.host.log_path().to_owned()],
            daemons,
            host,
            patterns,
        }
    }

    /// Does it, undoes it, and waits for service.
    pub(crate) fn inflict(&mut self, fault: Fault, random: &mut Random, stop: &Stop) -> Window {
        let begin = Instant::now();
        match fault {
            Fault::LinkCut => {
                self.tap.cut();
                stop.rest(random.millis(0, 3000));
                self.tap.mend();
            }
            Fault::LinkPause => {
                self.tap.freeze();
                stop.rest(random.millis(200, 4000));
                self.tap.thaw();
            }
            Fault::LinkFrozen => {
                const LOST: &str = "link to the parent lost";
                let before = self.daemons.enclave.log().matches(LOST).count();
                self.tap.freeze();
                self.daemons
                    .enclave
                    .wait_log_times(LOST, before + 1, GIVEN_UP);
                self.tap.thaw();
            }
            Fault::HostKilled => {
                self.daemons.host.kill();
                stop.rest(random.millis(0, 2000));
                self.daemons.host = self.lab.start_host(&Self::HOST);
                self.logs.push(self.daemons.host.log_path().to_owned());
                self.host.is_now(self.daemons.host.pid());
            }
            Fault::HostStopped => pause(&self.daemons.host, random, stop),
            Fault::EnclaveStopped => pause(&self.daemons.enclave, random, stop),
            Fault::ServerKilled => {
                self.server.kill();
                stop.rest(random.millis(0, 2000));
                self.server = serve(&self.lab.internet, address::SERVER);
            }
            Fault::NamesMoved => {
                let old = self.names.take();
                self.moved = !self.moved;
                self.names = Some(names(self.lab, self.moved));
                // It is noticed within this time.
                stop.rest(Duration::from_secs(2));
                drop(old);
            }
            Fault::NamesDead => {
                self.names = None;
                stop.rest(random.millis(500, 4000));
                self.names = Some(names(self.lab, self.moved));
            }
        }
        let end = Instant::now();
        Window {
            fault,
            begin,
            end,
            service: self.service(random),
        }
    }

    /// How long it takes until everything works.
    pub(crate) fn service(&self, random: &mut Random) -> Duration {
        let begin = Instant::now();
        while begin.elapsed() < HOPELESS && !self.works(random) {
            std::thread::sleep(Duration::from_millis(20));
        }
        begin.elapsed()
    }

    fn works(&self, random: &mut Random) -> bool {
        let family = *random.of(&Family::BOTH);
        let exchange = Exchange::new(0, 100, 1000);
        let ways = [
            (&self.lab.enclave, address::SERVER),
            (&self.lab.internet, address::PARENT),
        ];
        let tcp = ways.iter().all(|(from, to)| {
            connect(from, family.at(*to, PORT), 1)
                .and_then(|stream| exchange.run(&stream, self.patterns))
                .is_ok()
        });
        let gateway = family.at(address::GATEWAY, 53);
        tcp && datagrams::look_up(&self.lab.enclave, gateway, random, false).is_ok()
    }
}

fn pause(process: &Process, random: &mut Random, stop: &Stop) {
    process.signal(Signal::SIGSTOP);
    stop.rest(random.millis(500, 4000));
    process.signal(Signal::SIGCONT);
}

/// Starts the server of all loads in a machine.
fn serve(machine: &Machine, at: [IpAddr; 2]) -> Process {
    let own = std::env::current_exe().expect("a program has a path");
    let own = own.to_str().expect("a path of text");
    let at = Family::BOTH.map(|family| family.at(at, PORT).to_string());
    let mut server = machine.spawn(own, &["serve", &at[0], &at[1]]);
    server.wait_log(SERVING, START);
    server
}

/// Starts one of two name servers, and tells the parent.
fn names(lab: &Lab, moved: bool) -> FakeDns {
    let [at, _] = if moved { address::OTHER } else { address::DNS };
    let answer = Answer::Addresses(NAMED.to_vec(), 1);
    let server = FakeDns::new(&lab.internet, at, answer);
    lab.parent.write_resolv_conf(&format!("nameserver {at}\n"));
    server
}
