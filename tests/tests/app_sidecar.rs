//! `enclave-app sidecar`: programs on the parent fetch what they could not, and no more than that.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Daemons, Lab, Machine, Nginx, Process, Server, until};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const PROXY: &str = "http://192.0.2.1:8080";

/// A lab with sites, and a sidecar whose port is published to the parent.
struct Bed {
    sidecar: Process,
    _daemons: Daemons,
    _unbound: Server,
    site: Process,
    nginx: Nginx,
    lab: Lab,
}

impl Bed {
    fn new(settings: &[&str]) -> Bed {
        let lab = Lab::new();
        let nginx = lab.nginx();
        let unbound = lab.unbound();
        let dir = nginx.ca.replace("/ca.pem", "");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/site.js");
        let mut site = lab
            .internet
            .spawn("node", &[script, &dir, "192.0.2.2", "8443"]);
        site.wait_log("listening", 20);
        let daemons = lab.up_with(&["--publish", "8080"], r#"publish = ["8080/tcp"]"#);
        let sidecar = start(&lab, &nginx.ca, settings);
        Bed {
            sidecar,
            _daemons: daemons,
            _unbound: unbound,
            site,
            nginx,
            lab,
        }
    }

    /// An ordinary client on the parent.
    fn client(&self) -> &Machine {
        &self.lab.parent
    }

    /// What curl gets by the sidecar, and the status.
    fn get(&self, path: &str, options: &[&str]) -> (String, String) {
        let url = format!("{PROXY}/{path}");
        let line = [&["-sS", "-w", "\n%{http_code}", &url], options].concat();
        let text = self.client().run("curl", &line).ok();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (body.to_owned(), status.to_owned())
    }

    fn json(&self, path: &str, options: &[&str]) -> Value {
        let (body, status) = self.get(path, options);
        serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {status} {body}"))
    }

    fn metric(&self, name: &str) -> u64 {
        let (text, _) = self.get("metrics", &[]);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {text}"))
            .parse()
            .unwrap()
    }
}

/// Starts a sidecar that trusts a CA, with settings NAME=VALUE.
fn start(lab: &Lab, ca: &str, settings: &[&str]) -> Process {
    let program = lab.binary("enclave-app");
    let trusted = format!("SSL_CERT_FILE={ca}");
    // Every port, unless a test says otherwise.
    let line = [
        &[&trusted, "SIDECAR_ALLOW=*:*"],
        settings,
        &[&program, "sidecar"],
    ]
    .concat();
    let mut sidecar = lab.enclave.spawn("env", &line);
    sidecar.wait_log("listening", 20);
    sidecar
}

#[test]
fn a_site_is_reached_in_three_ways() {
    let bed = Bed::new(&["SIDECAR_PLAIN_HTTP=upgrade"]);
    let hello = "hello from nginx over HTTP/2.0 to";
    let (page, status) = bed.get("https://web.lab.example/", &[]);
    assert!(
        page.starts_with(hello) && status == "200",
        "{status} {page}"
    );

    // As a proxy: absolute form, which becomes https, and a tunnel, in which curl makes the TLS.
    let curl = |options: &[&str]| {
        let all = [&["-sS", "-x", PROXY], options].concat();
        bed.client().run("curl", &all).ok()
    };
    let page = curl(&["http://web.lab.example/"]);
    assert!(page.starts_with(hello), "{page}");
    let page = curl(&["--cacert", &bed.nginx.ca, "https://web.lab.example/"]);
    assert!(page.starts_with(hello), "{page}");
    assert_eq!(bed.metric("sidecar_tunnels_total"), 1);

    // Python's client, by its environment.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/https_get.py");
    let proxy = format!("https_proxy={PROXY}");
    let python = [
        &proxy,
        "python3",
        script,
        "https://web.lab.example/",
        &bed.nginx.ca,
    ];
    let page = bed.client().run("env", &python).ok();
    assert!(page.contains("hello from nginx over HTTP/1.1"), "{page}");

    // The absolute form with https, which some clients use: one connection, two requests.
    let mut stream = bed
        .client()
        .inside(|| TcpStream::connect("192.0.2.1:8080"))
        .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
        .write_all(b"GET https://web.lab.example/ HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    stream
        .write_all(b"GET https://web.lab.example/secret/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(
        text.contains(hello) && text.contains("the answer to /secret/1"),
        "{text}"
    );

    assert_eq!(bed.get("health", &[]).0, r#"{"status":"ok"}"#);
}

#[test]
fn who_the_site_is_is_made_sure_of_in_the_enclave() {
    let bed = Bed::new(&[]);
    let dir = bed.nginx.ca.replace("/ca.pem", "");
    let (certificate, key) = (format!("{dir}/server.pem"), format!("{dir}/server.key"));
    let old = [
        "s_server",
        "-accept",
        "192.0.2.2:8444",
        "-tls1_2",
        "-www",
        "-cert",
        &certificate,
        "-key",
        &key,
    ];
    let mut old = bed.lab.internet.spawn("openssl", &old);
    old.wait_log("ACCEPT", 20);
    let trouble = |path: &str| {
        let (body, status) = bed.get(path, &[]);
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {body}"));
        (status, body["why"].as_str().unwrap().to_owned())
    };
    let tls = ("502".to_owned(), "tls".to_owned());
    assert_eq!(trouble("https://chain2.lab.example/"), tls, "another name");
    assert_eq!(trouble("https://web.lab.example:8444/"), tls, "TLS 1.2");
    assert_eq!(trouble("https://web.lab.example:80/"), tls, "no TLS at all");
    assert_eq!(
        trouble("https://nothere.lab.example/"),
        ("502".to_owned(), "dns".to_owned())
    );
    assert_eq!(
        trouble("https://web.lab.example:1/"),
        ("502".to_owned(), "connect".to_owned())
    );
    assert_eq!(trouble("http://web.lab.example/").0, "400", "plain");
    assert_eq!(bed.metric("sidecar_troubles_total{why=\"tls\"}"), 3);
    drop(bed.sidecar);

    // Others are believed, or older versions spoken, only where it is set so.
    let settings = ["SIDECAR_LISTEN=[::]:8080", "SIDECAR_TLS_OLDEST=1.2"];
    let bed = Bed {
        sidecar: start(&bed.lab, &bed.nginx.ca, &settings),
        ..bed
    };
    let (page, status) = bed.get("https://web.lab.example:8444/", &[]);
    assert!(
        status == "200" && page.contains("TLSv1.2"),
        "{status} {page}"
    );
    drop(bed.sidecar);
    let settings = ["SIDECAR_ROOTS=built-in"];
    let bed = Bed {
        sidecar: start(&bed.lab, &bed.nginx.ca, &settings),
        ..bed
    };
    let (body, status) = bed.get("https://web.lab.example/", &[]);
    assert!(
        status == "502" && body.contains("UnknownIssuer"),
        "{status} {body}"
    );
}

#[test]
fn it_is_no_way_into_the_enclave_or_past_the_list() {
    let bed = Bed::new(&["SIDECAR_ALLOW=*:*", "SIDECAR_PLAIN_HTTP=allow"]);
    let _private = bed.lab.enclave.node(9000);
    let page = bed
        .lab
        .enclave
        .run("curl", &["-sS", "http://127.0.0.1:9000/"])
        .ok();
    assert!(page.contains("hello from node"), "{page}");
    let ways = [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "100.64.0.2",
        "[fd00:6e65:7464::2]",
        "100.64.0.3",
        "169.254.169.254",
        "10.0.0.1",
    ];
    for host in ways {
        let (body, status) = bed.get(&format!("http://{host}:9000/"), &["-g"]);
        assert_eq!(status, "403", "{host}: {body}");
        let absolute = [
            "-sS",
            "-g",
            "-x",
            PROXY,
            "-w",
            "%{http_code}",
            "-o",
            "/dev/null",
        ];
        let url = format!("http://{host}:9000/");
        let done = bed.client().run("curl", &[&absolute[..], &[&url]].concat());
        assert_eq!(done.stdout, "403", "{host}: {done}");
        let tunnel = [
            "-sS",
            "-g",
            "-p",
            "-x",
            PROXY,
            "-w",
            "%{http_connect}",
            "-o",
            "/dev/null",
        ];
        let done = bed.client().run("curl", &[&tunnel[..], &[&url]].concat());
        assert_eq!(done.stdout, "403", "{host}: {done}");
    }
    let refused = 3 * ways.len() as u64;
    assert_eq!(
        bed.metric("sidecar_troubles_total{why=\"refused\"}"),
        refused
    );
    drop(bed.sidecar);

    // A list of names and addresses.
    let settings = [
        "SIDECAR_ALLOW=*.lab.example:443, 127.0.0.1:9000",
        "SIDECAR_PLAIN_HTTP=allow",
    ];
    let bed = Bed {
        sidecar: start(&bed.lab, &bed.nginx.ca, &settings),
        ..bed
    };
    for (path, expected) in [
        ("https://web.lab.example/", "200"),
        ("http://127.0.0.1:9000/", "200"),
        ("https://web.lab.example:8443/echo", "403"),
        ("https://192.0.2.2/", "403"),
        ("https://web.lab.example.evil.example/", "403"),
    ] {
        let (body, status) = bed.get(path, &[]);
        assert_eq!(status, expected, "{path}: {body}");
    }
}

#[test]
fn bodies_flow_through_and_are_never_gathered() {
    let bed = Bed::new(&[]);
    let size: u64 = 200 << 20;
    let file = bed.nginx.www.join("big");
    let make = format!("head -c {size} /dev/urandom > {}", file.display());
    bed.lab.internet.shell(&make).ok();
    let sum = bed
        .lab
        .internet
        .shell(&format!("sha256sum < {}", file.display()))
        .ok();
    let sum = sum.split(' ').next().unwrap();

    let down = format!("curl -sS {PROXY}/https://web.lab.example/big | sha256sum");
    assert!(bed.client().shell(&down).ok().starts_with(sum));
    let path = file.to_str().unwrap();
    // With a length, and in chunks from a pipe, whose length nobody knows.
    let whole = bed.json("https://web.lab.example:8443/echo", &["-T", path]);
    assert_eq!(
        (&whole["length"], &whole["sha256"]),
        (&Value::from(size), &Value::from(sum))
    );
    assert_eq!(whole["headers"]["content-length"], size.to_string());
    let piped = format!("cat {path} | curl -sS -T - {PROXY}/https://web.lab.example:8443/echo");
    let piped: Value = serde_json::from_str(&bed.client().shell(&piped).ok()).unwrap();
    assert_eq!(
        (&piped["length"], &piped["sha256"]),
        (&Value::from(size), &Value::from(sum))
    );

    // The program runs behind env, which became it.
    let status = std::fs::read_to_string(format!("/proc/{}/status", bed.sidecar.pid())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(
        peak < 64 * 1024,
        "{peak} KiB of memory for bodies of {size} bytes"
    );
    assert!(bed.metric("sidecar_sent_bytes_total") >= 2 * size);
    assert!(bed.metric("sidecar_received_bytes_total") >= size);

    // What has come is passed on before the rest is there.
    let url = format!("{PROXY}/https://web.lab.example:8443/drip");
    let mut slow = bed.client().spawn("curl", &["-sS", "-N", &url]);
    slow.wait_log("first", 20);
    assert!(!slow.log().contains("second"));
    bed.get("https://web.lab.example:8443/go", &[]);
    slow.wait_log("second", 20);
    assert!(slow.wait(20).success());
}

#[test]
fn what_is_for_one_hop_is_not_passed_on() {
    let bed = Bed::new(&[]);
    let told = bed.json(
        "https://web.lab.example:8443/echo/x?a=b",
        &[
            "-H",
            "Connection: keep-alive, X-Private",
            "-H",
            "X-Private: 1",
            "-H",
            "X-Public: 1",
            "-H",
            "Proxy-Authorization: Basic eDp5",
            "-H",
            "TE: trailers",
            "-H",
            "Host: evil.example",
            "-H",
            "Authorization: Bearer t",
            "-X",
            "DELETE",
        ],
    );
    assert_eq!(told["method"], "DELETE");
    assert_eq!(told["url"], "/echo/x?a=b");
    let headers = &told["headers"];
    assert_eq!(headers["host"], "web.lab.example:8443");
    assert_eq!(headers["x-public"], "1");
    assert_eq!(headers["authorization"], "Bearer t");
    assert!(
        headers["via"]
            .as_str()
            .unwrap()
            .starts_with("1.1 enclave-sidecar-"),
        "{headers}"
    );
    for gone in [
        "x-private",
        "proxy-authorization",
        "te",
        "keep-alive",
        "proxy-connection",
    ] {
        assert!(headers[gone].is_null(), "{gone}: {headers}");
    }
    let url = format!("{PROXY}/https://web.lab.example:8443/hop");
    let answer = bed.client().run("curl", &["-sS", "-D", "-", &url]).ok();
    assert!(
        answer.contains("x-public: 1") && answer.contains("via: 1.1 "),
        "{answer}"
    );
    assert!(!answer.contains("x-private"), "{answer}");
}

#[test]
fn safe_requests_are_tried_again_and_connections_kept() {
    let mut bed = Bed::new(&["SIDECAR_ATTEMPTS=4", "SIDECAR_BACKOFF_MILLISECONDS=20"]);
    let site = "https://web.lab.example:8443";
    let told = bed.json(&format!("{site}/fails/get/2"), &[]);
    assert_eq!(told["count"], 3);
    assert_eq!(bed.metric("sidecar_retries_total"), 2);
    for (name, options) in [
        ("post", &["-X", "POST"][..]),
        ("body", &["-X", "GET", "-d", "x"]),
    ] {
        let (_, status) = bed.get(&format!("{site}/fails/{name}/2"), options);
        assert_eq!(status, "503", "{name}");
    }
    let (_, status) = bed.get(&format!("{site}/fails/long/9"), &[]);
    assert_eq!(status, "503");
    assert_eq!(bed.metric("sidecar_retries_total"), 2 + 3);

    let before = bed.metric("sidecar_connections_total");
    for _ in 0..10 {
        bed.json(&format!("{site}/echo"), &[]);
    }
    // Answers that were not read to their end cost a connection each; these were.
    assert!(bed.metric("sidecar_connections_total") <= before + 1);

    // A kept connection that died does not fail the request after it.
    bed.site.kill();
    let dir = bed.nginx.ca.replace("/ca.pem", "");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/site.js");
    bed.site = bed
        .lab
        .internet
        .spawn("node", &[script, &dir, "192.0.2.2", "8443"]);
    bed.site.wait_log("listening", 20);
    let told = bed.json(&format!("{site}/echo"), &[]);
    assert_eq!(told["method"], "GET");
}

#[test]
fn a_tunnel_ends_with_either_side_and_the_service_in_order() {
    let mut bed = Bed::new(&["SIDECAR_TUNNELS=2"]);
    let open = || {
        let mut stream = bed
            .lab
            .parent
            .inside(|| TcpStream::connect("192.0.2.1:8080"))
            .unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .write_all(b"CONNECT web.lab.example:80 HTTP/1.1\r\n\r\n")
            .unwrap();
        let mut line = [0; 12];
        stream.read_exact(&mut line).unwrap();
        (stream, String::from_utf8(line.to_vec()).unwrap())
    };
    let (first, told) = open();
    assert_eq!(told, "HTTP/1.1 200");
    let (_second, told) = open();
    assert_eq!(told, "HTTP/1.1 200");
    assert_eq!(open().1, "HTTP/1.1 503", "a third");
    drop(first);
    let again = until(20, "the tunnel's place is free", || {
        let (stream, told) = open();
        (told == "HTTP/1.1 200").then_some(stream)
    });
    let mut again = again;
    again.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    again.read_to_string(&mut text).unwrap();
    assert!(text.contains("hello from nginx over HTTP/1.0"), "{text}");
    assert!(bed.sidecar.terminate().success());
}

#[test]
fn wrong_settings_are_named() {
    let lab = Lab::new();
    let program = lab.binary("enclave-app");
    for (setting, named) in [
        ("SIDECAR_ATTEMPTS=0", "attempts is 0; it may be 1 to 10"),
        ("SIDECAR_ATTEMPS=3", "SIDECAR_ATTEMPS"),
        ("SIDECAR_ALLOW=10.0.0", "\"10.0.0\" is no rule"),
        ("SIDECAR_ROOTS=/nowhere.pem", "/nowhere.pem"),
    ] {
        let done = lab.enclave.run("env", &[setting, &program, "sidecar"]);
        assert_eq!(done.code(), 2, "{done}");
        assert!(done.stderr.contains(named), "{done}");
    }
}
