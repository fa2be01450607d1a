//! Several enclaves of one host-netd, each with a table of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_proto::frame::Kind;
use netd_tests::{
    Family, Lab, Machine, Packets, Process, Rogue, address, connect, echo_server, serve, until,
};
use nix::libc::{EACCES, ECONNREFUSED, ECONNRESET, EHOSTUNREACH};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// Ports inside, the same in every enclave: TCP and UDP.
const INSIDE: u16 = 7000;
/// What every enclave lets in.
const PUBLISHED: &str = r#"publish = ["7000/tcp", "7000/udp"]"#;

/// An enclave with a service that tells which one it is.
struct Tenant<'a> {
    cid: u16,
    machine: &'a Machine,
    link: PathBuf,
    /// Its ports outside, TCP and UDP.
    port: u16,
    daemon: Process,
    /// Datagrams that its service got.
    datagrams: Receiver<Vec<u8>>,
}

impl<'a> Tenant<'a> {
    fn start(lab: &Lab, machine: &'a Machine, cid: u16, link: PathBuf) -> Tenant<'a> {
        let daemon = daemon(lab, machine, &link);
        Tenant {
            cid,
            machine,
            link,
            port: port(cid),
            daemon,
            datagrams: service(machine, cid),
        }
    }

    fn restart(&mut self, lab: &Lab) {
        self.daemon = daemon(lab, self.machine, &self.link);
    }

    fn name(&self) -> String {
        format!("CID {}", self.cid)
    }

    /// Its service answers by TCP and UDP, and it is the one.
    fn answers(&self, lab: &Lab) {
        for family in Family::BOTH {
            let at = family.at(address::PARENT, self.port);
            let told = until(5, "its port answers", || ask_tcp(lab, at).ok());
            assert_eq!(told, self.name(), "{at}");
            let told = until(5, "its UDP port answers", || ask_udp(lab, at, b"who").ok());
            assert_eq!(told, self.name(), "{at}");
        }
    }

    /// Nobody answers in its place.
    fn is_away(&self, lab: &Lab) {
        for family in Family::BOTH {
            let at = family.at(address::PARENT, self.port);
            let error = ask_tcp(lab, at).expect_err("nobody is there");
            let told = error.raw_os_error();
            assert!(matches!(told, Some(ECONNRESET | ECONNREFUSED)), "{error}");
            let error = ask_udp(lab, at, b"to the absent").expect_err("nobody is there");
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
        }
    }
}

/// The port of the parent that leads to an enclave.
fn port(cid: u16) -> u16 {
    8000 + cid
}

fn table(cid: u16, link: &str, rules: &str) -> String {
    let port = port(cid);
    format!(
        "[[enclave]]\ncid = {cid}\nlisten = 'unix:{link}'\n\
         publish = ['{port}:{INSIDE}', '{port}:{INSIDE}/udp']\nrules = [{rules}]\n"
    )
}

fn socket(lab: &Lab, cid: u16) -> PathBuf {
    lab.dir().join(format!("link/{cid}.sock"))
}

/// Starts host-netd with a table for each, and no listener but theirs unless told in `more`.
fn start_host(lab: &Lab, more: &str, tables: &[(u16, &str)]) -> Process {
    let tables = tables.iter().map(|(cid, rules)| {
        let link = socket(lab, *cid);
        table(*cid, link.to_str().unwrap(), rules)
    });
    let config = lab.config(&format!("{more}\n{}", tables.collect::<String>()));
    let binary = lab.binary("host-netd");
    let mut host = lab.parent.spawn_as_nobody(&binary, &["--config", &config]);
    host.wait_log("listening", 20);
    host
}

fn daemon(lab: &Lab, machine: &Machine, link: &std::path::Path) -> Process {
    let mut daemon = lab.spawn_enclave_on(machine, link, PUBLISHED, &[]);
    daemon.wait_log("ready", 20);
    daemon
}

/// Tells its enclave's name to whoever asks, and here what was asked by UDP.
fn service(machine: &Machine, cid: u16) -> Receiver<Vec<u8>> {
    let name = format!("CID {cid}");
    let told = name.clone();
    serve(machine, Family::V6.any(INSIDE), move |mut stream| {
        let _ = stream.write_all(told.as_bytes());
    });
    let socket = machine
        .inside(|| UdpSocket::bind(Family::V6.any(INSIDE)))
        .unwrap();
    let (seen, datagrams) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            // It may be away when it answers.
            let _ = socket.send_to(name.as_bytes(), from);
            if seen.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    datagrams
}

fn ask_tcp(lab: &Lab, at: SocketAddr) -> io::Result<String> {
    let mut stream = connect(&lab.internet, at, 5)?;
    let mut told = String::new();
    stream.read_to_string(&mut told)?;
    Ok(told)
}

fn ask_udp(lab: &Lab, at: SocketAddr, question: &[u8]) -> io::Result<String> {
    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = lab.internet.inside(|| UdpSocket::bind(any))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.connect(at)?;
    socket.send(question)?;
    let mut buffer = [0; 100];
    let n = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

#[test]
fn each_published_port_reaches_its_own_enclave_whichever_came_last_or_went() {
    let lab = Lab::new();
    let other = lab.machine("other");
    let mut host = start_host(&lab, "", &[(16, ""), (17, "")]);
    let mut tenants = [
        Tenant::start(&lab, &lab.enclave, 16, socket(&lab, 16)),
        Tenant::start(&lab, &other, 17, socket(&lab, 17)),
    ];
    for which in [0, 1] {
        tenants.iter().for_each(|tenant| tenant.answers(&lab));

        let ended = host.log().matches("session ended").count();
        assert!(tenants[which].daemon.terminate().success());
        host.wait_log_times("session ended", ended + 1, 10);
        tenants[which].is_away(&lab);
        tenants[1 - which].answers(&lab);

        tenants[which].restart(&lab);
    }
    tenants.iter().for_each(|tenant| tenant.answers(&lab));
    let log = host.log();
    assert!(
        log.contains("peer=CID 16") && log.contains("peer=CID 17"),
        "{log}"
    );

    // host-netd is another one; the order in which they come back is nobody's choice.
    host.kill();
    let _host = start_host(&lab, "", &[(16, ""), (17, "")]);
    tenants.iter().for_each(|tenant| tenant.answers(&lab));
}

#[test]
fn a_datagram_for_an_absent_enclave_goes_to_no_other() {
    let lab = Lab::new();
    let other = lab.machine("other");
    let mut host = start_host(&lab, "", &[(16, ""), (17, "")]);
    let mut first = Tenant::start(&lab, &lab.enclave, 16, socket(&lab, 16));
    let second = Tenant::start(&lab, &other, 17, socket(&lab, 17));
    assert!(first.daemon.terminate().success());
    host.wait_log("session ended", 10);

    let at = Family::V4.at(address::PARENT, first.port);
    ask_udp(&lab, at, b"for the first alone").unwrap_err();
    second.answers(&lab);

    let seen: Vec<_> = second.datagrams.try_iter().collect();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|datagram| datagram == b"who"), "{seen:?}");
}

#[test]
fn an_enclave_does_not_speak_for_the_port_of_another() {
    let lab = Lab::new();
    let mut host = start_host(&lab, "", &[(16, ""), (17, "")]);
    let _owner = Rogue::connect(&socket(&lab, 16), 1);
    let mut other = Rogue::connect(&socket(&lab, 17), 2);
    host.wait_log_times("session started", 2, 10);
    let client = lab
        .internet
        .inside(|| UdpSocket::bind("192.0.2.2:0"))
        .unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    // The port inside is the same, the one outside is not.
    let packet = Packets::udp(INSIDE, client.local_addr().unwrap(), b"I am the service");
    other.send_packet(&packet);
    let (_, from) = client.recv_from(&mut [0; 100]).unwrap();
    assert_eq!(from.port(), port(17));
}

#[test]
fn rules_of_a_table_are_for_its_enclave_and_come_before_those_for_all() {
    let lab = Lab::new();
    let other = lab.machine("other");
    let permit = "'allow 192.0.2.2', 'allow 2001:db8:1::2'";
    let _host = start_host(&lab, "rules = ['deny *']", &[(16, permit), (17, "")]);
    let may = Tenant::start(&lab, &lab.enclave, 16, socket(&lab, 16));
    let may_not = Tenant::start(&lab, &other, 17, socket(&lab, 17));
    echo_server(&lab.internet, Family::V6.any(7));
    for (family, forbidden) in [(Family::V4, EHOSTUNREACH), (Family::V6, EACCES)] {
        let permitted = family.at(address::SERVER, 7);
        connect(may.machine, permitted, 5).unwrap();
        for (tenant, to) in [
            (&may, family.at(address::OTHER, 7)),
            (&may_not, permitted),
            (&may_not, family.at(address::OTHER, 7)),
        ] {
            let error = connect(tenant.machine, to, 5).unwrap_err();
            let name = tenant.name();
            assert_eq!(
                error.raw_os_error(),
                Some(forbidden),
                "{name} {to}: {error}"
            );
        }
    }
}

#[test]
fn an_enclave_does_not_reach_what_another_publishes() {
    let lab = Lab::new();
    let other = lab.machine("other");
    let open = "'allow tcp 192.0.2.1:8017', 'allow tcp [2001:db8:1::1]:8017'";
    let _host = start_host(&lab, "", &[(16, ""), (17, ""), (18, open)]);
    let first = Tenant::start(&lab, &lab.enclave, 16, socket(&lab, 16));
    let second = Tenant::start(&lab, &other, 17, socket(&lab, 17));
    let third = lab.machine("third");
    let _third = daemon(&lab, &third, &socket(&lab, 18));
    for (family, forbidden) in [(Family::V4, EHOSTUNREACH), (Family::V6, EACCES)] {
        let at = family.at(address::PARENT, second.port);
        let error = connect(first.machine, at, 5).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(forbidden), "{at}: {error}");
        // Unless the operator says so.
        let mut told = String::new();
        let mut stream = connect(&third, at, 5).unwrap();
        stream.read_to_string(&mut told).unwrap();
        assert_eq!(told, second.name(), "{at}");
    }
}

/// The most specific wins in both directions: an enclave with a table is not "the one that came
/// last", and one without gets nothing of a table.
#[test]
fn ports_at_the_top_lead_to_the_latest_enclave_without_a_table() {
    let lab = Lab::new();
    let (other, third) = (lab.machine("other"), lab.machine("third"));
    let common = lab.link_address();
    let top = format!("listen = '{common}'\npublish = ['8000:{INSIDE}', '8000:{INSIDE}/udp']");
    let _host = start_host(&lab, &top, &[(16, "")]);

    let mut first = Tenant::start(&lab, &lab.enclave, 0, lab.link());
    let mut own = Tenant::start(&lab, &other, 16, socket(&lab, 16));
    first.answers(&lab);
    own.answers(&lab);

    let mut latest = Tenant::start(&lab, &third, 1, lab.link());
    latest.port = 8000;
    latest.answers(&lab);
    own.answers(&lab);

    assert!(latest.daemon.terminate().success());
    first.answers(&lab);
    assert!(own.daemon.terminate().success());
    first.answers(&lab);
    own.is_away(&lab);
    assert!(first.daemon.terminate().success());
    until(10, "nobody is left", || {
        ask_tcp(&lab, Family::V4.at(address::PARENT, 8000)).err()
    });
    first.is_away(&lab);
}

#[test]
fn enclaves_without_a_table_leave_the_places_of_those_with_one() {
    let lab = Lab::new();
    let top = format!("max_enclaves = 3\nlisten = '{}'", lab.link_address());
    let _host = start_host(&lab, &top, &[(16, ""), (17, "")]);
    let _one = Rogue::connect(&lab.link(), 1);
    let (_, told) = Rogue::greet(&lab.link(), 2);
    assert_eq!(told, Some(Kind::Goodbye), "the one place is taken");

    let _first = Rogue::connect(&socket(&lab, 16), 3);
    let _second = Rogue::connect(&socket(&lab, 17), 4);
}

#[test]
fn a_link_at_an_enclaves_socket_takes_the_place_of_its_last_one() {
    let lab = Lab::new();
    let mut host = start_host(&lab, "", &[(16, ""), (17, "")]);
    let mut old = Rogue::connect(&socket(&lab, 16), 1);
    let _other = Rogue::connect(&socket(&lab, 17), 1);
    host.wait_log_times("session started", 2, 10);
    // Another run of the enclave has another session.
    let _new = Rogue::connect(&socket(&lab, 16), 2);
    host.wait_log_times("session ended", 1, 10);
    assert!(old.packet(5, |_| Some(())).is_none(), "its link is closed");
    assert_eq!(host.log().matches("session ended").count(), 1);
    assert!(
        host.log().contains("peer=CID 16}: session ended"),
        "{}",
        host.log()
    );
}

#[test]
fn the_sockets_of_enclaves_come_and_go_with_host_netd() {
    let lab = Lab::new();
    let sockets = [socket(&lab, 16), socket(&lab, 17)];
    let mut host = start_host(&lab, "", &[(16, ""), (17, "")]);
    assert!(sockets.iter().all(|path| path.exists()));

    // They are taken for in use while it lives, and for left behind after its death.
    let config = lab.config(&table(16, sockets[0].to_str().unwrap(), ""));
    let binary = lab.binary("host-netd");
    let done = lab.parent.run_as_nobody(&binary, &["--config", &config]);
    assert_ne!(done.code(), 0, "{done}");
    host.kill();
    assert!(sockets.iter().all(|path| path.exists()));
    let mut host = start_host(&lab, "", &[(16, ""), (17, "")]);

    assert!(host.terminate().success());
    assert!(
        sockets.iter().all(|path| !path.exists()),
        "a socket is left"
    );
}
