//! The admin socket and its clients: status, logs, wait. The sandbox is on throughout.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_proto::handshake::Features;
use netd_proto::report::{Exit, Source};
use netd_tests::{
    Daemons, Done, Family, Lab, Packets, Pattern, Process, Rogue, address, connect, echo_compared,
    echo_server, log_frame, until,
};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;
/// What the socket says at most, with a line of the greatest length.
const ANSWER: Duration = Duration::from_secs(20);

fn socket(lab: &Lab) -> PathBuf {
    lab.link().with_file_name("admin.sock")
}

fn host(lab: &Lab) -> Process {
    lab.start_host(&["--admin", socket(lab).to_str().unwrap()])
}

/// Both daemons as they come, with an admin socket.
fn up(lab: &Lab) -> Daemons {
    lab.up_with(&["--admin", socket(lab).to_str().unwrap()], "")
}

/// `host-netd` with a question.
fn ask(lab: &Lab, question: &[&str]) -> Done {
    let socket = socket(lab);
    let arguments = [question, &["--admin", socket.to_str().unwrap()]].concat();
    lab.parent.run(&lab.binary("host-netd"), &arguments)
}

/// The same, while the test goes on.
fn asking(lab: &Lab, question: &[&str]) -> Process {
    let socket = socket(lab);
    let arguments = [question, &["--admin", socket.to_str().unwrap()]].concat();
    lab.parent.spawn(&lab.binary("host-netd"), &arguments)
}

/// What `status --json` tells of each enclave.
fn enclaves(lab: &Lab) -> Vec<Value> {
    let text = ask(lab, &["status", "--json"]).ok();
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    status["enclaves"].as_array().unwrap().clone()
}

/// The enclave that came last, once this holds of it.
fn newest_when(lab: &Lab, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    until(20, what, || {
        let newest = enclaves(lab).into_iter().next()?;
        eprintln!("{newest}");
        holds(&newest).then_some(newest)
    })
}

/// A client that speaks for itself.
struct Client(BufReader<UnixStream>);

impl Client {
    fn new(lab: &Lab) -> Client {
        let stream = UnixStream::connect(socket(lab)).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        Client(BufReader::new(stream))
    }

    fn send(&mut self, text: &str) {
        // One that was refused is told why, though it cannot say anything.
        let _ = self.0.get_mut().write_all(text.as_bytes());
    }

    /// The next answer; nothing at the end.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }

    /// The next answer, which is an error.
    fn error(&mut self) -> String {
        let answer = self.next().expect("an answer");
        answer["error"].as_str().expect("an error").to_owned()
    }
}

/// Lines that `logs` shows, without their times.
fn shown(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{line}");
        rest.to_owned()
    });
    lines.collect()
}

#[test]
fn status_tells_what_a_session_does_and_did() {
    const FLOWS: usize = 5;
    let lab = Lab::new();
    let _unbound = lab.unbound();
    let mut daemons = up(&lab);
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let before = newest_when(&lab, "it is there", |e| e["connected"] == true);
    assert_eq!(before["cid"], "unix");
    assert_eq!(before["figures"]["flows_opened"], 0);
    assert_eq!(before["link"]["addresses"][0], "100.64.0.2");
    assert!(
        before["link"]["features"]
            .as_str()
            .unwrap()
            .contains("checksum")
    );
    assert!(before["gone"].is_null() && before["exit"].is_null());

    let piece = [7; MIB / 16];
    let streams: Vec<_> = (0..FLOWS)
        .map(|_| {
            let mut stream = connect(&lab.enclave, echo, 5).unwrap();
            for _ in 0..16 {
                stream.write_all(&piece).unwrap();
                stream.read_exact(&mut piece.clone()).unwrap();
            }
            stream
        })
        .collect();
    lab.enclave.run("dig", &["web.lab.example"]).ok();
    // The parent's own address is closed.
    let refused = connect(&lab.enclave, Family::V4.at(address::PARENT, 9), 5);
    assert!(refused.is_err());

    let live = newest_when(&lab, "all flows are open", |e| {
        e["figures"]["flows"] == FLOWS
    });
    let figures = &live["figures"];
    assert_eq!(figures["late"], false);
    assert!(figures["age_ms"].as_u64().unwrap() < 10_000, "{figures}");
    assert_eq!(figures["flows_opened"], FLOWS);
    assert_eq!(
        (&figures["dns_asked"], &figures["dns_queries"]),
        (&json!(1), &json!(0))
    );
    for direction in ["from_enclave", "to_enclave"] {
        let bytes = figures[direction]["bytes"].as_u64().unwrap();
        let payload = (FLOWS * MIB) as u64;
        assert!(
            (payload..2 * payload).contains(&bytes),
            "{direction}: {bytes}"
        );
        assert!(figures[direction]["packets"].as_u64().unwrap() > FLOWS as u64);
    }
    assert_eq!(figures["drops"], json!({"denied_own_address": 1}));

    drop(streams);
    newest_when(&lab, "no flow is open", |e| e["figures"]["flows"] == 0);
    daemons.enclave.terminate();
    let past = newest_when(&lab, "it is gone", |e| e["connected"] == false);
    assert_eq!(past["session"], live["session"]);
    assert!(
        past["gone"]["why"].as_str().unwrap().contains("Shutdown"),
        "{past}"
    );
    assert_eq!(past["figures"]["flows_opened"], FLOWS);
    // The same as host-netd's own log tells at the session's end.
    let log = daemons.host.log();
    let ended = log
        .lines()
        .find(|line| line.contains("session ended"))
        .unwrap();
    for (name, direction, what) in [
        ("bytes_from_enclave", "from_enclave", "bytes"),
        ("bytes_to_enclave", "to_enclave", "bytes"),
        ("packets_from_enclave", "from_enclave", "packets"),
        ("packets_to_enclave", "to_enclave", "packets"),
    ] {
        let figure = &past["figures"][direction][what];
        assert!(
            ended.contains(&format!(" {name}={figure} ")),
            "{name}: {figure}\n{ended}"
        );
    }
    assert!(
        log.contains("seccomp=\"on\"") && log.contains("landlock=ABI"),
        "{log}"
    );

    let mut next = lab.start_enclave("");
    let both = enclaves(&lab);
    let connected: Vec<_> = both.iter().map(|e| e["connected"] == true).collect();
    assert_eq!(connected, [true, false]);
    let table = ask(&lab, &["status"]).ok();
    let words: Vec<Vec<_>> = (table.lines().take(2))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(words[0][..3], ["CID", "STATE", "UPTIME"]);
    assert_eq!(words[1][..2], ["unix", "connected"]);
    assert!(table.contains("drops: denied_own_address=1"), "{table}");
    next.terminate();
}

#[test]
fn a_log_is_kept_in_order_without_what_came_twice_or_could_harm() {
    let lab = Lab::new();
    let mut host = host(&lab);
    let mut rogue = Rogue::connect(&lab.link(), 1);
    rogue.say(Source::Netd, 0, b"ready");
    rogue.say(Source::Stdout, 1, b"marker-of-the-program");
    rogue.say(Source::Stderr, 2, b"\x1b[2Jred\r\nforged\x07 \xc2\x9b \xff");
    newest_when(&lab, "three lines", |e| e["log"]["next"] == 3);
    drop(rogue);
    newest_when(&lab, "its link is lost", |e| e["connected"] == false);

    // Everything again on a new link, and more; 5 and 6 were lost in the enclave.
    let mut rogue = Rogue::connect(&lab.link(), 1);
    rogue.say(Source::Netd, 0, b"another text for a number that was there");
    rogue.say(Source::Stdout, 2, b"the same");
    for number in [3, 4, 7] {
        rogue.say(Source::Stdout, number, format!("line {number}").as_bytes());
    }
    let told = newest_when(&lab, "all lines", |e| e["log"]["next"] == 8);

    assert_eq!(told["link"]["count"], 2);
    assert_eq!(told["log"]["lost"], 2);
    assert_eq!(told["log"]["last"]["text"], "line 7");
    let text = ask(&lab, &["logs", "unix"]).ok();
    let expected = [
        "netd   ready",
        "stdout marker-of-the-program",
        "stderr \u{fffd}[2Jred\u{fffd}\u{fffd}forged\u{fffd} \u{fffd} \u{fffd}",
        "stdout line 3",
        "stdout line 4",
        "--     2 lines are missing here",
        "stdout line 7",
    ];
    assert_eq!(shown(&text), expected);
    let table = ask(&lab, &["status"]).ok();
    for text in [&text, &table] {
        assert!(
            !text.contains(|c: char| c.is_control() && c != '\n'),
            "{text:?}"
        );
    }
    // Of another run nothing is known by this name, and this one's is known by its session.
    let session = told["session"].as_str().unwrap();
    let again = ask(&lab, &["logs", "unix", "--session", session]).ok();
    assert_eq!(shown(&again), expected);
    // What an enclave writes is not for host-netd's log.
    host.signal(Signal::SIGUSR1);
    host.wait_log(": counters", 5);
    assert!(!host.log().contains("marker-of"), "{}", host.log());
}

#[test]
fn reports_that_were_not_agreed_on_or_are_malformed_end_their_link() {
    let lab = Lab::new();
    let mut host = host(&lab);
    let without = Features(Features::ALL.0 & !Features::LOG.0);
    let (mut rogue, _) = Rogue::greet_with(&lab.link(), 1, without);
    rogue.say(Source::Stdout, 0, b"x");
    assert!(rogue.is_dismissed(10));
    host.wait_log_times("(Protocol)", 1, 5);

    for (n, wrong) in [
        netd_tests::framed(netd_proto::frame::Kind::Log, &[0; 8]),
        netd_tests::framed(netd_proto::frame::Kind::Log, &[3; 12]),
        netd_tests::framed(netd_proto::frame::Kind::Exit, &[0, 1, 2]),
    ]
    .into_iter()
    .enumerate()
    {
        let mut rogue = Rogue::connect(&lab.link(), 2);
        rogue.send(&wrong);
        assert!(rogue.is_dismissed(10));
        host.wait_log_times("(Protocol)", n + 2, 5);
    }
    // It serves on.
    let mut rogue = Rogue::connect(&lab.link(), 3);
    rogue.say(Source::Stdout, 0, b"x");
    newest_when(&lab, "a line", |e| e["log"]["next"] == 1);
}

#[test]
fn a_log_is_followed_to_the_enclaves_end() {
    let lab = Lab::new();
    let _host = host(&lab);
    let mut rogue = Rogue::connect(&lab.link(), 1);
    rogue.say(Source::Netd, 0, b"before");
    newest_when(&lab, "a line", |e| e["log"]["next"] == 1);

    let mut follower = asking(&lab, &["logs", "unix", "--follow"]);
    follower.wait_log("netd   before", 10);
    rogue.say(Source::Stdout, 1, b"while it is followed");
    follower.wait_log("stdout while it is followed", 10);
    // A link that is lost is not the end.
    drop(rogue);
    newest_when(&lab, "its link is lost", |e| e["connected"] == false);
    let mut rogue = Rogue::connect(&lab.link(), 1);
    rogue.say(Source::Stderr, 2, b"on another link");
    follower.wait_log("stderr on another link", 10);

    rogue.say(Source::Stdout, 3, b"bye");
    rogue.tell_exit(Exit::Status(7));
    rogue.goodbye();

    assert!(follower.wait(10).success());
    let lines = shown(&follower.log());
    let last = &lines[lines.len() - 2..];
    assert_eq!(
        last,
        ["stdout bye", "--     the enclave has ended: exit status 7"]
    );

    // Another run; the newest is meant.
    let mut second = Rogue::connect(&lab.link(), 2);
    second.say(Source::Stdout, 0, b"of the second run");
    let text = until(10, "the second run's line", || {
        let text = ask(&lab, &["logs", "unix"]).ok();
        (!text.is_empty()).then_some(text)
    });
    assert_eq!(shown(&text), ["stdout of the second run"]);
}

#[test]
fn wait_ends_as_the_program_did() {
    let lab = Lab::new();
    let _host = host(&lab);
    for (session, exit, status) in [
        (1, Exit::Status(7), 7),
        (2, Exit::Status(0), 0),
        (3, Exit::Signal(15), 143),
        (4, Exit::NotStarted(2), 127),
        (5, Exit::NotStarted(13), 126),
    ] {
        let mut rogue = Rogue::connect(&lab.link(), session);
        newest_when(&lab, "it is there", |e| e["connected"] == true);
        let mut waiting = asking(&lab, &["wait", "unix"]);
        assert_eq!(waiting.ended_within(0), None);
        rogue.tell_exit(exit);
        assert_eq!(waiting.wait(10).code(), Some(status), "{exit:?}");
        // What is told later, or asked later, changes nothing.
        rogue.tell_exit(Exit::Status(99));
        rogue.goodbye();
        let gone = newest_when(&lab, "it is gone", |e| e["connected"] == false);
        assert_eq!(gone["exit"]["status"], status);
        assert_eq!(ask(&lab, &["wait", "unix"]).code(), status);
    }
}

#[test]
fn an_enclave_that_vanished_is_told_apart_from_one_whose_program_ended() {
    let lab = Lab::new();
    let _host = host(&lab);
    let rogue = Rogue::connect(&lab.link(), 1);
    newest_when(&lab, "it is there", |e| e["connected"] == true);
    let mut waiting = asking(&lab, &["wait", "unix"]);
    let mut following = asking(&lab, &["logs", "unix", "--follow"]);
    drop(rogue);

    assert_eq!(waiting.wait(20).code(), Some(1));
    let message = waiting.log();
    assert!(message.contains("went without telling"), "{message}");
    assert!(message.contains("the enclave closed the link"), "{message}");
    assert!(following.wait(20).success());
    assert!(following.log().contains("has ended"), "{}", following.log());

    // host-netd's own end is not the enclave's.
    let _rogue = Rogue::connect(&lab.link(), 2);
    newest_when(&lab, "it is there", |e| e["connected"] == true);
    let mut waiting = asking(&lab, &["wait", "unix"]);
    drop(_host);
    assert_eq!(waiting.wait(20).code(), Some(1));
    assert!(waiting.log().contains("host-netd"), "{}", waiting.log());
}

#[test]
fn a_flood_of_lines_costs_the_enclave_that_writes_them() {
    const LINES: u64 = 100_000;
    let lab = Lab::new();
    let daemons = up(&lab);
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let pattern = Pattern::new(1);
    let works = || {
        let stream = connect(&lab.enclave, echo, 20).unwrap();
        echo_compared(&stream, &pattern, &pattern, MIB).unwrap();
    };
    works();

    let mut rogue = Rogue::connect(&lab.link(), 9);
    newest_when(&lab, "it is there", |e| e["connected"] == true);
    let mut follower = Client::new(&lab);
    follower.send("{\"command\":\"logs\",\"cid\":\"unix\",\"follow\":true}\n");
    let begin = Instant::now();
    let flood = std::thread::spawn(move || {
        let text = [b'x'; 200];
        for numbers in (0..LINES).collect::<Vec<_>>().chunks(500) {
            let frames: Vec<_> = (numbers.iter())
                .map(|number| log_frame(Source::Stdout, *number, &text))
                .collect();
            rogue.send(&frames.concat());
        }
        rogue.tell_exit(Exit::Status(0));
        (rogue, begin.elapsed())
    });
    let mut echoes = 0;
    while !flood.is_finished() || echoes < 4 {
        works();
        echoes += 1;
    }
    let (mut rogue, took) = flood.join().unwrap();
    eprintln!("{LINES} lines in {took:.1?}, beside {echoes} echoes of a MiB");
    let told = newest_when(&lab, "all lines came", |e| e["log"]["next"] == LINES);
    assert_eq!(told["log"]["lost"], 0);
    rogue.goodbye();

    // The follower has each line, or its absence told.
    let (mut lines, mut lost) = (0, 0);
    let end = loop {
        let answer = follower.next().expect("an end");
        if let Some(count) = answer["lost"].as_u64() {
            lost += count;
        } else if let Some(line) = answer.get("line") {
            assert_eq!(line["number"], lines + lost, "in order");
            lines += 1;
        } else {
            break answer;
        }
    };
    eprintln!("followed: {lines} lines, {lost} lost");
    assert_eq!(lines + lost, LINES);
    assert_eq!(end, json!({"end": {"next": LINES, "why": "exit status 0"}}));
    let log = daemons.host.log();
    assert!(!log.contains("xxxx") && log.lines().count() < 40, "{log}");
}

#[test]
fn a_client_that_does_not_read_loses_lines_and_nobody_else_anything() {
    let lab = Lab::new();
    let _host = host(&lab);
    let mut rogue = Rogue::connect(&lab.link(), 1);
    newest_when(&lab, "it is there", |e| e["connected"] == true);
    let mut sleeper = Client::new(&lab);
    sleeper.send("{\"command\":\"logs\",\"cid\":\"unix\",\"follow\":true}\n");
    // Ten times as much as the log and the socket hold.
    for number in 0..20_000 {
        rogue.say(Source::Stdout, number, &[b'y'; 1000]);
    }
    newest_when(&lab, "all lines came", |e| e["log"]["next"] == 20_000);
    let text = ask(&lab, &["logs", "unix"]).ok();
    assert!(text.lines().count() > 300, "{}", text.lines().count());
    assert!(text.len() < MIB, "{}", text.len());

    rogue.say(Source::Stdout, 20_000, b"the last");
    let (mut due, mut lost) = (0, 0);
    while due <= 20_000 {
        let answer = sleeper.next().expect("an answer");
        if let Some(count) = answer["lost"].as_u64() {
            lost += count;
            due += count;
        } else {
            assert_eq!(answer["line"]["number"], due);
            due += 1;
        }
    }
    assert!(lost > 10_000, "{lost}");
}

#[test]
fn only_root_and_its_own_user_are_answered() {
    let lab = Lab::new();
    let _host = host(&lab);
    let path = socket(&lab);
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let binary = lab.binary("host-netd");
    let status = ["status", "--admin", path.to_str().unwrap()];
    lab.parent.run_as_nobody(&binary, &status).ok();
    lab.parent.run(&binary, &status).ok();
    let as_daemon = |status: &[&str]| {
        let user = ["--reuid", "1", "--regid", "1", "--clear-groups", "--"];
        lab.parent
            .run("setpriv", &[&user[..], &[&*binary], status].concat())
    };

    let refused = as_daemon(&status);
    assert_eq!(refused.code(), 1);
    assert!(refused.stderr.contains("closed to this user"), "{refused}");

    // Also where somebody has opened it to all.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = as_daemon(&status);
    assert_eq!(refused.code(), 1);
    assert!(
        refused.stderr.contains("user 1 is not permitted"),
        "{refused}"
    );
}

#[test]
fn requests_that_are_none_are_told_why_and_harm_nobody() {
    let lab = Lab::new();
    let _host = host(&lab);
    let long = format!(
        "{{\"command\":\"status\",\"x\":\"{}\"}}\n",
        "x".repeat(1024)
    );
    for (request, what) in [
        ("status\n", "that is no request"),
        ("{}\n", "command"),
        ("{\"command\":\"stop\"}\n", "`status`, `logs`, `wait`"),
        ("{\"command\":\"logs\"}\n", "cid"),
        ("{\"command\":\"logs\",\"cid\":99}\n", "no enclave 99"),
        ("{\"command\":\"wait\",\"cid\":{}}\n", "that is no request"),
        ("\u{0}\u{1}\n", "that is no request"),
        (&long, "longer than 1024 bytes"),
    ] {
        let mut client = Client::new(&lab);
        client.send(request);
        let error = client.error();
        assert!(error.contains(what), "{request}: {error}");
    }
    // Without an end, or without a sense: not more than a request is ever read.
    let mut endless = Client::new(&lab);
    for _ in 0..100 {
        endless.send(&"x".repeat(MIB / 10));
    }
    assert!(endless.error().contains("longer than"));
    assert_eq!(endless.next(), None);
    // Two at once, keys of a later release, and no end of line.
    let mut client = Client::new(&lab);
    client.send("{\"command\":\"status\",\"colour\":\"red\"}\n\n{\"command\":\"status\"}");
    client
        .0
        .get_mut()
        .shutdown(std::net::Shutdown::Write)
        .unwrap();
    for _ in 0..2 {
        let status = client.next().expect("an answer");
        assert_eq!(status["status"]["enclaves"], json!([]));
    }
    assert_eq!(client.next(), None);
    let table = ask(&lab, &["status"]).ok();
    assert_eq!(table, "no enclave has connected yet\n");
}

#[test]
fn a_hundred_clients_leave_the_daemon_as_it_was() {
    let lab = Lab::new();
    let mut daemons = up(&lab);
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let files = || {
        fs::read_dir(format!("/proc/{}/fd", daemons.host.pid()))
            .unwrap()
            .count()
    };
    let works = || {
        let pattern = Pattern::new(1);
        let stream = connect(&lab.enclave, echo, 5).unwrap();
        echo_compared(&stream, &pattern, &pattern, MIB).unwrap();
    };
    works();
    newest_when(&lab, "no flow is open", |e| e["figures"]["flows"] == 0);
    let before = files();
    let mut clients: Vec<_> = (0..100)
        .map(|_| {
            let mut client = Client::new(&lab);
            client.send("{\"command\":\"wait\",\"cid\":\"unix\"}\n");
            client
        })
        .collect();
    for error in (clients.iter_mut().skip(16)).map(Client::error) {
        assert!(error.contains("16 clients are connected"), "{error}");
    }
    until(10, "the others' files are closed", || {
        (files() <= before + 16).then_some(())
    });
    works();

    drop(clients);
    until(20, "there is a place again, and no file is left", || {
        let answered = ask(&lab, &["status"]).status.success();
        (answered && files() <= before).then_some(())
    });
    // One that asks for nothing gives its place up.
    let mut silent: Vec<_> = (0..16).map(|_| Client::new(&lab)).collect();
    until(30, "the silent have lost their places", || {
        ask(&lab, &["status"]).status.success().then_some(())
    });
    assert!(silent.iter_mut().any(|client| client.next().is_none()));
    assert!(daemons.host.ended().is_none());
}

#[test]
fn a_socket_that_a_killed_host_netd_left_is_replaced() {
    let lab = Lab::new();
    let mut first = host(&lab);
    first.kill();
    assert!(socket(&lab).exists());
    let left = ask(&lab, &["status"]);
    assert_eq!(left.code(), 1);
    assert!(left.stderr.contains("has ended"), "{left}");

    let mut second = host(&lab);
    ask(&lab, &["status"]).ok();
    // Not one that is in use.
    let elsewhere = format!("unix:{}", lab.link().with_file_name("other.sock").display());
    let socket = socket(&lab);
    let arguments = ["--listen", &elsewhere, "--admin", socket.to_str().unwrap()];
    let third = lab
        .parent
        .run_as_nobody(&lab.binary("host-netd"), &arguments);
    assert_eq!(third.code(), 1);
    assert!(
        third.stderr.contains("another process listens there"),
        "{third}"
    );
    assert!(third.stderr.contains("'admin'"), "{third}");
    ask(&lab, &["status"]).ok();

    assert!(second.terminate().success());
    assert!(!socket.exists(), "it is left behind");
    let absent = ask(&lab, &["status"]);
    assert_eq!(absent.code(), 1);
    assert!(
        absent.stderr.contains("there is no admin socket at"),
        "{absent}"
    );
}

#[test]
fn without_a_folder_there_is_no_socket_and_with_systemds_there_is_one() {
    let lab = Lab::new();
    let folder = lab.link().with_file_name("run");
    let begin = |folder: &Path| {
        let (binary, link) = (lab.binary("host-netd"), lab.link_address());
        let line = format!(
            "RUNTIME_DIRECTORY={} exec {binary} --listen {link}",
            folder.display()
        );
        let mut host = lab.parent.spawn_as_nobody("bash", &["-c", &line]);
        host.wait_log("listening", 20);
        host
    };
    let mut without = begin(&folder);
    assert!(
        without.log().contains("no admin socket"),
        "{}",
        without.log()
    );
    without.terminate();

    fs::create_dir(&folder).unwrap();
    let mut closed = begin(&folder);
    assert!(
        closed.log().contains("must be writable"),
        "{}",
        closed.log()
    );
    closed.terminate();

    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let _host = begin(&folder);
    let at = folder.join("admin.sock");
    let status = ["status", "--admin", at.to_str().unwrap()];
    lab.parent.run(&lab.binary("host-netd"), &status).ok();
}

#[test]
fn an_unknown_enclave_is_answered_with_those_that_are_known() {
    let lab = Lab::new();
    let _host = host(&lab);
    let none = ask(&lab, &["logs", "16"]);
    assert_eq!(none.code(), 1);
    assert!(none.stderr.contains("none has connected yet"), "{none}");
    let _rogue = Rogue::connect(&lab.link(), 1);
    newest_when(&lab, "it is there", |e| e["connected"] == true);
    for question in ["logs", "wait"] {
        let unknown = ask(&lab, &[question, "16"]);
        assert_eq!(unknown.code(), 1);
        let known = "no enclave 16 here; known: unix (session 01010101)";
        assert!(unknown.stderr.contains(known), "{unknown}");
    }
    let other = ask(&lab, &["logs", "unix", "--session", "02"]);
    assert!(other.stderr.contains("with a session 02"), "{other}");
    let wrong = ask(&lab, &["logs", "sixteen"]);
    assert!(wrong.stderr.contains("write its CID"), "{wrong}");
}

/// A session's thread that stands still: its figures are old, and the rest is told in time.
#[test]
fn a_thread_that_stands_still_holds_up_no_answer() {
    let lab = Lab::new();
    let daemons = up(&lab);
    newest_when(&lab, "it is there", |e| e["figures"]["late"] == false);
    let task = format!("/proc/{}/task", daemons.host.pid());
    let session = fs::read_dir(&task).unwrap().flatten().find_map(|entry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let thread = entry.file_name().to_str()?.parse().ok()?;
        name.starts_with("session").then_some(Pid::from_raw(thread))
    });
    let session = session.expect("a session");
    ptrace::attach(session).unwrap();
    waitpid(session, Some(WaitPidFlag::__WALL)).unwrap();

    let begin = Instant::now();
    let told = enclaves(&lab).remove(0);
    let took = begin.elapsed();
    let table = ask(&lab, &["status"]).ok();
    ptrace::detach(session, None).unwrap();

    assert_eq!(told["figures"]["late"], true);
    assert_eq!(told["connected"], true);
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(table.contains("does not answer"), "{table}");
    newest_when(&lab, "it answers again", |e| e["figures"]["late"] == false);
}

/// An enclave that does not read its link still has figures.
#[test]
fn a_full_link_holds_up_no_figures() {
    let lab = Lab::new();
    let _host = host(&lab);
    let mut rogue = Rogue::connect(&lab.link(), 1);
    // The answers are never read. The gateway answers each.
    let ping = netd_tests::frame(&Packets::ping(1, address::GATEWAY[0], &[0; 1000]));
    let sent = 2000;
    for _ in 0..sent {
        rogue.send(&ping);
    }
    let told = newest_when(&lab, "all pings were seen", |e| {
        e["figures"]["from_enclave"]["packets"] == sent
    });
    assert_eq!(told["figures"]["late"], false);
    assert!(
        told["figures"]["drops"]["link_full"].as_u64().unwrap() > 0,
        "{told}"
    );
}

/// An enclave as it is, with host-netd as it is: also a new host-netd has the whole log.
#[test]
fn an_enclaves_program_is_seen_from_its_first_line_to_its_end() {
    let lab = Lab::new();
    let open_host = || {
        let host = host(&lab);
        // What connects in the enclave is neither root nor nobody.
        fs::set_permissions(lab.link(), fs::Permissions::from_mode(0o777)).unwrap();
        host
    };
    let mut first = open_host();
    let go = lab.dir().join("go");
    let program = format!(
        "echo begun; until test -e {}; do sleep 0.05; done; echo over >&2; exit 7",
        go.display()
    );
    let config = lab.config(&format!(
        "parent = '{}'\n[program]\ncommand = ['sh', '-c', '''{program}''']\n",
        lab.link_address()
    ));
    let mut init = lab
        .enclave
        .spawn(&lab.binary("enclave-netd"), &["init", "--config", &config]);
    let lines_until = |text: &str| {
        until(20, text, || {
            let lines = shown(&ask(&lab, &["logs", "unix"]).ok());
            lines.iter().any(|line| line == text).then_some(lines)
        })
    };
    let before = newest_when(&lab, "it is there", |e| e["connected"] == true);
    let lines = lines_until("stdout begun");
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("netd ") && l.contains("program started"))
    );

    first.kill();
    let _second = open_host();
    let after = newest_when(&lab, "it is there again", |e| e["connected"] == true);
    assert_eq!(after["session"], before["session"]);
    let again = lines_until("stdout begun");
    assert!(again.starts_with(&lines), "{again:?} and not {lines:?}");

    let mut waiting = asking(&lab, &["wait", "unix"]);
    let mut following = asking(&lab, &["logs", "unix", "--follow"]);
    fs::write(&go, "").unwrap();
    assert_eq!(waiting.wait(20).code(), Some(7), "{}", waiting.log());
    assert_eq!(init.wait(20).code(), Some(7), "{}", init.log());
    assert!(following.wait(20).success());
    let followed = shown(&following.log());
    assert!(
        followed.iter().any(|line| line == "stderr over"),
        "{followed:?}"
    );
    assert!(
        !followed.iter().any(|line| line.contains("missing")),
        "{followed:?}"
    );
    let last = followed.last().unwrap();
    assert_eq!(last, "--     the enclave has ended: exit status 7");
    let gone = newest_when(&lab, "it is gone", |e| e["connected"] == false);
    assert_eq!(gone["exit"]["status"], 7);
}

#[test]
fn an_enclave_with_a_table_is_known_by_its_cid_and_its_next_run_ends_the_one_before() {
    let lab = Lab::new();
    let own = lab.link().with_file_name("16.sock");
    let config = lab.config(&format!(
        "admin = '{}'\n[[enclave]]\ncid = 16\nlisten = 'unix:{}'\n",
        socket(&lab).display(),
        own.display()
    ));
    let mut host = lab.start_host(&["--config", &config]);
    host.wait_log("listening for one enclave", 10);
    let mut first = Rogue::connect(&own, 1);
    first.say(Source::Stdout, 0, b"of the first run");
    let told = newest_when(&lab, "a line", |e| e["log"]["next"] == 1);
    assert_eq!(told["cid"], 16);
    let mut waiting = asking(&lab, &["wait", "16"]);
    let mut following = asking(&lab, &["logs", "16", "--follow"]);
    following.wait_log("of the first run", 10);

    let mut second = Rogue::connect(&own, 2);
    second.say(Source::Stdout, 0, b"of the second run");

    assert_eq!(waiting.wait(20).code(), Some(1));
    assert!(waiting.log().contains("took over"), "{}", waiting.log());
    assert!(following.wait(20).success());
    newest_when(&lab, "a line", |e| e["log"]["next"] == 1);
    let logs = |arguments: &[&str]| shown(&ask(&lab, arguments).ok());
    assert_eq!(logs(&["logs", "16"]), ["stdout of the second run"]);
    let former = ["logs", "16", "--session", "01010101"];
    assert_eq!(logs(&former), ["stdout of the first run"]);
    let states: Vec<_> = (enclaves(&lab).iter())
        .map(|e| (e["session"].clone(), e["connected"].clone()))
        .collect();
    let expected = [
        (json!("02020202"), json!(true)),
        (json!("01010101"), json!(false)),
    ];
    assert_eq!(states, expected);
}
