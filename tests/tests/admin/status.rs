//! What `status` tells of each enclave.

use crate::{MIB, ask, asking, enclaves, host, newest_when, shown, socket, up};
use netd_proto::report::Source;
use netd_tests::{Family, Lab, Packets, Rogue, address, connect, echo_server};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

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
