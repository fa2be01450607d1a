//! What enclave-netd does as the first process of an enclave, seen by the program and by who waits
//! outside.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Image, Lab, Process};
use nix::sys::signal::Signal;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

/// How long an enclave may take from its boot to its end, in seconds.
const RUN: u64 = 40;

/// A lab with host-netd, which anybody may connect to.
fn lab_with_host() -> (Lab, Process) {
    let lab = Lab::new();
    let host = lab.start_host(&[]);
    lab.open_link();
    (lab, host)
}

/// Boots an image and waits for its end. What it wrote, and how it ended.
fn run(lab: &Lab, image: &Image) -> (String, ExitStatus) {
    let mut enclave = image.boot(lab);
    let status = enclave.wait(RUN);
    (enclave.log(), status)
}

/// A PID namespace whose process 1 asks for a reset ends by this signal: reboot(2).
fn is_reset(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::SIGHUP as i32)
}

/// The line of a mount in what a program wrote of `/proc/self/mountinfo`.
fn mounted<'a>(log: &'a str, at: &str) -> Vec<&'a str> {
    let point = format!(" {at} ");
    let lines = log.lines();
    lines
        .filter(|line| line.contains(" - ") && line.contains(&point))
        .collect()
}

#[test]
fn programs_find_the_file_systems_they_expect() {
    let (lab, _host) = lab_with_host();
    let image = Image::new(&lab, "image");
    image.write("rootfs/marker", "the program's root\n").runs(
        "cat /proc/self/mountinfo /marker /run/earlier; \
             for old in /init /enclave.toml; do [ ! -e $old ] || echo old root: $old; done; \
             echo shared > /dev/shm/x && echo out >> /dev/stdout; \
             echo ptmx: $(stat -c %a /dev/pts/ptmx)",
    );
    let (log, status) = run(&lab, &image);
    assert!(is_reset(status), "{status:?}: {log}");
    for (at, flags, kind) in [
        ("/proc", "nosuid,nodev,noexec", "proc"),
        ("/sys", "nosuid,nodev,noexec", "sysfs"),
        ("/sys/fs/cgroup", "nosuid,nodev,noexec", "cgroup"),
        ("/dev", "nosuid,noexec", "devtmpfs"),
        ("/dev/pts", "nosuid,noexec", "devpts"),
        ("/dev/shm", "nosuid,nodev", "tmpfs"),
        ("/tmp", "nosuid,nodev", "tmpfs"),
    ] {
        let lines = mounted(&log, at);
        let [line] = lines[..] else {
            panic!("{at}: {lines:?}: {log}");
        };
        let is_right =
            line.contains(&format!("rw,{flags},")) && line.contains(&format!("- {kind}"));
        assert!(is_right, "{line}");
    }
    assert!(log.contains("the program's root"), "{log}");
    assert!(!log.contains("old root: "), "{log}");
    assert!(log.contains("\nout\n"), "{log}");
    assert!(log.contains("ptmx: 666"), "{log}");
    // What was mounted before is there, once.
    assert!(log.contains("mounted before"), "{log}");
    assert_eq!(mounted(&log, "/run").len(), 1, "{log}");
}

#[test]
fn what_a_kernel_has_and_lacks_is_told() {
    let (lab, _host) = lab_with_host();
    let image = Image::new(&lab, "image");
    image
        .write(
            "modules/order",
            "# of a test\nsecond.ko\nfirst.ko\n../init\n",
        )
        .write("modules/first.ko", "not a module")
        .runs("ls /init /enclave.toml");
    let (log, _) = run(&lab, &image);
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_str().unwrap();
    let probed = format!("kernel probed kernel=\"{release}\" tun=true");
    assert!(log.contains(&probed), "{log}");
    let places = [
        "module second.ko: ",
        "module first.ko: ",
        "module ../init: ",
    ]
    .map(|text| log.find(text).unwrap_or_else(|| panic!("{text}: {log}")));
    assert!(places.is_sorted(), "not in their order: {log}");
    assert!(
        log.contains("No such file or directory"),
        "second.ko: {log}"
    );
    // Programs of an image without a root of their own see the image's.
    assert!(log.contains("/enclave.toml"), "{log}");

    let has = |device: &str| Path::new(device).exists();
    let entropy = match has("/dev/nsm") {
        true => "entropy credited bits=4096",
        false => "/dev/nsm: no entropy from the hypervisor",
    };
    assert!(log.contains(entropy), "{log}");
    let clock = match has("/dev/ptp0") {
        true => "the clock follows the hypervisor's",
        false => "the clock is watched for jumps",
    };
    assert!(log.contains(clock), "{log}");
}

#[test]
fn the_end_of_the_program_is_the_end_of_all() {
    let (lab, _host) = lab_with_host();
    let image = Image::new(&lab, "image");
    // Two daemons that outlive the program: one that heeds SIGTERM, and one that does not.
    image.runs(
        "setsid sh -c \"trap 'echo > /link/heeded; exit' TERM; echo > /link/1; \
         while :; do sleep 0.1; done\" >/dev/null 2>&1 & \
         setsid sh -c \"trap '' TERM; echo > /link/2; while :; do sleep 0.1; done\" & \
         until [ -e /link/1 -a -e /link/2 ]; do sleep 0.05; done; exit 7",
    );
    let (log, status) = run(&lab, &image);
    assert!(is_reset(status), "{status:?}: {log}");
    let heeded = lab.link().with_file_name("heeded");
    assert!(heeded.exists(), "asked to end before it was killed: {log}");
}

#[test]
fn orphans_are_waited_for() {
    let (lab, _host) = lab_with_host();
    let image = Image::new(&lab, "image");
    image.runs(
        "for i in 1 2 3; do (sleep 0.1 & ); done; \
         while ps -eo ppid,comm | grep -v grep | grep -q '1 sleep'; do sleep 0.05; done; \
         ps -eo stat,comm | sed 's/^/ps /'; echo over",
    );
    let (log, _) = run(&lab, &image);
    assert!(log.contains("over"), "{log}");
    assert!(log.contains("ps S"), "ps works: {log}");
    assert!(!log.contains("ps Z"), "a zombie: {log}");
}

#[test]
fn under_another_init_the_kernel_is_looked_at_and_nothing_changed() {
    let (lab, _host) = lab_with_host();
    let parent = lab.link_address();
    let config = format!(
        "parent = '{parent}'\n[program]\ncommand = ['sed', 's/^/in the program: /', '/proc/mounts']\n"
    );
    let arguments = ["init", "--config", &lab.config(&config)];
    let before = lab.enclave.run("cat", &["/proc/mounts"]).ok();
    let mut init = lab.enclave.spawn(&lab.binary("enclave-netd"), &arguments);
    assert!(init.wait(RUN).success(), "{}", init.log());
    let log = init.log();
    assert!(log.contains("kernel probed"), "{log}");
    for clock in ["the clock is watched", "the clock follows"] {
        assert!(!log.contains(clock), "the other's: {log}");
    }
    let after = log
        .lines()
        .filter(|line| line.starts_with("in the program: "));
    assert_eq!(after.count(), before.lines().count(), "{before}{log}");
}

#[test]
fn a_root_that_leads_out_of_itself_is_refused() {
    let lab = Lab::new();
    let image = Image::new(&lab, "image");
    image.write("rootfs/marker", "").runs("echo started");
    symlink("/tmp", image.dir().join("rootfs/proc")).unwrap();
    let (log, status) = run(&lab, &image);
    assert!(log.contains("/rootfs/proc is a symbolic link"), "{log}");
    assert!(!log.contains("started"), "{log}");
    assert!(is_reset(status), "{status:?}: {log}");
}
