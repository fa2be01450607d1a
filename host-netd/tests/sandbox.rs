//! Tries what an intruder in host-netd would, in the sandbox and outside it.
//!
//! Each attempt is made by a process of its own, which is this program again: the sandbox is for good,
//! and some attempts end the process. That the same attempt ends otherwise outside shows that it is
//! the sandbox that stops it. A main function of its own, because the sandbox is not entered while
//! other threads run, and the usual harness runs tests in some.

#![expect(unsafe_code, reason = "system calls as an intruder makes them")]

use host_netd::sandbox::{Files, Mode, enter};
use nix::errno::Errno;
use nix::libc::{self, c_int, c_long};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use socket2::{Domain, Socket, Type};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, abort, exit};
use std::ptr;

/// Which attempt this process is to make, where, and whether in the sandbox.
const ATTEMPT: &str = "NETD_TEST_ATTEMPT";
const FOLDER: &str = "NETD_TEST_FOLDER";
const SANDBOX: &str = "NETD_TEST_SANDBOX";
/// The call that the kernel is to be without.
const LACKING: &str = "NETD_TEST_LACKING";
/// Exit status where the sandbox could not be entered.
const NO_SERVICE: i32 = 102;
/// Exit status of a panic. No attempt fails with an errno of this or the former number.
const PANICKED: i32 = 101;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed(Errno),
    Ended(c_int),
    NoService,
}

use Outcome::{Done, Ended, Failed, NoService};

const INTRUDER: Outcome = Ended(libc::SIGSYS);
const NO_SUCH_CALL: Outcome = Failed(Errno::ENOSYS);
const NO_ACCESS: Outcome = Failed(Errno::EACCES);

/// What was there before the sandbox.
struct Scene {
    dir: PathBuf,
    listener: TcpListener,
    log: File,
}

impl Scene {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

type Try = fn(&Scene) -> io::Result<()>;

/// What ends the process.
const INTRUSIONS: &[(&str, Try)] = &[
    ("run a program", |_| {
        Command::new("/bin/true").status().map(drop)
    }),
    (
        "become a program",
        |_| Err(Command::new("/bin/true").exec()),
    ),
    ("fork", |_| fork(0)),
    ("fork into a namespace", |_| fork(libc::CLONE_NEWUTS)),
    ("trace", |_| call(libc::SYS_ptrace, [-1, 0])),
    ("read another's memory", |_| {
        call(libc::SYS_process_vm_readv, [0, 0])
    }),
    ("make a namespace", |_| call(libc::SYS_unshare, [0, 0])),
    ("enter a namespace", |_| call(libc::SYS_setns, [-1, 0])),
    ("mount", |_| call(libc::SYS_mount, [0, 0])),
    ("load a program into the kernel", |_| {
        call(libc::SYS_bpf, [-1, 0])
    }),
    ("load a module", |_| call(libc::SYS_finit_module, [-1, 0])),
    ("use io_uring", |_| call(libc::SYS_io_uring_setup, [0, 0])),
    ("observe the machine", |_| {
        call(libc::SYS_perf_event_open, [0, 0])
    }),
    ("handle page faults", |_| {
        call(libc::SYS_userfaultfd, [-1, 0])
    }),
    ("read keys", |_| call(libc::SYS_keyctl, [-1, 0])),
    ("become another user", |_| call(libc::SYS_setuid, [-1, 0])),
    ("signal another", |_| call(libc::SYS_kill, [parent(), 0])),
    ("open a packet socket", |_| {
        socket(libc::AF_PACKET, libc::SOCK_RAW)
    }),
    ("open a raw socket", |_| {
        socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC)
    }),
    ("open a raw socket of IPv6", |_| {
        socket(libc::AF_INET6, libc::SOCK_RAW)
    }),
    ("open a vsock to another enclave", |_| {
        socket(libc::AF_VSOCK, libc::SOCK_STREAM)
    }),
    ("open a socket of the kernel's ciphers", |_| {
        socket(libc::AF_ALG, libc::SOCK_SEQPACKET)
    }),
    ("put a program on a socket", filter_a_socket),
];

/// What is not there.
const REFUSED: &[(&str, Try)] = &[
    ("make a thread with flags that cannot be seen", |_| {
        call(libc::SYS_clone3, [0, 0])
    }),
    ("map code", |_| {
        map(libc::PROT_READ | libc::PROT_EXEC).map(drop)
    }),
    ("make data executable", |_| make_executable()),
    ("make a file in memory", |_| {
        call(libc::SYS_memfd_create, [0, 0])
    }),
    ("open a stream to another daemon", |_| {
        socket(libc::AF_UNIX, libc::SOCK_STREAM)
    }),
    ("serve another port", |_| tcp_socket()?.listen(1)),
    ("make a file", |s| fs::write(s.path("etc/new"), "")),
    ("write a file", |s| {
        File::options()
            .append(true)
            .open(s.path("etc/stub"))
            .map(drop)
    }),
    ("rename a file", |s| {
        fs::rename(s.path("etc/stub"), s.path("etc/old"))
    }),
    ("link a file", |s| {
        fs::hard_link(s.path("etc/stub"), s.path("etc/old"))
    }),
    ("change a mode", |s| {
        fs::set_permissions(s.path("etc"), fs::metadata(&s.dir)?.permissions())
    }),
    ("make a folder", |s| fs::create_dir(s.path("etc/new"))),
    ("set a limit", |_| set_limit()),
    ("hide from debuggers", |_| {
        call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 0])
    }),
];

/// What landlock keeps closed.
const CLOSED: &[(&str, Try)] = &[
    ("read another file", |s| {
        fs::read(s.path("secret")).map(drop)
    }),
    ("read another file by a link", |s| {
        fs::read(s.path("etc/link")).map(drop)
    }),
    ("read its own memory as a file", |_| {
        File::open("/proc/self/mem").map(drop)
    }),
    ("list a folder", |s| fs::read_dir(s.path("etc")).map(drop)),
    ("remove another file", |s| fs::remove_file(s.path("secret"))),
];

/// Closed where landlock knows of ports.
const BIND: (&str, Try) = ("bind another port", |_| {
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    tcp_socket()?.bind(&any.into())
});

/// What host-netd does while it runs.
const WORK: &[(&str, Try)] = &[
    ("read resolv.conf", |s| {
        fs::read(s.path("etc/resolv.conf")).map(drop)
    }),
    ("read its neighbour, which may take its place", |s| {
        fs::read(s.path("etc/stub")).map(drop)
    }),
    ("remove its socket", |s| {
        fs::remove_file(s.path("run/socket"))
    }),
    ("connect and accept", |s| {
        let client = TcpStream::connect(s.listener.local_addr()?)?;
        client.set_nonblocking(true)?;
        s.listener.accept().map(drop)
    }),
    ("send datagrams", |_| {
        datagram("127.0.0.1:0").and(datagram("[::1]:0"))
    }),
    ("write an open file", |s| (&s.log).write_all(b"text")),
    ("cut an open file", |s| s.log.set_len(0)),
    ("start threads", |_| thread(|| ()).map_err(|_| unexpected())),
    ("survive a panic", |_| {
        match thread(|| panic!("of a session")) {
            Err(_) => Ok(()),
            Ok(()) => Err(unexpected()),
        }
    }),
    ("look at its own addresses", |_| {
        Ok(nix::ifaddrs::getifaddrs().map(drop)?)
    }),
    ("tell an interface's number", |_| {
        Ok(nix::net::if_::if_nametoindex("lo").map(drop)?)
    }),
    ("talk to itself", |_| UnixStream::pair().map(drop)),
    ("take memory", |_| {
        map(libc::PROT_READ | libc::PROT_WRITE).map(drop)
    }),
];

const ABORT: (&str, Try) = ("abort", |_| abort());

fn main() {
    if let Some(name) = std::env::var_os(ATTEMPT) {
        attempt(&name.into_string().expect("a name"));
    }
    what_an_intruder_tries_is_stopped_and_the_work_goes_on();
    a_kernel_without_it_will_do_unless_it_is_required();
}

fn what_an_intruder_tries_is_stopped_and_the_work_goes_on() {
    for (attempts, expected) in [
        (INTRUSIONS, INTRUDER),
        (REFUSED, NO_SUCH_CALL),
        (CLOSED, NO_ACCESS),
    ] {
        for (name, _) in attempts {
            assert_eq!(outcome(name, true), expected, "{name}");
            assert_ne!(outcome(name, false), expected, "{name}: no sandbox");
        }
    }
    for sandbox in [true, false] {
        for (name, _) in WORK {
            assert_eq!(outcome(name, sandbox), Done, "{name}: sandbox {sandbox}");
        }
        assert_eq!(outcome(ABORT.0, sandbox), Ended(libc::SIGABRT));
    }
    let expected = if landlock_version() >= 4 {
        NO_ACCESS
    } else {
        Done
    };
    assert_eq!(outcome(BIND.0, true), expected);
    assert_eq!(outcome(BIND.0, false), Done);
}

fn a_kernel_without_it_will_do_unless_it_is_required() {
    let (program, file) = (INTRUSIONS[0].0, CLOSED[0].0);
    for lacking in [libc::SYS_landlock_create_ruleset, libc::SYS_seccomp] {
        let outcome = |mode, name| outcome_where(name, mode, Some(lacking));
        assert_eq!(outcome("require", file), NoService, "call {lacking}");
        // The other half is in force.
        if lacking == libc::SYS_seccomp {
            assert_eq!(outcome("auto", file), NO_ACCESS);
        } else {
            assert_eq!(outcome("auto", program), INTRUDER);
            assert_eq!(outcome("auto", file), Done);
        }
    }
}

fn outcome(name: &str, sandbox: bool) -> Outcome {
    outcome_where(name, if sandbox { "require" } else { "off" }, None)
}

/// Has another process make the attempt.
fn outcome_where(name: &str, mode: &str, lacking: Option<c_long>) -> Outcome {
    let dir = tempfile::tempdir().expect("made");
    set_scene(dir.path()).expect("made");
    let output = Command::new(std::env::current_exe().expect("known"))
        .env(ATTEMPT, name)
        .env(FOLDER, dir.path())
        .env(SANDBOX, mode)
        .env(
            LACKING,
            lacking.map_or(String::new(), |call| call.to_string()),
        )
        .env("RUST_BACKTRACE", "1")
        .output()
        .expect("it runs");
    match (output.status.code(), output.status.signal()) {
        (Some(0), _) => Done,
        (Some(NO_SERVICE), _) => NoService,
        (Some(PANICKED), _) => panic!("{name}: {}", String::from_utf8_lossy(&output.stderr)),
        (Some(errno), _) => Failed(Errno::from_raw(errno)),
        (None, signal) => Ended(signal.expect("it ended")),
    }
}

fn set_scene(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir.join("etc"))?;
    fs::create_dir(dir.join("run"))?;
    for name in ["etc/resolv.conf", "etc/stub", "secret"] {
        fs::write(dir.join(name), "text")?;
    }
    std::os::unix::fs::symlink("../secret", dir.join("etc/link"))?;
    UnixListener::bind(dir.join("run/socket")).map(drop)
}

/// Makes an attempt, and ends the process with what came of it.
fn attempt(name: &str) -> ! {
    let dir = PathBuf::from(std::env::var_os(FOLDER).expect("set"));
    let scene = Scene {
        listener: TcpListener::bind("127.0.0.1:0").expect("bound"),
        log: File::create(dir.join("log")).expect("made"),
        dir,
    };
    let all = [INTRUSIONS, REFUSED, CLOSED, WORK, &[BIND, ABORT]];
    let (_, attempt) = all
        .iter()
        .flat_map(|table| table.iter())
        .find(|(known, _)| *known == name)
        .expect("an attempt");
    let mode: Mode = std::env::var(SANDBOX).expect("set").parse().expect("valid");
    let files = Files {
        resolv_conf: scene.path("etc/resolv.conf"),
        sockets: vec![scene.path("run/socket")],
    };
    if let Ok(call) = std::env::var(LACKING).expect("set").parse() {
        lose(call);
    }
    if let Err(error) = enter(mode, &files) {
        eprintln!("{error:#}");
        exit(NO_SERVICE);
    }
    match attempt(&scene) {
        Ok(()) => exit(0),
        Err(error) => exit(error.raw_os_error().expect("of the kernel")),
    }
}

/// Makes the kernel one that does not have this call.
fn lose(call: c_long) {
    let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().expect("known");
    let rules = [(call, vec![])].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch);
    let program: BpfProgram = filter.expect("valid").try_into().expect("short");
    seccompiler::apply_filter(&program).expect("this kernel has seccomp");
}

fn unexpected() -> io::Error {
    Errno::EPROTO.into()
}

/// A call whose further arguments are zero: outside the sandbox it is made and comes to nothing.
fn call(number: c_long, [first, second]: [c_long; 2]) -> io::Result<()> {
    // SAFETY: none of the calls in the tables writes to memory when its pointers are null.
    let result = unsafe { libc::syscall(number, first, second, 0, 0, 0, 0) };
    Errno::result(result)?;
    Ok(())
}

fn fork(flags: c_int) -> io::Result<()> {
    let flags = c_long::from(flags | libc::SIGCHLD);
    // SAFETY: without CLONE_VM this is fork; the child ends at once.
    let child = Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    if child == 0 {
        // SAFETY: always.
        unsafe { libc::_exit(0) };
    }
    Ok(())
}

fn parent() -> c_long {
    nix::unistd::getppid().as_raw().into()
}

fn socket(family: c_int, kind: c_int) -> io::Result<()> {
    Socket::new_raw(family.into(), kind.into(), None).map(drop)
}

fn tcp_socket() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::STREAM, None)
}

fn filter_a_socket(_: &Scene) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let no_program = libc::sock_fprog {
        len: 0,
        filter: ptr::null_mut(),
    };
    host_netd::io::set_raw(
        &socket,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_FILTER,
        no_program,
    )
}

/// The address of a page.
fn map(protection: c_int) -> io::Result<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(page)
}

fn make_executable() -> io::Result<()> {
    let page = map(libc::PROT_READ | libc::PROT_WRITE)?;
    // SAFETY: a page of our own that nothing refers to.
    Errno::result(unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) })?;
    Ok(())
}

fn set_limit() -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?)
}

fn datagram(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    socket.send_to(b"text", socket.local_addr()?)?;
    socket.recv_from(&mut [0; 8]).map(drop)
}

fn thread(work: impl FnOnce() + Send + 'static) -> std::thread::Result<()> {
    let named = std::thread::Builder::new().name("session".into());
    named.spawn(work).expect("a thread").join()
}

fn landlock_version() -> c_long {
    // SAFETY: with this flag the call reads no attribute and only tells its version.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) }
}
