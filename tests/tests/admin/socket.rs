//! The socket itself: who is answered, what is refused, and what it costs.

use crate::{Client, MIB, ask, host, newest_when, socket, up};
use netd_tests::{
    Family, Lab, Pattern, Rogue, address, connect, echo_compared, echo_server, until,
};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

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
