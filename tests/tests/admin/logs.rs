//! What `logs` shows of an enclave, whatever it writes and whoever reads.

use crate::{Client, MIB, ask, asking, host, newest_when, shown, up};
use netd_proto::handshake::Features;
use netd_proto::report::{Exit, Source};
use netd_tests::{
    Family, Lab, Pattern, Rogue, address, connect, echo_compared, echo_server, log_frame, until,
};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Instant;

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
