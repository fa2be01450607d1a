//! The command: when it starts, what it inherits, which signals reach it, how its end is told.

mod common;

use common::host::Host;
use common::{Daemon, Enclave, ORIGINAL, in_enclave, run};
use nix::sys::signal::{SigSet, Signal};
use std::os::unix::net::UnixDatagram;

fn with_command(enclave: &Enclave, command: &[&str]) -> (Daemon, common::host::Link) {
    let host = Host::listen(enclave);
    let arguments: Vec<_> = ["--"].iter().chain(command).copied().collect();
    let daemon = enclave.start(&arguments);
    let link = host.accept();
    (daemon, link)
}

fn status_of(enclave: &Enclave, command: &[&str]) -> i32 {
    let (mut daemon, _link) = with_command(enclave, command);
    let status = daemon.wait();
    assert!(!enclave.has_interface("netd0"));
    assert_eq!(enclave.resolv_conf(), ORIGINAL);
    status.code().expect("never by a signal")
}

#[test]
fn its_status_is_the_daemons() {
    in_enclave(|enclave| {
        assert_eq!(status_of(&enclave, &["true"]), 0);
        assert_eq!(status_of(&enclave, &["sh", "-c", "exit 7"]), 7);
        assert_eq!(status_of(&enclave, &["sh", "-c", "exit 255"]), 255);
        assert_eq!(
            status_of(&enclave, &["sh", "-c", "kill -TERM $$"]),
            128 + 15
        );
        assert_eq!(status_of(&enclave, &["sh", "-c", "kill -KILL $$"]), 128 + 9);
    });
}

#[test]
fn one_that_cannot_run_has_the_shells_status_and_one_line() {
    in_enclave(|enclave| {
        for (command, status, words) in [
            ("no-such-program", 127, "not found"),
            ("/etc/passwd", 126, "cannot be run"),
        ] {
            let (mut daemon, _link) = with_command(&enclave, &[command]);
            assert_eq!(daemon.wait().code(), Some(status));
            let lines = daemon.lines();
            let errors: Vec<_> = lines
                .iter()
                .filter(|l| l.starts_with("enclave-netd: "))
                .collect();
            assert_eq!(errors.len(), 1, "{lines:#?}");
            assert!(
                errors[0].contains(command) && errors[0].contains(words),
                "{errors:?}"
            );
        }
    });
}

#[test]
fn it_starts_when_the_link_stands_and_not_before() {
    in_enclave(|enclave| {
        let mut daemon = enclave.start(&["--", "sh", "-c", "echo started; cat /proc/net/route"]);
        daemon.wait_for("no link to the parent");
        let host = Host::listen(&enclave);
        let _link = host.accept();
        daemon.wait_for("ready");
        daemon.wait_for("started");
        daemon.wait_for("netd0\t00000000");
        assert!(daemon.wait().success());
        let lines = daemon.lines();
        let warnings = lines.iter().filter(|l| l.contains("WARN")).count();
        assert_eq!(warnings, 1, "an outage is told once: {lines:#?}");
    });
}

#[test]
fn signals_reach_it_and_its_status_comes_back() {
    in_enclave(|enclave| {
        let signals = "TERM INT HUP QUIT USR1 USR2 WINCH";
        let script = format!(
            "for s in {signals}; do trap \"echo got $s\" $s; done; trap 'echo got CONT; exit 9' \
             CONT; echo armed; while :; do sleep 0.01; done"
        );
        let (mut daemon, _link) = with_command(&enclave, &["sh", "-c", &script]);
        daemon.wait_for("armed");
        for signal in [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGWINCH,
            Signal::SIGCONT,
        ] {
            daemon.signal(signal);
            daemon.wait_for(&format!(
                "got {}",
                signal.as_str().trim_start_matches("SIG")
            ));
        }
        assert_eq!(daemon.wait().code(), Some(9));
        assert_eq!(enclave.resolv_conf(), ORIGINAL);
    });
}

#[test]
fn a_stop_reaches_it_and_leaves_the_network_running() {
    in_enclave(|enclave| {
        let script = "echo pid $$; while :; do sleep 0.01; done";
        let (mut daemon, mut link) = with_command(&enclave, &["sh", "-c", script]);
        let line = daemon.wait_for("pid ");
        let pid = line.rsplit(' ').next().expect("a number").to_owned();
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
            stat.rsplit(") ")
                .next()
                .and_then(|s| s.chars().next())
                .expect("a state")
        };

        daemon.signal(Signal::SIGTSTP);
        common::eventually("stopped", || state() == 'T');
        link.send(netd_proto::frame::Kind::Ping, &7u64.to_be_bytes());
        assert_eq!(
            link.next(),
            (netd_proto::frame::Kind::Pong, 7u64.to_be_bytes().to_vec())
        );

        daemon.signal(Signal::SIGCONT);
        common::eventually("continued", || state() != 'T');

        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(128 + Signal::SIGTERM as i32));
    });
}

/// A line of `/proc/self/status` as a program sees it.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status
        .lines()
        .find(|l| l.starts_with(name))
        .unwrap_or_else(|| panic!("{name}: {status}"))
}

const NOTHING: &str = "0000000000000000";

/// The status files of all threads.
fn threads(daemon: &Daemon) -> Vec<String> {
    let path = format!("/proc/{}/task", daemon.pid());
    let tasks = std::fs::read_dir(path).expect("it runs").flatten();
    tasks
        .map(|task| std::fs::read_to_string(task.path().join("status")).expect("it runs"))
        .collect()
}

fn thread_status(daemon: &Daemon, name: &str) -> String {
    let line = format!("Name:\t{name}\n");
    let mut all = threads(daemon).into_iter();
    all.find(|status| status.starts_with(&line)).expect(name)
}

#[test]
fn without_a_command_no_thread_keeps_anything() {
    in_enclave(|enclave| {
        let host = Host::listen(&enclave);
        let mut daemon = enclave.start(&[]);
        let _link = host.accept();
        daemon.wait_for("ready");
        for status in threads(&daemon) {
            let thread = field(&status, "Name");
            // The link is a socket of another user here.
            let kept = if thread.ends_with("pump") || thread.ends_with("log") {
                NOTHING
            } else {
                "0000000000000002"
            };
            for (name, value) in [
                ("CapEff", kept),
                ("CapPrm", kept),
                ("CapInh", NOTHING),
                ("CapBnd", NOTHING),
                ("CapAmb", NOTHING),
                ("NoNewPrivs", "1"),
            ] {
                assert_eq!(
                    field(&status, name),
                    format!("{name}:\t{value}"),
                    "{thread}"
                );
            }
        }
    });
}

#[test]
fn it_inherits_what_it_would_have_without_the_daemon() {
    in_enclave(|enclave| {
        let without = run("cat", &["/proc/self/status"]);
        let out = enclave.path("status").display().to_string();
        let script =
            format!("cat /proc/self/status > {out}; env > {out}.env; echo written; exec sleep 60");
        let mut command = Daemon::command(&[]);
        let config = enclave.configure("").display().to_string();
        let parent = enclave.parent();
        command.args([
            "--config", &config, "--parent", &parent, "--", "sh", "-c", &script,
        ]);
        let notify = enclave.path("notify.sock");
        let notifications = UnixDatagram::bind(&notify).expect("bound");
        command.env("NOTIFY_SOCKET", &notify);
        let host = Host::listen(&enclave);

        let mut daemon = Daemon::spawn(command);
        let _link = host.accept();
        daemon.wait_for("written");

        let mut told = [0; 64];
        let n = notifications.recv(&mut told).expect("told");
        assert_eq!(&told[..n], b"READY=1\n");
        let environment = std::fs::read_to_string(format!("{out}.env")).expect("written");
        assert!(!environment.contains("NOTIFY_SOCKET"), "{environment}");

        let with = std::fs::read_to_string(&out).expect("written");
        for name in [
            "CapEff",
            "CapPrm",
            "CapInh",
            "CapBnd",
            "CapAmb",
            "NoNewPrivs",
            "SigBlk",
            "SigIgn",
        ] {
            assert_eq!(field(&with, name), field(&without, name));
        }
        assert_eq!(field(&with, "SigBlk"), "SigBlk:\t0000000000000000");

        // It sends signals, and connects to a socket of another user; the pump does neither.
        let kill_and_files = "0000000000000022";
        for (thread, kept, none_new) in [
            ("enclave-netd", kill_and_files, "0"),
            ("connector", "0000000000000002", "1"),
            ("pump", NOTHING, "1"),
            ("log", NOTHING, "1"),
        ] {
            let status = thread_status(&daemon, thread);
            for (name, value) in [
                ("CapEff", kept),
                ("CapPrm", kept),
                ("CapInh", NOTHING),
                ("CapAmb", NOTHING),
                ("NoNewPrivs", none_new),
            ] {
                let expected = format!("{name}:\t{value}");
                assert_eq!(field(&status, name), expected, "{thread}");
            }
            assert_eq!(field(&status, "CapBnd"), field(&without, "CapBnd"));
        }
        assert_eq!(threads(&daemon).len(), 4);
    });
}

#[test]
fn an_ignored_sigchld_does_not_lose_its_status() {
    in_enclave(|enclave| {
        let config = enclave.configure("").display().to_string();
        let host = Host::listen(&enclave);
        let program = env!("CARGO_BIN_EXE_enclave-netd");
        let script = "import os,signal,sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); \
                      os.execv(sys.argv[1], sys.argv[1:])";
        let mut command = std::process::Command::new("python3");
        command.args(["-c", script, program, "--config", &config, "--parent"]);
        command.args([&enclave.parent(), "--", "sh", "-c", "exit 5"]);
        let mut daemon = Daemon::spawn(command);
        let _link = host.accept();
        assert_eq!(daemon.wait().code(), Some(5));
    });
}

#[test]
fn without_a_command_it_runs_until_it_is_told_to_end() {
    in_enclave(|enclave| {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let host = Host::listen(&enclave);
            let mut daemon = enclave.start(&[]);
            let mut link = host.accept();
            daemon.wait_for("ready");

            daemon.signal(signal);

            assert!(daemon.wait().success());
            assert_eq!(enclave.resolv_conf(), ORIGINAL);
            assert!(!enclave.has_interface("netd0"));
            let mut goodbye = None;
            while let Some((kind, payload)) = link.next_within(common::PATIENCE) {
                goodbye = Some((kind, String::from_utf8_lossy(&payload).into_owned()));
            }
            let (kind, text) = goodbye.expect("the host is told");
            assert_eq!(kind, netd_proto::frame::Kind::Goodbye);
            assert!(text.contains("enclave-netd ends"), "{text}");
        }
    });
}

#[test]
fn a_signal_before_the_link_ends_the_wait() {
    in_enclave(|enclave| {
        let mut daemon = enclave.start(&["--", "true"]);
        daemon.wait_for("no link to the parent");
        daemon.signal(Signal::SIGTERM);
        assert_eq!(
            daemon.wait().code(),
            Some(128 + 15),
            "the command never ran"
        );
        assert_eq!(enclave.resolv_conf(), ORIGINAL);

        let mut daemon = enclave.start(&[]);
        daemon.wait_for("no link to the parent");
        daemon.signal(Signal::SIGTERM);
        assert!(daemon.wait().success());
    });
}

#[test]
fn signals_blocked_by_whoever_started_it_do_not_stay_blocked() {
    in_enclave(|enclave| {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGUSR1);
        mask.thread_block().expect("blocked");
        let host = Host::listen(&enclave);
        let mut daemon = enclave.start(&["--", "grep", "SigBlk", "/proc/self/status"]);
        let _link = host.accept();
        daemon.wait_for("SigBlk:\t0000000000000000");
    });
}

#[test]
fn the_terminals_interrupt_reaches_it_once() {
    in_enclave(|enclave| {
        let config = enclave.configure("").display().to_string();
        let host = Host::listen(&enclave);
        // A terminal of its own, on which somebody types Ctrl-C.
        let terminal = r#"
import os, pty, sys
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen = b""
typed = False
while True:
    try:
        data = os.read(fd, 4096)
    except OSError:
        break
    if not data:
        break
    seen += data
    if b"armed" in seen and not typed:
        typed = True
        os.write(fd, b"\x03")
for line in seen.decode().splitlines():
    print(line)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;
        let script = "n=0; trap 'n=$((n+1)); echo got $n' INT; echo armed; \
                      for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.05; done; exit 4";
        let mut command = std::process::Command::new("python3");
        command.args([
            "-c",
            terminal,
            env!("CARGO_BIN_EXE_enclave-netd"),
            "--config",
            &config,
        ]);
        command.args(["--parent", &enclave.parent(), "--", "sh", "-c", script]);
        let mut daemon = Daemon::spawn(command);
        let _link = host.accept();

        assert_eq!(daemon.wait().code(), Some(4));

        let lines = daemon.lines();
        let got = lines.iter().filter(|l| l.contains("got ")).count();
        assert_eq!(got, 1, "{lines:#?}");
    });
}
