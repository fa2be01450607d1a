//! What the enclave's network looks like, and what is left of it afterwards.

mod common;

use common::host::Host;
use common::{Daemon, Enclave, ORIGINAL, in_enclave, run};
use nix::sys::signal::Signal;
use std::fs;

const MARKER: &str = "# Written by enclave-netd";

fn ready(enclave: &Enclave, arguments: &[&str]) -> (Daemon, common::host::Link) {
    let host = Host::listen(enclave);
    let mut daemon = enclave.start(arguments);
    let link = host.accept();
    daemon.wait_for("ready");
    (daemon, link)
}

#[test]
fn interface_addresses_and_routes_are_set() {
    in_enclave(|enclave| {
        let (daemon, link) = ready(&enclave, &[]);

        let tun = run("ip", &["-j", "addr", "show", "netd0"]);
        for part in [
            r#""mtu":1500"#,
            r#""txqlen":4096"#,
            r#""UP""#,
            r#""local":"100.64.0.2","prefixlen":30"#,
            r#""local":"fd00:6e65:7464::2","prefixlen":64"#,
        ] {
            assert!(tun.contains(part), "{part} in {tun}");
        }
        assert!(!tun.contains("fe80"), "no link-local address: {tun}");
        assert!(run("ip", &["-j", "link", "show", "lo"]).contains(r#""UP""#));
        let route = run("ip", &["route", "get", "192.0.2.1"]);
        assert!(
            route.contains("via 100.64.0.1 dev netd0 src 100.64.0.2"),
            "{route}"
        );
        let route = run("ip", &["-6", "route", "get", "2001:db8::1"]);
        assert!(route.contains("via fd00:6e65:7464::1 dev netd0"), "{route}");
        let route = run("ip", &["route", "get", "100.64.0.3"]);
        assert!(
            route.starts_with("100.64.0.3 dev netd0"),
            "no broadcast: {route}"
        );
        assert!(!run("ip", &["route", "show", "table", "local"]).contains("broadcast 100.64"));
        let features = link.hello.features.to_string();
        assert_eq!(features, "checksum+tso4+tso6+uso");
        assert_eq!(link.hello.mtu, 1500);

        daemon.stop();
        assert!(
            !enclave.has_interface("netd0"),
            "the interface goes with the daemon"
        );
        assert_eq!(run("ip", &["route"]), "");
        assert_eq!(run("ip", &["-6", "route", "show", "default"]), "");
    });
}

#[test]
fn every_setting_of_the_network_is_followed() {
    in_enclave(|enclave| {
        let host = Host::listen(&enclave);
        let mut daemon = enclave.start_configured(
            r#"
            network.interface = "wan"
            network.mtu = 9000
            network.queue_length = 123
            network.address = "198.51.100.9/32"
            network.gateway = "203.0.113.1"
            network.address6 = "2001:db8:1::9/128"
            network.gateway6 = "2001:db8:2::1"
            "#,
            &[],
        );
        let link = host.accept();
        daemon.wait_for("ready");

        let tun = run("ip", &["-j", "addr", "show", "wan"]);
        assert!(
            tun.contains(r#""mtu":9000"#) && tun.contains(r#""txqlen":123"#),
            "{tun}"
        );
        let route = run("ip", &["route", "get", "192.0.2.1"]);
        assert!(
            route.contains("via 203.0.113.1 dev wan src 198.51.100.9"),
            "{route}"
        );
        let route = run("ip", &["-6", "route", "get", "2001:db8:3::1"]);
        assert!(route.contains("via 2001:db8:2::1 dev wan"), "{route}");
        assert_eq!(link.hello.v4.gateway.to_string(), "203.0.113.1");
        daemon.stop();
    });
}

#[test]
fn the_resolver_is_the_gateway_while_the_daemon_runs() {
    in_enclave(|enclave| {
        let (daemon, _link) = ready(&enclave, &[]);
        let text = enclave.resolv_conf();
        assert!(text.starts_with(MARKER), "{text}");
        assert!(
            text.ends_with("nameserver 100.64.0.1\nnameserver fd00:6e65:7464::1\n"),
            "{text}"
        );
        daemon.stop();
        assert_eq!(enclave.resolv_conf(), ORIGINAL);
    });
}

#[test]
fn the_resolver_is_put_back_by_the_run_after_a_kill() {
    in_enclave(|enclave| {
        let (mut daemon, _link) = ready(&enclave, &[]);
        daemon.signal(Signal::SIGKILL);
        daemon.wait();
        assert!(enclave.resolv_conf().starts_with(MARKER));
        assert!(!enclave.has_interface("netd0"));

        let (daemon, _link) = ready(&enclave, &[]);
        assert!(enclave.resolv_conf().starts_with(MARKER));
        daemon.stop();
        assert_eq!(enclave.resolv_conf(), ORIGINAL);
    });
}

#[test]
fn the_resolver_may_be_left_alone() {
    in_enclave(|enclave| {
        let host = Host::listen(&enclave);
        let config = enclave.path("alone.toml");
        fs::write(&config, "dns.resolv_conf = false").expect("written");
        let parent = enclave.parent();
        let before = fs::read("/etc/resolv.conf").ok();
        let mut daemon = Daemon::start(&[
            "--config",
            config.to_str().expect("UTF-8"),
            "--parent",
            &parent,
        ]);
        let _link = host.accept();
        daemon.wait_for("ready");
        assert_eq!(fs::read("/etc/resolv.conf").ok(), before);
        daemon.stop();
    });
}

#[test]
fn without_ipv6_it_warns_and_goes_on_with_ipv4() {
    in_enclave(|enclave| {
        for scope in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            // /proc/sys/net shows the namespace of the writer.
            run("sh", &["-c", &format!("echo 1 > {path}")]);
        }
        let host = Host::listen(&enclave);
        let mut daemon = enclave.start(&[]);
        daemon.wait_for("no IPv6 in this kernel or namespace");
        let _link = host.accept();
        daemon.wait_for("ready");

        assert!(run("ip", &["route"]).contains("default via 100.64.0.1"));
        assert!(
            !enclave.resolv_conf().contains("fd00"),
            "{}",
            enclave.resolv_conf()
        );
        daemon.stop();
    });
}

#[test]
fn a_default_route_in_the_way_is_named_and_nothing_is_left() {
    in_enclave(|enclave| {
        run("ip", &["link", "add", "eth0", "type", "veth"]);
        run("ip", &["addr", "add", "198.51.100.2/24", "dev", "eth0"]);
        run("ip", &["link", "set", "eth0", "up"]);
        run("ip", &["route", "add", "default", "via", "198.51.100.1"]);
        let config = enclave.configure("").display().to_string();

        let (error, status) = enclave.fails(&["--config", &config, "--parent", "unix:/nowhere"]);

        assert!(
            error.contains("default via 198.51.100.1 dev eth0"),
            "{error}"
        );
        assert_eq!(status, 1);
        assert!(!enclave.has_interface("netd0"));
        assert_eq!(enclave.resolv_conf(), ORIGINAL);
    });
}

#[test]
fn an_interface_of_that_name_is_named() {
    in_enclave(|enclave| {
        run("ip", &["link", "add", "netd0", "type", "veth"]);
        let config = enclave.configure("").display().to_string();
        let (error, status) = enclave.fails(&["--config", &config, "--parent", "unix:/nowhere"]);
        assert!(error.contains("netd0 is already there"), "{error}");
        assert!(error.contains("network.interface"), "{error}");
        assert_eq!(status, 1);
        assert_eq!(enclave.resolv_conf(), ORIGINAL);
    });
}
