//! Seccomp: which system calls can be made, and with which arguments where these matter.
//!
//! Two filters lie upon each other, and the stricter answer counts: one that permits what is needed
//! and refuses the rest, and one that ends the process at what nothing but an intruder calls. Since
//! Linux 5.11 the kernel remembers which calls every filter permits whatever their arguments: reading
//! and writing cost next to nothing more.
//!
//! Calls are listed by what they are for. Where the C libraries differ, or an architecture has an old
//! and a new form, both are there.

use nix::libc::{self, c_int, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};
use std::collections::BTreeMap;

/// A call, and the conditions of which any one has to hold; none for every call of that number.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Needed, whatever the arguments.
const PERMITTED: &[c_long] = &[
    // bytes
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    // sockets
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_close,
    // events and time
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    // memory; see also mmap and mprotect
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // threads; see also clone
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // signals
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    // files that landlock lets through, or that stand open; see also openat
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_pread64,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    // hash maps, flow seeds, query ids
    libc::SYS_getrandom,
];

/// The older forms that x86-64 has and musl prefers.
#[cfg(target_arch = "x86_64")]
const PERMITTED_HERE: &[c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
];
#[cfg(not(target_arch = "x86_64"))]
const PERMITTED_HERE: &[c_long] = &[];

/// Nothing of host-netd or its libraries makes these calls.
const INTRUDERS: &[c_long] = &[
    // other programs and processes
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_kcmp,
    libc::SYS_kill,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    // file systems and namespaces
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // identity
    libc::SYS_capset,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_setuid,
    // the kernel's inside, and its wider surfaces
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_userfaultfd,
];

#[cfg(target_arch = "x86_64")]
const INTRUDERS_HERE: &[c_long] = &[
    libc::SYS_fork,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_modify_ldt,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const INTRUDERS_HERE: &[c_long] = &[];

/// Flags of clone that make a namespace.
const NAMESPACES: [c_int; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// The flags of a socket's type, which are not the type.
const TYPE_FLAGS: c_int = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// Puts both filters into force, for every thread. `removes_sockets` for one who will remove its unix
/// sockets.
pub(super) fn restrict(removes_sockets: bool) -> anyhow::Result<()> {
    let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let permit = compile(permitted(removes_sockets)?, refuse, SeccompAction::Allow)?;
    let end = compile(
        intruders()?,
        SeccompAction::Allow,
        SeccompAction::KillProcess,
    )?;
    // The one that permits comes last: it forbids to add a filter.
    apply_filter_all_threads(&end)?;
    apply_filter_all_threads(&permit)?;
    Ok(())
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> anyhow::Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, otherwise, matching, arch)?.try_into()?)
}

fn permitted(removes_sockets: bool) -> anyhow::Result<Rules> {
    let mut rules = whatever_the_arguments(&[PERMITTED, PERMITTED_HERE]);
    let mut permit = |call, alternatives| rules.insert(call, alternatives);

    permit(libc::SYS_socket, sockets()?);
    // Between the data loop and the DNS service, for queries over TCP.
    let pair = rule([is(0, libc::AF_UNIX)?, is_of_type(libc::SOCK_STREAM)?])?;
    permit(libc::SYS_socketpair, vec![pair]);
    permit(
        libc::SYS_ioctl,
        vec![
            // std makes sockets nonblocking and close-on-exec by it.
            rule([is_request(libc::FIONBIO)?])?,
            rule([is_request(libc::FIOCLEX)?])?,
            // The scope of a name server such as fe80::1%eth0.
            rule([is_request(libc::SIOCGIFINDEX)?])?,
        ],
    );
    let commands = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
    ];
    let commands = commands.map(|command| rule([is(1, command)?]));
    permit(
        libc::SYS_fcntl,
        commands.into_iter().collect::<Result<_, _>>()?,
    );
    // A thread's name, and nothing else of what prctl does.
    permit(libc::SYS_prctl, vec![rule([is(0, libc::PR_SET_NAME)?])?]);
    // To ask for limits, not to set them.
    permit(libc::SYS_prlimit64, vec![rule([is_null(2)?])?]);

    // New code does not come in, by mapping or by change of what is mapped.
    let not_executable = || rule([without(2, libc::PROT_EXEC)?]);
    permit(libc::SYS_mmap, vec![not_executable()?]);
    permit(libc::SYS_mprotect, vec![not_executable()?]);

    // A thread is no process and has no namespace of its own. clone3 keeps its flags in memory,
    // where no filter sees them: refused, and the C library takes clone.
    permit(libc::SYS_clone, vec![rule([has(0, libc::CLONE_THREAD)?])?]);
    // abort().
    let own = c_int::try_from(std::process::id())?;
    permit(
        libc::SYS_tgkill,
        vec![rule([is(0, own)?, is(2, libc::SIGABRT)?])?],
    );
    permit(libc::SYS_tkill, vec![rule([is(1, libc::SIGABRT)?])?]);

    // To read, not to write or to make.
    let read_only = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    permit(libc::SYS_openat, vec![rule([without(2, read_only)?])?]);
    #[cfg(target_arch = "x86_64")]
    permit(libc::SYS_open, vec![rule([without(1, read_only)?])?]);
    if removes_sockets {
        permit(libc::SYS_unlinkat, vec![]);
        #[cfg(target_arch = "x86_64")]
        permit(libc::SYS_unlink, vec![]);
    }
    Ok(rules)
}

/// TCP, UDP and ping; the kernel's list of own addresses; names of interfaces.
fn sockets() -> anyhow::Result<Vec<SeccompRule>> {
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            rules.push(rule([is(0, family)?, is_of_type(kind)?])?);
        }
    }
    rules.push(rule([
        is(0, libc::AF_NETLINK)?,
        is(2, libc::NETLINK_ROUTE)?,
    ])?);
    rules.push(rule([
        is(0, libc::AF_UNIX)?,
        is_of_type(libc::SOCK_DGRAM)?,
    ])?);
    Ok(rules)
}

fn intruders() -> anyhow::Result<Rules> {
    let mut rules = whatever_the_arguments(&[INTRUDERS, INTRUDERS_HERE]);
    let mut end = |call, alternatives| rules.insert(call, alternatives);

    let mut clones = vec![rule([without(0, libc::CLONE_THREAD)?])?];
    for namespace in NAMESPACES {
        clones.push(rule([has(0, namespace)?])?);
    }
    end(libc::SYS_clone, clones);

    // Packet sockets, the kernel's ciphers, vsock to another enclave, and all that is rarer than
    // IPv6; and packets of own making.
    let above_inet6 = condition(0, SeccompCmpOp::Gt, libc::AF_INET6)?;
    let mut sockets = vec![rule([above_inet6, is_not(0, libc::AF_NETLINK)?])?];
    for family in [libc::AF_INET, libc::AF_INET6] {
        sockets.push(rule([is(0, family)?, is_of_type(libc::SOCK_RAW)?])?);
    }
    end(libc::SYS_socket, sockets);

    // Programs for the kernel to run.
    let programs = [
        libc::SO_ATTACH_FILTER,
        libc::SO_ATTACH_BPF,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        libc::SO_ATTACH_REUSEPORT_EBPF,
    ];
    let programs = programs.map(|option| rule([is(1, libc::SOL_SOCKET)?, is(2, option)?]));
    end(
        libc::SYS_setsockopt,
        programs.into_iter().collect::<Result<_, _>>()?,
    );
    Ok(rules)
}

fn whatever_the_arguments(lists: &[&[c_long]]) -> Rules {
    lists
        .iter()
        .flat_map(|list| list.iter())
        .map(|call| (*call, vec![]))
        .collect()
}

fn rule<const N: usize>(conditions: [SeccompCondition; N]) -> anyhow::Result<SeccompRule> {
    Ok(SeccompRule::new(conditions.into())?)
}

/// About the lower 32 bits of an argument: the kernel looks at no others of an int.
fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: c_int,
) -> anyhow::Result<SeccompCondition> {
    let value = u64::from(value.cast_unsigned());
    Ok(SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        operator,
        value,
    )?)
}

fn is(argument: u8, value: c_int) -> anyhow::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn is_not(argument: u8, value: c_int) -> anyhow::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::Ne, value)
}

/// Has all these bits.
fn has(argument: u8, bits: c_int) -> anyhow::Result<SeccompCondition> {
    let mask = u64::from(bits.cast_unsigned());
    condition(argument, SeccompCmpOp::MaskedEq(mask), bits)
}

/// Has none of these bits.
fn without(argument: u8, bits: c_int) -> anyhow::Result<SeccompCondition> {
    let mask = u64::from(bits.cast_unsigned());
    condition(argument, SeccompCmpOp::MaskedEq(mask), 0)
}

/// The second argument of socket, whatever its flags.
fn is_of_type(kind: c_int) -> anyhow::Result<SeccompCondition> {
    let mask = u64::from((!TYPE_FLAGS).cast_unsigned());
    condition(1, SeccompCmpOp::MaskedEq(mask), kind)
}

fn is_null(argument: u8) -> anyhow::Result<SeccompCondition> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    Ok(condition)
}

/// The second argument of ioctl, whose type differs between C libraries.
fn is_request<R>(request: R) -> anyhow::Result<SeccompCondition>
where
    R: TryInto<c_int, Error: std::error::Error + Send + Sync + 'static>,
{
    is(1, request.try_into()?)
}
