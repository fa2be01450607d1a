//! Wrong input: one line that says what to do, an exit status, and nothing left behind.

mod common;

use common::{Daemon, Enclave, ORIGINAL, in_enclave};
use nix::mount::{MsFlags, mount};
use std::fs;

fn clean(enclave: &Enclave) {
    assert!(!enclave.has_interface("netd0"));
    assert_eq!(enclave.resolv_conf(), ORIGINAL);
    let names = fs::read_dir(enclave.folder.path())
        .expect("folder")
        .flatten();
    let left: Vec<_> = names
        .map(|e| e.file_name())
        .filter(|n| n.to_string_lossy().contains("netd"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn wrong_command_lines_are_told_in_one_line() {
    in_enclave(|enclave| {
        for (arguments, part) in [
            (vec!["--confg", "x"], "--confg"),
            (vec!["--parent"], "--parent"),
            (vec!["--parent", "tcp:1:2"], "vsock:CID:PORT"),
            (vec!["--parent", "vsock:any:1"], "listening"),
            (vec!["--ready-timeout", "soon"], "soon"),
            (vec!["--log", "loud=yes,=="], "--log"),
            (vec!["--config", "/nowhere.toml"], "/nowhere.toml"),
            (vec!["command"], "command"),
        ] {
            let (error, status) = enclave.fails(&arguments);
            assert!(error.contains(part), "{arguments:?}: {error}");
            assert_eq!(status, 2, "{error}");
        }
        clean(&enclave);
    });
}

#[test]
fn an_images_configuration_is_checked_without_being_used() {
    in_enclave(|enclave| {
        let path = enclave.path("enclave.toml");
        let check = ["check", &path.display().to_string()];
        let good = "rules = ['allow tcp *:443']\n[program]\ncommand = ['/bin/x']\n";
        for (text, part) in [
            (good.replace("allow", "alow"), "alow tcp *:443"),
            (good.replace("tcp", "tcq"), "rules"),
            (good.replace("[program]", "[programme]"), "programme"),
            (format!("{good}user = ''"), "program.user"),
            ("publish = ['443']".to_owned(), "program"),
        ] {
            fs::write(&path, &text).expect("written");
            let (error, status) = enclave.fails(&check);
            assert!(
                error.contains(part) && error.contains(check[1]),
                "{text}: {error}"
            );
            assert_eq!(status, 2, "{error}");
        }
        fs::write(&path, good).expect("written");
        let mut daemon = Daemon::start(&check);
        assert!(daemon.wait().success());
        assert!(daemon.lines().is_empty(), "{:?}", daemon.lines());
        clean(&enclave);
    });
}

#[test]
fn wrong_configurations_are_told_in_one_line() {
    in_enclave(|enclave| {
        for (text, part) in [
            ("colour = 1", "colour"),
            ("network.mtu = 70000", "network.mtu"),
            ("network.address = 'here'", "network.address"),
            (
                "rules = ['allow everything please']",
                "allow everything please",
            ),
            ("[network", "line 1"),
        ] {
            let path = enclave.path("wrong.toml");
            fs::write(&path, text).expect("written");
            let path = path.display().to_string();
            let (error, status) = enclave.fails(&["--config", &path]);
            assert!(
                error.contains(part) && error.contains(&path),
                "{text}: {error}"
            );
            assert_eq!(status, 2, "{error}");
        }
        clean(&enclave);
    });
}

#[test]
fn help_and_version_are_no_errors() {
    for argument in ["--help", "--version"] {
        let mut daemon = Daemon::start(&[argument]);
        assert!(daemon.wait().success());
        assert!(daemon.lines().concat().contains("enclave"));
    }
}

#[test]
fn a_missing_tun_device_says_how_to_make_it() {
    in_enclave(|enclave| {
        let none = None::<&str>;
        mount(
            Some("tmpfs"),
            "/dev/net",
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .expect("mounted");
        let config = enclave.configure("").display().to_string();
        let (error, status) = enclave.fails(&["--config", &config, "--parent", "unix:/nowhere"]);
        assert!(error.contains("mknod /dev/net/tun c 10 200"), "{error}");
        assert!(error.contains("CONFIG_TUN"), "{error}");
        assert_eq!(status, 1);
        clean(&enclave);
    });
}

#[test]
fn without_permission_it_says_which_is_missing() {
    in_enclave(|enclave| {
        let config = enclave.configure("").display().to_string();
        let mut command = std::process::Command::new("setpriv");
        command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]);
        command.arg(env!("CARGO_BIN_EXE_enclave-netd"));
        command.args(["--config", &config, "--parent", "unix:/nowhere"]);
        let mut daemon = Daemon::spawn(command);
        let status = daemon.wait();
        let lines = daemon.lines();
        assert_eq!(status.code(), Some(1), "{lines:?}");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("CAP_NET_ADMIN"), "{lines:?}");
        clean(&enclave);
    });
}

#[test]
fn a_parent_that_never_comes_ends_the_wait_it_was_given() {
    in_enclave(|enclave| {
        let config = enclave.configure("").display().to_string();
        let parent = enclave.parent();
        let arguments = [
            "--config",
            &config,
            "--parent",
            &parent,
            "--ready-timeout",
            "1",
            "--",
            "true",
        ];
        let (error, status) = enclave.fails(&arguments);
        assert!(
            error.contains("no link to the parent within 1 s"),
            "{error}"
        );
        assert!(error.contains("--parent"), "{error}");
        assert_eq!(status, 1);
        clean(&enclave);
    });
}

#[test]
fn a_kernel_without_vsock_is_told_at_once() {
    // Only where the family is missing can this be seen.
    if nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Vsock,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    )
    .is_ok()
    {
        return;
    }
    in_enclave(|enclave| {
        let config = enclave.configure("").display().to_string();
        let (error, _) = enclave.fails(&["--config", &config]);
        assert!(error.contains("AF_VSOCK"), "{error}");
        clean(&enclave);
    });
}
