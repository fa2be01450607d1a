use super::*;

fn error(text: &str) -> String {
    Config::parse(text).expect_err(text).to_string()
}

#[test]
fn no_file_means_the_documented_defaults() {
    let config = Config::load(None).expect("defaults");

    assert_eq!(config.parent.to_string(), "vsock:3:1024");
    assert_eq!(config.network.interface, "netd0");
    assert_eq!(
        (config.network.mtu, config.network.queue_length),
        (1500, 4096)
    );
    assert_eq!(config.network.v4.address, Ipv4Addr::new(100, 64, 0, 2));
    assert_eq!(
        (config.network.v4.prefix, config.network.v6.prefix),
        (30, 64)
    );
    assert_eq!(
        config.dns.resolv_conf.as_deref(),
        Some(Path::new("/etc/resolv.conf"))
    );
    assert_eq!(config.publish, Published::default());
    assert!(config.rules.is_empty());
}

#[test]
fn every_key_is_read() {
    let config = Config::parse(
        r#"
        parent = "unix:/run/netd.sock"
        publish = ["3000/tcp", "53/udp", "8080"]
        rules = ["allow tcp *:443", "deny 10.0.0.0/8"]
        [network]
        interface = "eth-x"
        mtu = 9000
        queue_length = 100
        address = "192.0.2.10/24"
        gateway = "192.0.2.1"
        parent_loopback = "192.0.2.2"
        address6 = "2001:db8::10/64"
        gateway6 = "2001:db8::1"
        parent_loopback6 = "2001:db8::2"
        [dns]
        resolv_conf = false
        search = ["example.com", "internal."]
        "#,
    )
    .expect("valid");

    assert_eq!(config.parent.to_string(), "unix:/run/netd.sock");
    assert_eq!(config.publish.tcp.iter().collect::<Vec<_>>(), [3000, 8080]);
    assert_eq!(config.publish.udp.iter().collect::<Vec<_>>(), [53]);
    assert_eq!(config.rules.len(), 2);
    assert_eq!(config.network.v6.gateway.to_string(), "2001:db8::1");
    assert_eq!(
        (config.network.mtu, config.network.queue_length),
        (9000, 100)
    );
    assert_eq!(config.dns.resolv_conf, None);
    assert_eq!(config.dns.search, ["example.com", "internal."]);
}

#[test]
fn errors_name_the_key_the_value_and_what_is_allowed() {
    let cases: &[(&str, &[&str])] = &[
        (
            "network.mtu = 70000",
            &["network.mtu", "70000", "1280 to 65520"],
        ),
        ("network.mtu = -1", &["network.mtu", "-1"]),
        (
            "network.mtu = 'x'",
            &["line 1", "network.mtu = 'x'", "invalid type"],
        ),
        ("network.queue_length = 0", &["queue_length", "1 to 65536"]),
        (
            "network.interface = 'a/b'",
            &["network.interface", "a/b", "letters"],
        ),
        ("network.interface = 'net%d'", &["network.interface"]),
        ("network.interface = ''", &["network.interface"]),
        (
            "network.address = '100.64.0.2'",
            &["network.address", "PREFIX"],
        ),
        (
            "network.address = '100.64.0.2/33'",
            &["network.address", "1 to 32"],
        ),
        (
            "network.address6 = 'fd00::/129'",
            &["network.address6", "1 to 128"],
        ),
        (
            "network.gateway = '100.64.0.256'",
            &["network.gateway", "256"],
        ),
        (
            "network.gateway = '100.64.0.2'",
            &["network.gateway", "differ", "network.address"],
        ),
        (
            "network.parent_loopback6 = 'fd00:6e65:7464::1'",
            &["differ from network.gateway6"],
        ),
        (
            "network.gateway = '127.0.0.1'",
            &["network.gateway", "unicast"],
        ),
        (
            "network.gateway6 = 'fe80::1'",
            &["network.gateway6", "unicast"],
        ),
        (
            "parent = 'tcp:1:2'",
            &["parent", "tcp:1:2", "vsock:CID:PORT"],
        ),
        ("parent = 'vsock:any:1024'", &["parent", "listening"]),
        ("publish = ['x/tcp']", &["publish", "x/tcp", "PORT/udp"]),
        ("publish = ['0']", &["publish"]),
        ("publish = ['53/sctp']", &["publish", "sctp"]),
        (
            "rules = ['permit *']",
            &["rules", "permit *", "allow nor deny"],
        ),
        (
            "dns.resolv_conf = 'resolv.conf'",
            &["dns.resolv_conf", "absolute"],
        ),
        ("dns.resolv_conf = true", &["dns.resolv_conf", "false"]),
        (
            "dns.resolv_conf = 3",
            &["line 1", "dns.resolv_conf = 3", "or false"],
        ),
        ("dns.search = ['a b']", &["dns.search", "a b"]),
        ("dns.search = ['a\\nnameserver 192.0.2.1']", &["dns.search"]),
        ("colour = 1", &["line 1", "colour", "unknown field"]),
        (
            "\n[network]\nmtuu = 1",
            &["line 3", "mtuu", "unknown field"],
        ),
        ("parent = ", &["line 1"]),
    ];
    for (text, parts) in cases {
        let error = error(text);
        assert!(!error.contains('\n'), "{error}");
        for part in *parts {
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

#[test]
fn a_missing_file_says_so() {
    let error = Config::load(Some(Path::new("/nowhere.toml"))).expect_err("missing");
    assert!(error.to_string().contains("/nowhere.toml"), "{error}");
}
