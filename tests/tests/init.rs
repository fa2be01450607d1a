//! `enclave-netd init`: what the program is given, and what the parent is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_proto::handshake::Features;
use netd_proto::report::{Exit, Source};
use netd_tests::{FakeHost, Lab, Process, until};
use nix::sys::signal::Signal;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

fn configure(lab: &Lab, config: &str) -> String {
    lab.config(&format!("parent = '{}'\n{config}", lab.link_address()))
}

/// Starts init with a program's configuration, towards the lab's link.
fn spawn(lab: &Lab, config: &str) -> Process {
    let config = configure(lab, config);
    let binary = lab.binary("enclave-netd");
    lab.enclave.spawn(&binary, &["init", "--config", &config])
}

/// The same, for a line of shell.
fn spawn_shell(lab: &Lab, line: &str) -> Process {
    spawn(
        lab,
        &format!("[program]\ncommand = ['sh', '-c', '''{line}''']\n"),
    )
}

fn listen(lab: &Lab) -> FakeHost {
    FakeHost::listen(&lab.link(), Features::ALL)
}

#[test]
fn lines_arrive_in_order_and_then_how_the_program_ended() {
    let lab = Lab::new();
    let host = listen(&lab);
    let mut init = spawn_shell(
        &lab,
        "echo one; sleep 0.1; echo two >&2; sleep 0.1; printf three; exit 7",
    );
    assert_eq!(init.wait(20).code(), Some(7), "{}", init.log());

    let told = host.wait_exit(5);
    assert_eq!(told.texts(Source::Stdout), ["one", "three"]);
    assert_eq!(told.texts(Source::Stderr), ["two"]);
    let expected: Vec<u64> = (0..).take(told.lines.len()).collect();
    assert_eq!(told.numbers(), expected, "{told:?}");
    let netd = told.texts(Source::Netd).join("\n");
    for line in [
        "network set up",
        "link to the parent established",
        "ready",
        "program started",
        "program ended",
    ] {
        assert_eq!(netd.matches(line).count(), 1, "{line}: {netd}");
    }
    let (exit, before) = told.exit.unwrap();
    assert_eq!(exit, Exit::Status(7));
    let last = told.lines[..before]
        .iter()
        .any(|line| line.text.contains("program ended"));
    assert!(last, "the exit came too early: {told:?}");
    assert!(told.goodbye);
    // The console has it all as well.
    for line in ["one\n", "two\n", "three\n", "program ended"] {
        assert!(init.log().contains(line), "{line}: {}", init.log());
    }
}

#[test]
fn signals_and_programs_that_cannot_be_started_are_told() {
    let lab = Lab::new();
    let host = listen(&lab);
    for (table, exit, status, text) in [
        (
            "command = ['sh', '-c', 'kill -TERM $$']",
            Exit::Signal(15),
            143,
            "ended by signal 15",
        ),
        (
            "command = ['/no/such/program']",
            Exit::NotStarted(2),
            127,
            "/no/such/program",
        ),
        (
            "command = ['/etc/passwd']",
            Exit::NotStarted(13),
            126,
            "may its user execute it",
        ),
        (
            "command = ['true']\nuser = 'no-such-user'",
            Exit::NotStarted(22),
            126,
            "no-such-user",
        ),
        (
            "command = ['true']\nuser = 64733",
            Exit::NotStarted(22),
            126,
            "the carrier's own",
        ),
        (
            "command = ['true']\ndirectory = '/no/such'",
            Exit::NotStarted(2),
            127,
            "program.directory",
        ),
    ] {
        let mut init = spawn(&lab, &format!("[program]\n{table}"));
        assert_eq!(
            init.wait(20).code(),
            Some(status),
            "{table}: {}",
            init.log()
        );
        let told = host.wait_exit(5);
        assert_eq!(told.exit.map(|(exit, _)| exit), Some(exit), "{table}");
        let netd = told.texts(Source::Netd).join("\n");
        assert!(netd.contains(text), "{table}: {netd}");
    }
}

#[test]
fn the_program_has_its_user_folder_and_environment_and_nothing_else() {
    let lab = Lab::new();
    let host = listen(&lab);
    let look = r#"
import os, signal
print("ids", os.getresuid(), os.getresgid(), sorted(os.getgroups()))
print("cwd", os.getcwd())
print("env", sorted(os.environ.items()))
print("fds", sorted(os.listdir("/proc/self/fd"))[:-1], os.readlink("/proc/self/fd/0"))
print("session", os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid())
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print("caps", status["CapEff"].strip(), status["CapPrm"].strip())
print("masks", status["SigBlk"].strip(), hex(int(status["SigIgn"], 16) & 0x7fffffff))
"#;
    let config = format!(
        "[program]\ncommand = ['/usr/bin/python3', '-I', '-c', '''{look}''']\nuser = 'www-data'\n\
         directory = '/usr/share'\nenvironment = {{ PORT = '443', HOME = '/over/there' }}\n"
    );
    // What whoever starts init has open is not the program's.
    let config = configure(&lab, &config);
    let line = format!(
        "exec {} init --config {config} 7</dev/null",
        lab.binary("enclave-netd")
    );
    let mut init = lab.enclave.spawn("bash", &["-c", &line]);
    assert_eq!(init.wait(20).code(), Some(0), "{}", init.log());

    let told = host.wait_exit(5);
    let seen = told.texts(Source::Stdout);
    let expected = [
        "ids (33, 33, 33) (33, 33, 33) [33]",
        "cwd /usr/share",
        "env [('HOME', '/over/there'), ('LC_CTYPE', 'C.UTF-8'), ('PATH', \
         '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'), ('PORT', '443')]",
        "fds ['0', '1', '2'] /dev/null",
        "session True True",
        "caps 0000000000000000 0000000000000000",
        // Python itself ignores SIGPIPE and SIGXFSZ.
        "masks 0000000000000000 0x1001000",
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_program_of_root_is_root() {
    let lab = Lab::new();
    let host = listen(&lab);
    let mut init = spawn_shell(
        &lab,
        "id -u; id -G; grep CapEff /proc/self/status; grep CapBnd /proc/self/status; echo $HOME",
    );
    assert_eq!(init.wait(20).code(), Some(0), "{}", init.log());
    let told = host.wait_exit(5);
    let seen = told.texts(Source::Stdout);
    assert_eq!((seen[0], seen[1], seen[4]), ("0", "0", "/root"));
    let mask = |line: &str| line.split_whitespace().last().unwrap().to_owned();
    assert_eq!(mask(seen[2]), mask(seen[3]), "not all of what there is");
}

#[test]
fn what_is_not_to_be_seen_is_not() {
    let lab = Lab::new();
    let host = listen(&lab);
    let program = "[program]\ncommand = ['sh', '-c', 'echo from the program; exit 3']\n";
    let mut init = spawn(&lab, &format!("{program}[log]\nconsole = false\n"));
    assert_eq!(init.wait(20).code(), Some(3), "{}", init.log());
    assert!(!init.log().contains("from the program"), "{}", init.log());
    assert!(init.log().contains("program ended"), "{}", init.log());
    assert_eq!(
        host.wait_exit(5).texts(Source::Stdout),
        ["from the program"]
    );

    let mut init = spawn(&lab, &format!("{program}[log]\nforward = false\n"));
    assert_eq!(init.wait(20).code(), Some(3), "{}", init.log());
    assert!(init.log().contains("from the program"), "{}", init.log());
    let told = host.wait_exit(5);
    assert_eq!(told.lines, []);
    assert_eq!(told.exit, Some((Exit::Status(3), 0)));
}

#[test]
fn a_parent_that_takes_no_log_is_sent_none() {
    let lab = Lab::new();
    let old = Features::CHECKSUM.or(Features::TSO4).or(Features::TSO6);
    let host = FakeHost::listen(&lab.link(), old);
    let mut init = spawn_shell(&lab, "echo one; exit 7");
    assert_eq!(init.wait(20).code(), Some(7), "{}", init.log());
    let told = host.links().pop().unwrap();
    assert!(
        told.goodbye && told.lines.is_empty() && told.exit.is_none(),
        "{told:?}"
    );
    assert!(told.hello.features.contains(Features::LOG));
}

#[test]
fn a_parent_that_comes_again_is_sent_all_lines_again() {
    let lab = Lab::new();
    let host = listen(&lab);
    let mut init = spawn_shell(
        &lab,
        "for i in $(seq 20); do echo line $i; done; sleep 1000",
    );
    let first = host.wait_line("line 20", 20);
    host.cut();
    let again = until(20, "the lines come again", || {
        let links = host.links();
        let last = links.last().unwrap();
        (links.len() == 2 && last.texts(Source::Stdout).len() == 20).then(|| last.clone())
    });
    assert_eq!(again.hello.session, first.hello.session);
    assert_eq!(again.lines[..first.lines.len()], first.lines);
    let expected: Vec<u64> = (0..).take(again.lines.len()).collect();
    assert_eq!(again.numbers(), expected);

    // A restarted daemon is another process, and this enclave's session goes on.
    drop(host);
    let host = listen(&lab);
    let told = host.wait_line("line 20", 20);
    assert_eq!(told.lines[..first.lines.len()], first.lines);
    assert_eq!(told.hello.session, first.hello.session);
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(15).code(), Some(143), "{}", init.log());
    assert_eq!(
        host.wait_exit(5).exit.map(|(exit, _)| exit),
        Some(Exit::Signal(15))
    );
}

#[test]
fn sigterm_stops_the_program_in_good_order() {
    let lab = Lab::new();
    let host = listen(&lab);
    let mut init = spawn_shell(
        &lab,
        "trap 'echo stopping; exit 5' TERM; echo begun; while :; do sleep 0.05; done",
    );
    host.wait_line("begun", 20);
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(15).code(), Some(5), "{}", init.log());
    let told = host.wait_exit(5);
    assert_eq!(told.texts(Source::Stdout), ["begun", "stopping"]);
    assert_eq!(told.exit.unwrap().0, Exit::Status(5));
    assert!(!lab.enclave.proc_net("dev").contains("netd0"));
    assert!(
        lab.enclave.resolv_conf().contains("127.0.0.53"),
        "resolv.conf is not put back"
    );
}

#[test]
fn a_program_that_does_not_stop_is_ended_by_force() {
    let lab = Lab::new();
    let host = listen(&lab);
    let mut init = spawn_shell(
        &lab,
        "trap '' TERM; echo begun; while :; do sleep 0.05; done",
    );
    host.wait_line("begun", 20);
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(40).code(), Some(137), "{}", init.log());
    assert_eq!(host.wait_exit(5).exit.unwrap().0, Exit::Signal(9));
}

#[test]
fn other_signals_are_sent_on() {
    let lab = Lab::new();
    let host = listen(&lab);
    for (signal, name) in [(Signal::SIGHUP, "HUP"), (Signal::SIGUSR2, "USR2")] {
        let line = format!("trap 'exit 9' {name}; echo begun {name}; while :; do sleep 0.05; done");
        let mut init = spawn_shell(&lab, &line);
        host.wait_line(&format!("begun {name}"), 20);
        init.signal(signal);
        assert_eq!(init.wait(15).code(), Some(9), "{name}: {}", init.log());
    }
}

#[test]
fn without_a_parent_it_ends_when_told_so() {
    let lab = Lab::new();
    let mut init = spawn_shell(&lab, "true");
    init.wait_log("no link to the parent", 20);
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(10).code(), Some(143), "{}", init.log());
}

#[test]
fn what_is_wrong_is_said_at_once() {
    let lab = Lab::new();
    let mut init = spawn(&lab, "");
    assert_eq!(init.wait(10).code(), Some(1));
    assert!(
        init.log().contains("program.command is missing"),
        "{}",
        init.log()
    );

    let binary = lab.binary("enclave-netd");
    let done = lab.enclave.run(&binary, &["init", "--config", "/no/such"]);
    assert_eq!(done.code(), 1);
    assert!(done.stderr.contains("cannot read /no/such"), "{done}");

    let config = lab.config("[program]\ncommand = ['true']");
    let done = lab.enclave.run(&binary, &["--config", &config]);
    assert_eq!(done.code(), 2);
    assert!(done.stderr.contains("enclave-netd init"), "{done}");

    let done = lab.enclave.run(&binary, &["carrier"]);
    assert_eq!(done.code(), 1);
}

#[test]
fn host_netd_tells_the_lines_and_the_exit_status() {
    let lab = Lab::new();
    let admin = lab.link().with_file_name("admin.sock");
    let admin = admin.to_str().unwrap();
    let _host = lab.start_host(&["--admin", admin]);
    // The carrier is no user that host-netd knows.
    fs::set_permissions(lab.link(), Permissions::from_mode(0o777)).unwrap();
    let mut init = spawn_shell(&lab, "echo one; echo two >&2; exit 7");
    assert_eq!(init.wait(20).code(), Some(7), "{}", init.log());
    assert!(!init.log().contains("could not be told"), "{}", init.log());

    let host_netd = lab.binary("host-netd");
    let ask = |question: &str| {
        lab.parent
            .run(&host_netd, &[question, "unix", "--admin", admin])
    };
    let logs = ask("logs").ok();
    for line in [" stdout one\n", " stderr two\n", "program ended"] {
        assert!(logs.contains(line), "{line}: {logs}");
    }
    assert_eq!(ask("wait").code(), 7);
}
