//! The sandbox of a running host-netd. What it stops in detail is in `host-netd/tests/sandbox.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Lab, Process, address, until};
use std::fs;

/// The status files of all its threads, once it has a session and a capture.
fn threads(host: &Process) -> Vec<(i32, String)> {
    let task = format!("/proc/{}/task", host.pid());
    until(10, "every kind of thread runs", || {
        let statuses: Vec<_> = fs::read_dir(&task)
            .unwrap()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let thread = entry.file_name().to_str()?.parse().ok()?;
                let status = fs::read_to_string(entry.path().join("status")).ok()?;
                Some((thread, status))
            })
            .collect();
        let named = |name| {
            statuses
                .iter()
                .any(|(_, s)| s.starts_with(&format!("Name:\t{name}")))
        };
        ["host-netd", "session", "capture", "tokio-"]
            .into_iter()
            .all(named)
            .then_some(statuses)
    })
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim_start_matches(':')
        .trim()
}

#[test]
fn every_thread_is_in_the_sandbox_and_the_log_says_so() {
    let lab = Lab::new();
    let _unbound = lab.unbound();
    let capture = lab.dir().join("link/capture.pcap");
    let mut daemons = lab.up_with(&["--capture", capture.to_str().unwrap()], "");
    // What tokio's other threads do.
    lab.enclave.run("dig", &["web.lab.example"]).ok();

    for (thread, status) in threads(&daemons.host) {
        assert_eq!(field(&status, "Seccomp"), "2", "thread {thread}: {status}");
        assert_eq!(field(&status, "NoNewPrivs"), "1", "thread {thread}");
        assert_eq!(field(&status, "CapEff"), "0000000000000000");
    }
    let log = daemons.host.log();
    assert!(log.contains("seccomp=\"on\""), "{log}");
    assert!(log.contains("landlock=ABI"), "{log}");

    let recorded = || fs::metadata(&capture).unwrap().len();
    let before = recorded();
    until(10, "the capture goes on", || {
        lab.enclave.run("dig", &["web.lab.example"]).ok();
        (recorded() > before).then_some(())
    });
    assert!(daemons.host.terminate().success());
    assert!(!lab.link().exists(), "its socket is left behind");
}

#[test]
fn the_sandbox_can_be_left_out_and_that_is_said() {
    let lab = Lab::new();
    let config = lab.config("sandbox = 'off'");
    let host = lab.start_host(&["--config", &config]);
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
    assert_eq!(field(&status, "Seccomp"), "0");
    assert!(host.log().contains("no sandbox"), "{}", host.log());
}

/// What an intruder could do is done: system calls are put into a session's thread.
#[cfg(target_arch = "x86_64")]
mod intruder {
    use super::*;
    use netd_tests::Daemons;
    use nix::libc::{self, c_long};
    use nix::sys::ptrace;
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;
    use std::os::unix::process::ExitStatusExt;

    fn session(daemons: &Daemons) -> Pid {
        let all = threads_of(&daemons.host, "session");
        Pid::from_raw(all[0])
    }

    fn threads_of(host: &Process, name: &str) -> Vec<i32> {
        let task = format!("/proc/{}/task", host.pid());
        until(10, "the thread runs", || {
            let threads: Vec<i32> = fs::read_dir(&task)
                .unwrap()
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .filter(|thread| {
                    fs::read_to_string(format!("{task}/{thread}/comm"))
                        .is_ok_and(|comm| comm.starts_with(name))
                })
                .collect();
            (!threads.is_empty()).then_some(threads)
        })
    }

    fn wait_for(thread: Pid) -> WaitStatus {
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap()
    }

    /// Stops a thread where it waits for events, which is what it does most of the time.
    fn stop(thread: Pid) -> libc::user_regs_struct {
        until(10, "the thread waits for events", || {
            ptrace::attach(thread).unwrap();
            assert!(matches!(wait_for(thread), WaitStatus::Stopped(..)));
            let registers = ptrace::getregs(thread).unwrap();
            if registers.orig_rax.cast_signed() == libc::SYS_epoll_wait {
                return Some(registers);
            }
            ptrace::detach(thread, None).unwrap();
            None
        })
    }

    /// Has a thread make a call with a text as its second argument, and otherwise go on as before.
    /// Tells what the kernel returned, or nothing if that was the thread's end.
    fn inject(thread: Pid, number: c_long, first: c_long, text: &str) -> Option<i64> {
        let before = stop(thread);
        // Below what the thread's own code uses of its stack.
        let address = (before.rsp - 4096) & !7;
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(text.len() / 8 * 8 + 8, 0);
        for (index, word) in bytes.chunks(8).enumerate() {
            let word = c_long::from_ne_bytes(word.try_into().unwrap());
            let at = address + 8 * u64::try_from(index).unwrap();
            ptrace::write(thread, at as *mut libc::c_void, word).unwrap();
        }
        let mut registers = before;
        registers.rax = number.cast_unsigned();
        // The two bytes behind it are the instruction of its system call.
        registers.rip -= 2;
        registers.orig_rax = u64::MAX;
        (registers.rdi, registers.rsi, registers.rdx) = (first.cast_unsigned(), address, 0);
        ptrace::setregs(thread, registers).unwrap();
        ptrace::step(thread, None).unwrap();
        match wait_for(thread) {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Signaled(_, Signal::SIGSYS, _) => return None,
            other => panic!("{other:?}"),
        }
        let result = ptrace::getregs(thread).unwrap().rax.cast_signed();
        ptrace::setregs(thread, before).unwrap();
        ptrace::detach(thread, None).unwrap();
        Some(result)
    }

    const ANY_FILE: &str = "/proc/version";
    const HERE: c_long = libc::AT_FDCWD as c_long;

    #[test]
    fn no_file_opens_and_a_program_ends_host_netd() {
        let lab = Lab::new();
        let mut daemons = lab.up();
        let session = session(&daemons);
        let denied = Some(-i64::from(libc::EACCES));
        assert_eq!(inject(session, libc::SYS_openat, HERE, ANY_FILE), denied);
        let refused = Some(-i64::from(libc::ENOSYS));
        assert_eq!(inject(session, libc::SYS_mkdirat, HERE, "x"), refused);
        // It serves on.
        let gateway = address::GATEWAY[0].to_string();
        lab.enclave.run("ping", &["-c1", "-W5", &gateway]).ok();

        assert_eq!(inject(session, libc::SYS_execve, 0, ""), None);

        assert_eq!(daemons.host.wait(10).signal(), Some(libc::SIGSYS));
    }

    #[test]
    fn without_the_sandbox_both_would_work() {
        let lab = Lab::new();
        let config = lab.config("sandbox = 'off'");
        let daemons = lab.up_with(&["--config", &config], "");
        let session = session(&daemons);
        let opened = inject(session, libc::SYS_openat, HERE, ANY_FILE);
        assert!(opened.is_some_and(|file| file >= 0), "{opened:?}");
        let fault = Some(-i64::from(libc::EFAULT));
        assert_eq!(inject(session, libc::SYS_execve, 0, ""), fault);
    }
}
