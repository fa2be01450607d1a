//! Wrong input: one line that says what to do, an exit status that is not 0, nothing left behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Done, Lab};
use std::fs;

/// What a failed start must leave as it was.
#[derive(Debug, PartialEq)]
struct State {
    interfaces: String,
    resolv_conf: String,
    resolv_confs: String,
    link_folder: Vec<String>,
}

fn state(lab: &Lab) -> State {
    let names = fs::read_dir(lab.dir().join("link")).unwrap();
    let mut link_folder: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    link_folder.sort();
    State {
        interfaces: lab.enclave.shell("ip -o link | cut -d: -f2").ok(),
        resolv_conf: lab.enclave.resolv_conf(),
        resolv_confs: lab.enclave.shell("ls -ld /etc/resolv.conf*").ok(),
        link_folder,
    }
}

/// Asserts that a start failed in good form, and that its line holds `words`.
fn is_refused(done: &Done, words: &[&str]) {
    assert_ne!(done.code(), 0, "{done}");
    assert_eq!(
        done.stderr.lines().count(),
        1,
        "one line was expected: {done}"
    );
    assert_eq!(done.stdout, "", "{done}");
    for word in words {
        assert!(done.stderr.contains(word), "{word:?} is not in it: {done}");
    }
}

#[test]
fn enclave_netd_refuses_wrong_configurations() {
    let lab = Lab::new();
    let before = state(&lab);
    let binary = lab.binary("enclave-netd");
    let parent = lab.link_address();
    let table = [
        ("colour = 'red'", &["colour", "line 1"][..]),
        ("[network]\naddres = '10.0.0.1/30'", &["addres", "line 2"]),
        (
            "[network]\naddress = '300.1.1.1/30'",
            &["network.address", "300.1.1.1"],
        ),
        ("[network]\naddress = '10.0.0.1'", &["network.address"]),
        (
            "[network]\naddress6 = 'fd00::1::2/64'",
            &["network.address6"],
        ),
        (
            "[network]\ngateway = '8.8.8.8.8'",
            &["network.gateway", "8.8.8.8.8"],
        ),
        ("[network]\nmtu = 100", &["network.mtu", "100"]),
        ("[network]\nmtu = 'large'", &["mtu"]),
        (
            "[network]\ninterface = 'a name that is too long'",
            &["network.interface"],
        ),
        ("parent = 'tcp:10.0.0.1:5'", &["parent", "tcp:10.0.0.1:5"]),
        ("publish = ['99999/tcp']", &["publish", "99999"]),
        ("publish = ['80/sctp']", &["publish", "80/sctp"]),
        ("rules = ['permit all']", &["rules", "permit all"]),
        ("[dns]\nresolv_conf = true", &["resolv_conf"]),
        ("this is no toml", &["line 1"]),
    ];
    for (text, words) in table {
        let config = lab.config(text);
        let done = lab
            .enclave
            .run(&binary, &["--config", &config, "--parent", &parent]);
        is_refused(&done, words);
        assert_eq!(state(&lab), before, "{text}");
    }
    for (arguments, words) in [
        (
            &["--config", "/no/such/file.toml"][..],
            &["/no/such/file.toml"][..],
        ),
        (&["--config", "/"], &["/"]),
        (&["--parent", "nowhere"], &["--parent", "nowhere"]),
        (&["--parent", "unix:"], &["--parent"]),
        (&["--colour"], &["--colour"]),
    ] {
        let done = lab.enclave.run(&binary, arguments);
        is_refused(&done, words);
        assert_eq!(state(&lab), before, "{arguments:?}");
    }
}

#[test]
fn enclave_netd_says_what_the_machine_lacks() {
    let lab = Lab::new();
    let before = state(&lab);
    let binary = lab.binary("enclave-netd");
    let parent = lab.link_address();

    let done = lab.enclave.run_as_nobody(&binary, &["--parent", &parent]);
    is_refused(&done, &["CAP_NET_ADMIN"]);
    assert_eq!(state(&lab), before);

    // No parent, where it is told not to wait for ever.
    let quiet = [
        "--log",
        "error",
        "--parent",
        &parent,
        "--ready-timeout",
        "1",
    ];
    let done = lab.enclave.run(&binary, &quiet);
    is_refused(&done, &["--parent"]);
    assert_eq!(state(&lab), before);

    lab.enclave.shell("mount -t tmpfs nothing /dev/net").ok();
    let done = lab.enclave.run(&binary, &["--parent", &parent]);
    is_refused(&done, &["/dev/net/tun"]);
    assert_eq!(state(&lab), before);
}

#[test]
fn a_second_enclave_netd_leaves_the_first_in_peace() {
    let lab = Lab::new();
    let _daemons = lab.up();
    let before = state(&lab);
    let done = lab.enclave.run(
        &lab.binary("enclave-netd"),
        &["--parent", &lab.link_address()],
    );
    is_refused(&done, &["netd0"]);
    assert_eq!(state(&lab), before);
    lab.enclave.run("ping", &["-c1", "-W2", "100.64.0.1"]).ok();
}

#[test]
fn host_netd_refuses_wrong_input() {
    let lab = Lab::new();
    let before = state(&lab);
    let binary = lab.binary("host-netd");
    let link = lab.link_address();
    let table = [
        (
            &["--config", "/no/such/file.toml"][..],
            &["/no/such/file.toml"][..],
        ),
        (&["--listen", "nowhere"], &["nowhere"]),
        (
            &["--listen", "unix:/no/such/folder/sock"],
            &["/no/such/folder/sock"],
        ),
        (&["--listen", &link, "--publish", "99999"], &["99999"]),
        (&["--listen", &link, "--publish", "80/sctp"], &["80/sctp"]),
        (
            &["--listen", &link, "--publish", "192.0.2.77:7000"],
            &["192.0.2.77:7000"],
        ),
        (&["--listen", &link, "--publish", "80"], &["80"]),
        (
            &["--listen", &link, "--allow", "everything please"],
            &["everything please"],
        ),
        (
            &["--listen", &link, "--deny", "10.0.0.0/99"],
            &["10.0.0.0/99"],
        ),
        (
            &["--listen", &link, "--capture", "/no/such/folder/x"],
            &["/no/such/folder/x"],
        ),
        (&["--listen", &link, "--cid", "x"], &["x"]),
        (&["--colour"], &["--colour"]),
    ];
    for (arguments, words) in table {
        is_refused(&lab.parent.run_as_nobody(&binary, arguments), words);
        assert_eq!(state(&lab), before, "{arguments:?}");
    }
    for (text, words) in [
        ("colour = 'red'", &["colour", "line 1"][..]),
        ("listen = 'nowhere'", &["listen", "nowhere"]),
        ("publish = ['x']", &["publish", "x"]),
        ("rules = ['permit all']", &["rules", "permit all"]),
        ("max_flows = 0", &["max_flows", "0"]),
        ("ring_memory_mib = 1", &["ring_memory_mib", "1"]),
        ("cids = []", &["cids"]),
        (
            "[[enclave]]\ncid = 16\npublish = ['7000']\n[[enclave]]\ncid = 17\npublish = ['7000:80']",
            &["cid = 16", "cid = 17", "7000:7000/tcp", "7000:80/tcp"],
        ),
        (
            "[[enclave]]\ncid = 16\n[[enclave]]\ncid = 16",
            &["two", "cid = 16"],
        ),
        ("[[enclave]]\ncid = 2", &["cid = 2", "above 3"]),
        ("this is no toml", &["line 1"]),
    ] {
        let config = lab.config(text);
        let done = lab.parent.run_as_nobody(&binary, &["--config", &config]);
        is_refused(&done, words);
        assert_eq!(state(&lab), before, "{text}");
    }
}

#[test]
fn host_netd_does_not_take_what_another_holds() {
    let lab = Lab::new();
    let binary = lab.binary("host-netd");
    let link = lab.link_address();
    let _first = lab.start_host(&["--publish", "7000"]);
    let before = state(&lab);

    let done = lab.parent.run_as_nobody(&binary, &["--listen", &link]);
    is_refused(&done, &[lab.link().to_str().unwrap()]);
    assert_eq!(state(&lab), before, "the first one's socket is in place");

    let other = format!("unix:{}/link/other.sock", lab.dir().display());
    let done = lab
        .parent
        .run_as_nobody(&binary, &["--listen", &other, "--publish", "7000"]);
    is_refused(&done, &["7000"]);
    assert_eq!(state(&lab), before);

    // Not a socket: somebody's file is not removed.
    let file = lab.dir().join("link/file");
    fs::write(&file, "precious").unwrap();
    let at = format!("unix:{}", file.display());
    let done = lab.parent.run_as_nobody(&binary, &["--listen", &at]);
    is_refused(&done, &[file.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    // The first still serves.
    let _enclave = lab.start_enclave("");
}

#[test]
fn host_netd_takes_over_the_socket_of_a_dead_one() {
    let lab = Lab::new();
    let mut first = lab.start_host(&[]);
    first.kill();
    assert!(lab.link().exists());
    let _second = lab.start_host(&[]);
    let _enclave = lab.start_enclave("");
}
