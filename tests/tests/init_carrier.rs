//! `enclave-netd init`: what its processes may do, and what becomes of the rest when one of them
//! dies, floods, or is not listened to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_proto::handshake::Features;
use netd_proto::report::{Exit, Source};
use netd_tests::{
    FakeHost, Family, Lab, Process, address, connect, echo_server, until, works_again,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

fn configure(lab: &Lab, config: &str) -> String {
    lab.config(&format!("parent = '{}'\n{config}", lab.link_address()))
}

fn spawn(lab: &Lab, config: &str) -> Process {
    let config = configure(lab, config);
    let binary = lab.binary("enclave-netd");
    lab.enclave.spawn(&binary, &["init", "--config", &config])
}

fn shell(line: &str) -> String {
    format!("[program]\ncommand = ['sh', '-c', '''{line}''']\n")
}

fn listen(lab: &Lab) -> FakeHost {
    FakeHost::listen(&lab.link(), Features::ALL)
}

/// host-netd, whose socket all may connect to: the carrier is nobody that it knows.
fn start_host(lab: &Lab) -> Process {
    let host = lab.start_host(&[]);
    fs::set_permissions(lab.link(), Permissions::from_mode(0o777)).unwrap();
    host
}

/// The children of a process whose command line has a word.
fn children(parent: Pid, word: &str) -> Vec<Pid> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let list = fs::read_to_string(path).unwrap_or_default();
    let has_it = |pid: &Pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word)
    };
    let pids = list.split_whitespace();
    let pids = pids.map(|pid| Pid::from_raw(pid.parse().unwrap()));
    pids.filter(has_it).collect()
}

fn carrier(init: &Process) -> Pid {
    until(10, "there is a carrier", || {
        children(init.pid(), "carrier").pop()
    })
}

/// The program, once it has become what it is to be.
fn sleeper(init: &Process) -> Pid {
    until(10, "the program sleeps", || {
        children(init.pid(), "sleep").pop()
    })
}

fn status(pid: Pid, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let line = line.unwrap_or_else(|| panic!("no {field} in {status}"));
    line.trim_start_matches(':')
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn the_carrier_may_do_nothing_and_the_keeper_little() {
    let lab = Lab::new();
    let host = listen(&lab);
    let init = spawn(&lab, &shell("echo begun; exec sleep 1000"));
    host.wait_line("begun", 20);

    let carrier = carrier(&init);
    let tasks = fs::read_dir(format!("/proc/{carrier}/task")).unwrap();
    let tasks: Vec<i32> = tasks
        .map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    assert!(tasks.len() >= 4, "{tasks:?}");
    for task in tasks.into_iter().map(Pid::from_raw) {
        for (field, expected) in [
            ("Uid", "64733 64733 64733 64733"),
            ("Gid", "64733 64733 64733 64733"),
            ("Groups", ""),
            ("CapEff", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
        ] {
            assert_eq!(status(task, field), expected, "{field} of thread {task}");
        }
    }
    let limits = fs::read_to_string(format!("/proc/{carrier}/limits")).unwrap();
    for bound in [
        "Max core file size        0 ",
        "Max file size             0 ",
        "Max open files            64 ",
    ] {
        assert!(limits.contains(bound), "{bound}: {limits}");
    }
    // What cannot be dumped belongs to root.
    let owner = lab
        .enclave
        .run("stat", &["-c", "%U", &format!("/proc/{carrier}/environ")]);
    assert_eq!(owner.ok().trim(), "root");

    // KILL, SETUID, SETGID, SYS_BOOT and DAC_OVERRIDE.
    let kept = 1u64 << 5 | 1 << 7 | 1 << 6 | 1 << 22 | 1 << 1;
    assert_eq!(status(init.pid(), "CapEff"), format!("{kept:016x}"));
    assert_eq!(status(init.pid(), "CapPrm"), format!("{kept:016x}"));
}

#[test]
fn a_carrier_that_dies_costs_the_flows_and_nothing_else() {
    let lab = Lab::new();
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let _host = start_host(&lab);
    let mut init = spawn(
        &lab,
        &format!("{}[log]\nforward = false", shell("exec sleep 1000")),
    );
    init.wait_log("program started", 20);
    let program = sleeper(&init);
    let look = || {
        lab.enclave
            .shell("ip -o addr show netd0; ip route; ip -6 route")
            .ok()
    };
    let before = look();
    assert!(
        before.contains("100.64.0.2/30") && before.contains("default via"),
        "{before}"
    );
    let mut open = connect(&lab.enclave, echo, 5).unwrap();
    open.write_all(b"x").unwrap();
    open.read_exact(&mut [0]).unwrap();

    for round in 1..=3 {
        let killed = carrier(&init);
        kill(killed, Signal::SIGKILL).unwrap();
        // The flow is not left hanging.
        open.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let error = open.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        init.wait_log_times("the carrier ended; flows are reset", round, 10);
        works_again(&lab.enclave, echo);
        assert_ne!(carrier(&init), killed);
        assert_eq!(sleeper(&init), program, "another program");
        assert_eq!(look(), before);
        open = connect(&lab.enclave, echo, 5).unwrap();
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
    }
    assert!(init.log().contains("ended by signal 9"), "{}", init.log());
    assert_eq!(init.log().matches("program started").count(), 1);
}

#[test]
fn the_log_goes_on_behind_a_carrier_that_died() {
    let lab = Lab::new();
    let host = listen(&lab);
    let init = spawn(
        &lab,
        &shell("i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done"),
    );
    let first = host.wait_line("line 10", 20);
    kill(carrier(&init), Signal::SIGKILL).unwrap();
    let told = until(20, "the next carrier brings the lines", || {
        let links = host.links();
        let last = links.last()?.clone();
        let more = last.lines.len() > first.lines.len() + 50;
        (links.len() == 2 && more).then_some(last)
    });
    assert_eq!(told.hello.session, first.hello.session);
    let expected: Vec<u64> = (0..).take(told.lines.len()).collect();
    assert_eq!(told.numbers(), expected);
    let lines = told.texts(Source::Stdout);
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("line {number}"));
    }
    let netd = told.texts(Source::Netd).join("\n");
    assert!(netd.contains("ended by signal 9"), "{netd}");
}

#[test]
fn a_carrier_that_cannot_live_is_tried_ever_more_slowly() {
    let lab = Lab::new();
    let host = listen(&lab);
    let mut init = spawn(&lab, &shell("echo begun; exec sleep 1000"));
    host.wait_line("begun", 20);
    let begin = Instant::now();
    for round in 1..=5 {
        kill(carrier(&init), Signal::SIGKILL).unwrap();
        init.wait_log_times("the carrier ended", round, 20);
    }
    // 50, 100, 200 and 400 ms lie between five deaths.
    assert!(
        begin.elapsed() >= Duration::from_millis(750),
        "{:?}",
        begin.elapsed()
    );
    let log = init.log();
    for wait in [
        "wait=50ms",
        "wait=100ms",
        "wait=200ms",
        "wait=400ms",
        "wait=800ms",
    ] {
        assert!(log.contains(wait), "{wait}: {log}");
    }
    assert_eq!(children(init.pid(), "sleep").len(), 1);
}

#[test]
fn a_program_that_floods_slows_nobody_and_its_lines_are_counted() {
    let lab = Lab::new();
    let host = listen(&lab);
    // Two million lines of 50 bytes.
    let flood = "yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa | head -n 2000000; echo the last line; exit 7";
    let mut init = spawn(&lab, &format!("{}[log]\nconsole = false", shell(flood)));
    assert_eq!(init.wait(60).code(), Some(7), "{}", init.log());
    let told = host.wait_exit(5);
    let numbers = told.numbers();
    assert!(numbers.is_sorted_by(|a, b| a < b), "lines came twice");
    let last = told
        .lines
        .iter()
        .find(|line| line.text == "the last line")
        .unwrap();
    // Every line has a number, whether it came or not.
    let own = told.lines.iter().filter(|line| line.source == Source::Netd);
    let before = own.filter(|line| line.number < last.number).count();
    assert_eq!(last.number, 2_000_000 + u64::try_from(before).unwrap());
    assert!(
        numbers.len() < 1_500_000,
        "nothing was lost: this is no flood"
    );
    assert_eq!(told.exit.unwrap().0, Exit::Status(7));
}

#[test]
fn the_network_answers_while_a_program_floods() {
    let lab = Lab::new();
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let _host = start_host(&lab);
    let mut init = spawn(
        &lab,
        &format!(
            "{}[log]\nconsole = false\nforward = false",
            shell("exec yes")
        ),
    );
    init.wait_log("program started", 20);
    for _ in 0..50 {
        works_again(&lab.enclave, echo);
    }
    init.signal(Signal::SIGTERM);
    assert_eq!(init.wait(15).code(), Some(143), "{}", init.log());
}

#[test]
fn a_parent_that_reads_nothing_holds_nobody_up() {
    let lab = Lab::new();
    let host = listen(&lab);
    let line = "echo begun; until test -e $GO; do sleep 0.05; done; \
                yes abcdefghijklmnopqrstuvwxyz | head -n 1000000; echo done >$DONE; exec sleep 1000";
    let (go, done) = (lab.dir().join("go"), lab.dir().join("done"));
    let (go_name, done_name) = (go.to_str().unwrap(), done.to_str().unwrap());
    let config = shell(line)
        + &format!(
            "environment = {{ GO = '{go_name}', DONE = '{done_name}' }}\n[log]\nconsole = false"
        );
    let init = spawn(&lab, &config);
    host.wait_line("begun", 20);
    host.read(false);
    fs::write(&go, "").unwrap();
    until(60, "the program writes on", || done.exists().then_some(()));
    host.read(true);
    let told = until(20, "what is left comes", || {
        let told = host.links().pop()?;
        let last = *told.numbers().last()?;
        (last > 1_000_000).then_some(told)
    });
    assert!(
        told.lines.len() < 900_000,
        "nothing was lost: nobody was held up"
    );
    drop(init);
}

#[test]
fn a_console_that_takes_nothing_holds_nobody_up() {
    let lab = Lab::new();
    let host = listen(&lab);
    let config = configure(
        &lab,
        &shell("yes abcdefghijklmnopqrstuvwxyz | head -n 500000; exit 7"),
    );
    let binary = lab.binary("enclave-netd");
    // A pipe whose reader stands still.
    let line = format!("{binary} init --config {config} 2> >(exec sleep 1000); echo ended $?");
    let mut bash = lab.enclave.spawn("bash", &["-c", &line]);
    assert_eq!(host.wait_exit(60).exit.unwrap().0, Exit::Status(7));
    bash.wait_log("ended 7", 20);
}

#[test]
fn orphans_are_reaped() {
    let lab = Lab::new();
    let host = listen(&lab);
    let orphan = r#"
import os, time
if os.fork() == 0:
    os.setsid()
    first = os.getpid()
    if os.fork() == 0:
        while os.getppid() == first: time.sleep(0.01)
        print("orphan", os.getpid(), "of", os.getppid(), flush=True)
        os._exit(0)
    os._exit(0)
os.wait()
time.sleep(1000)
"#;
    let init = spawn(
        &lab,
        &format!("[program]\ncommand = ['/usr/bin/python3', '-c', '''{orphan}''']\n"),
    );
    let told = host.wait_line("orphan", 20);
    let text = told.texts(Source::Stdout)[0].to_owned();
    let words: Vec<&str> = text.split(' ').collect();
    assert_eq!(words[3], init.pid().to_string(), "{text}");
    let path = format!("/proc/{}", words[1]);
    until(10, "the orphan is reaped", || {
        (!fs::exists(&path).unwrap()).then_some(())
    });
}

#[test]
fn nothing_outlives_a_keeper_that_is_killed() {
    let lab = Lab::new();
    let host = listen(&lab);
    let config = shell("echo begun; exec sleep 1000") + "user = 'nobody'\n";
    let mut init = spawn(&lab, &config);
    host.wait_line("begun", 20);
    let left = [carrier(&init), sleeper(&init)];
    init.kill();
    for pid in left {
        until(10, "it ends, too", || {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            (state.is_empty() || state.contains(") Z")).then_some(())
        });
    }
}

/// As the first process of a PID namespace, which ends with it.
fn spawn_first(lab: &Lab, config: &str) -> Process {
    let config = configure(lab, config);
    let binary = lab.binary("enclave-netd");
    // The first process mounts a file system over /tmp unless there is one. The lab lies there.
    let dir = lab.dir().to_str().unwrap();
    let line = format!(
        "mount -t tmpfs tmpfs /mnt && mkdir -p /mnt/${{0#/tmp/}} && mount --rbind $0 /mnt/${{0#/tmp/}} \
         && mount --move /mnt /tmp && exec {binary} init --config {config}"
    );
    let words = "--fork --pid --mount --mount-proc --kill-child sh -c";
    let words: Vec<&str> = words.split(' ').chain([&line[..], dir]).collect();
    lab.enclave.spawn("unshare", &words)
}

#[test]
fn process_1_runs_the_program_tells_its_end_and_ends_the_machine() {
    let lab = Lab::new();
    let host = listen(&lab);
    let (begun, left) = (lab.dir().join("begun"), lab.dir().join("left"));
    let line = format!(
        "echo $PPID; setsid sh -c \"trap 'echo ended >{}; exit' TERM; exec >/dev/null 2>&1; echo >{}; \
         while :; do sleep 0.05; done\" & until test -e {}; do sleep 0.05; done; exit 7",
        left.display(),
        begun.display(),
        begun.display()
    );
    let mut machine = spawn_first(&lab, &shell(&line));
    let told = host.wait_exit(20);
    assert_eq!(told.texts(Source::Stdout), ["1"]);
    assert_eq!(told.exit.unwrap().0, Exit::Status(7));
    // The kernel ends a namespace that is reset by a hang-up of its first process.
    let status = machine.wait(20);
    assert_eq!(
        status.signal(),
        Some(Signal::SIGHUP as i32),
        "{status}: {}",
        machine.log()
    );
    assert!(left.exists(), "what was left behind was not asked to end");
}

#[test]
fn process_1_says_what_is_wrong_and_ends_the_machine() {
    let lab = Lab::new();
    let host = listen(&lab);
    for (config, text) in [
        ("[program]\ncommand = []", "program.command is missing"),
        (
            "[network]\ninterface = 'lo'\n[program]\ncommand = ['true']",
            "interface lo is already there",
        ),
    ] {
        let mut machine = spawn_first(&lab, config);
        let status = machine.wait(20);
        assert_eq!(
            status.signal(),
            Some(Signal::SIGHUP as i32),
            "{status}: {}",
            machine.log()
        );
        assert!(machine.log().contains(text), "{}", machine.log());
    }
    assert!(host.links().is_empty());
}

#[test]
fn sigterm_to_process_1_stops_the_program_in_good_order() {
    let lab = Lab::new();
    let host = listen(&lab);
    let line = "trap 'echo stopping; exit 5' TERM; echo begun; while :; do sleep 0.05; done";
    let mut machine = spawn_first(&lab, &shell(line));
    host.wait_line("begun", 20);
    let init = until(5, "there is an init", || {
        children(machine.pid(), "enclave-netd").pop()
    });
    kill(init, Signal::SIGTERM).unwrap();
    let told = host.wait_exit(15);
    assert_eq!(told.texts(Source::Stdout), ["begun", "stopping"]);
    assert_eq!(told.exit.unwrap().0, Exit::Status(5));
    machine.wait(20);
}

/// The resident memory of a process and its proportional share, in KiB.
fn memory(pid: Pid) -> (u64, u64) {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |name: &str| -> u64 {
        let line = rollup
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (of("Rss:"), of("Pss:"))
}

#[test]
fn it_is_up_soon_and_small_with_a_thousand_flows() {
    let lab = Lab::new();
    let echo = echo_server(&lab.internet, Family::V4.at(address::SERVER, 7));
    let _host = start_host(&lab);
    let config = format!("{}[log]\nforward = false", shell("exec sleep 1000"));
    let begin = Instant::now();
    let mut init = spawn(&lab, &config);
    init.wait_log("ready", 20);
    let took = begin.elapsed();
    let logged = init
        .log()
        .lines()
        .find(|line| line.contains(" ready "))
        .unwrap()
        .to_owned();
    eprintln!("from start to ready: {took:?} as seen from outside; {logged}");
    assert!(took < Duration::from_secs(3), "{took:?}");

    let flows: Vec<_> = (0..1000)
        .map(|_| {
            let mut flow = connect(&lab.enclave, echo, 20).unwrap();
            flow.write_all(b"x").unwrap();
            flow.read_exact(&mut [0]).unwrap();
            flow
        })
        .collect();
    let (carrier, keeper) = (memory(carrier(&init)), memory(init.pid()));
    eprintln!(
        "with {} flows, KiB: carrier RSS {} PSS {}, keeper RSS {} PSS {}",
        flows.len(),
        carrier.0,
        carrier.1,
        keeper.0,
        keeper.1
    );
    assert!(carrier.1 + keeper.1 < 16 * 1024, "more than 16 MiB");
}
