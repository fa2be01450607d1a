//! How the end of an enclave, and of its program, is told.

use crate::{ask, asking, host, newest_when, shown};
use netd_proto::report::Exit;
use netd_tests::{Lab, Rogue, until};
use std::fs;
use std::os::unix::fs::PermissionsExt;

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
