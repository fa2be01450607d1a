//! `enclave-app volume` as far as a machine without an NFS client in its kernel can show it, and an
//! NFS server on the parent for programs that bring a client of their own. Mounts by a kernel are in
//! `tests/vm/init`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Done, Lab};
use std::fs;
use std::path::Path;

const EXPORT: &str = "100.64.0.3:/volume";
const ALLOW: [&str; 2] = ["--allow", "tcp 100.64.0.3:2049"];

/// `volume mount` in the enclave on an empty folder, which must be as before when that fails.
fn mount(lab: &Lab, options: &[&str]) -> Done {
    let folder = lab.enclave.dir().join("volume");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.to_str().unwrap();
    let line = [&["volume", "mount", EXPORT, path], options].concat();
    let done = lab.enclave.run(&lab.binary("enclave-app"), &line);
    if !done.status.success() {
        let mounts = lab.enclave.shell("cat /proc/mounts").ok();
        assert!(!mounts.contains(path), "{mounts}");
    }
    done
}

fn kernel_has_nfs() -> bool {
    let systems = fs::read_to_string("/proc/filesystems").unwrap();
    systems.lines().any(|line| line.ends_with("\tnfs4"))
}

#[test]
fn each_way_to_be_closed_is_told_apart() {
    let lab = Lab::new();
    let told = |rules: &str, host: &[&str]| {
        let _daemons = lab.up_with(host, rules);
        mount(&lab, &[])
    };
    let closed = [
        told("", &[]),
        told(r#"rules = ["deny tcp 100.64.0.3:2049"]"#, &ALLOW),
    ];
    for done in closed {
        assert_eq!(done.code(), 3, "{done}");
        let rule = r#""allow tcp 100.64.0.3:2049" must be among the rules"#;
        assert!(done.stderr.contains(rule), "{done}");
    }
    let done = told("", &ALLOW);
    assert_eq!(done.code(), 3, "{done}");
    assert!(done.stderr.contains("no server listens there"), "{done}");
    let done = mount(&lab, &[]);
    assert_eq!(done.code(), 3, "{done}");
    assert!(done.stderr.contains("is enclave-netd up?"), "{done}");
}

#[test]
fn wrong_arguments_are_told_before_anything_is_asked() {
    let lab = Lab::new();
    let full = lab.enclave.dir().join("full");
    fs::create_dir_all(full.join("inside")).unwrap();
    let full = full.to_str().unwrap();
    for (line, told) in [
        (&["mount", EXPORT, full][..], "not empty"),
        (&["mount", EXPORT, "/absent"], "no folder to mount on"),
        (&["mount", "/volume", "/mnt"], "HOST:/PATH"),
        (&["mount", "--nfs", "3", EXPORT, "/mnt"], "4.0, 4.1, 4.2"),
        (&["copy", "/a", "/b"], "one of FROM and TO is on an export"),
        (&["copy", EXPORT, "100.64.0.3:/b"], "one of FROM and TO"),
        (&["copy", "relative", EXPORT], "begins with / or ."),
        (&["copy", "/absent", EXPORT], "/absent: No such file"),
    ] {
        let line = [&["volume"], line].concat();
        let done = lab.enclave.run(&lab.binary("enclave-app"), &line);
        assert_eq!(done.code(), 2, "{done}");
        assert!(done.stderr.contains(told), "{told}: {done}");
    }
}

#[test]
fn the_kernel_mounts_it_or_says_what_it_lacks() {
    let lab = Lab::new();
    let (_server, export) = lab.ganesha();
    let _daemons = lab.up_with(&ALLOW, "");
    let pulled = lab.enclave.dir().join("pulled");
    let pulled = pulled.to_str().unwrap();
    let copy = ["volume", "copy", EXPORT, pulled];
    fs::write(export.join("hello"), "from the parent\n").unwrap();
    if kernel_has_nfs() {
        let done = mount(&lab, &["--", "cat", "/proc/self/mounts"]);
        assert!(done.stdout.contains("nosuid,nodev,noexec"), "{done}");
        lab.enclave.run(&lab.binary("enclave-app"), &copy).ok();
        let text = fs::read_to_string(Path::new(pulled).join("hello")).unwrap();
        assert_eq!(text, "from the parent\n");
        return;
    }
    eprintln!(
        "NOT TESTED HERE: this kernel has no NFS client; scripts/test-vm mounts with one that has"
    );
    let lack = "this kernel has no NFSv4 client: build the image with a kernel that has one";
    for done in [
        mount(&lab, &[]),
        lab.enclave.run(&lab.binary("enclave-app"), &copy),
    ] {
        assert_eq!(done.code(), 1, "{done}");
        assert!(done.stderr.contains(lack), "{done}");
    }
    // Which is found before the kernel is asked for anything.
    let folder = lab.enclave.dir().join("volume");
    let line = [
        "--bounding-set=-all",
        &lab.binary("enclave-app"),
        "volume",
        "mount",
        EXPORT,
    ];
    let line = [&line[..], &[folder.to_str().unwrap()]].concat();
    let done = lab.enclave.run("setpriv", &line);
    assert_eq!(done.code(), 6, "{done}");
    assert!(done.stderr.contains("needs CAP_SYS_ADMIN"), "{done}");
}

/// The way for kernels without NFS: programs with a client of their own, as they are.
#[test]
fn libnfs_reads_and_writes_a_tree_through_the_tunnel() {
    let lab = Lab::new();
    let (_server, export) = lab.ganesha();
    let _daemons = lab.up_with(&ALLOW, "");
    let url = |path: &str| format!("nfs://100.64.0.3/volume{path}?version=4");
    fs::create_dir(export.join("folder")).unwrap();
    let bytes: Vec<u8> = (0..20_000_001_u32)
        .map(|at| at.to_le_bytes()[usize::from(at % 3 == 0)])
        .collect();
    fs::write(export.join("folder/big"), &bytes).unwrap();

    let listed = lab.enclave.run("nfs-ls", &["-R", &url("")]).ok();
    assert!(listed.contains("folder/big"), "{listed}");
    let here = lab.enclave.dir().join("big");
    let from = [&url("/folder/big"), here.to_str().unwrap()];
    lab.enclave.run("nfs-cp", &from).ok();
    assert!(fs::read(&here).unwrap() == bytes, "another file has come");

    // Debian 12's nfs-cp writes no more than this to NFSv4.
    let small = lab.enclave.dir().join("small");
    fs::write(&small, &bytes[..2000]).unwrap();
    let to = [small.to_str().unwrap(), &url("/folder/small")];
    lab.enclave.run("nfs-cp", &to).ok();
    assert!(fs::read(export.join("folder/small")).unwrap() == bytes[..2000]);
    let text = lab.enclave.run("nfs-cat", &[&url("/folder/small")]);
    assert!(text.status.success(), "{text}");
}
