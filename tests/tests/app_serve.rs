//! `enclave-app serve`, reached from outside by a published port, and unmodified node beside it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Daemons, Lab, Process};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Both daemons with ports 3000 and 3001 published, and `serve` in the enclave.
fn up(lab: &Lab, arguments: &[&str]) -> (Daemons, Process) {
    let publish = ["--publish", "3000", "--publish", "3001"];
    let daemons = lab.up_with(&publish, r#"publish = ["3000/tcp", "3001/tcp"]"#);
    let program = lab.binary("enclave-app");
    let service = start(lab, &[&[&*program, "serve"], arguments].concat());
    (daemons, service)
}

/// Starts the service by a whole command line.
fn start(lab: &Lab, line: &[&str]) -> Process {
    let mut service = lab.enclave.spawn(line[0], &line[1..]);
    service.wait_log("listening", 20);
    service
}

#[test]
fn it_greets_beside_an_unmodified_node_server() {
    let lab = Lab::new();
    let (_daemons, mut service) = up(&lab, &[]);
    let _node = lab.enclave.node(3001);
    let get = |url: &str| lab.internet.run("curl", &["-sS", url]).ok();
    for host in ["192.0.2.1", "[2001:db8:1::1]"] {
        assert_eq!(
            get(&format!("http://{host}:3000/")),
            "Hello from Nitro Enclave!\n"
        );
        assert_eq!(
            get(&format!("http://{host}:3000/health")),
            r#"{"status":"ok"}"#
        );
        let page = get(&format!("http://{host}:3001/"));
        assert!(page.starts_with("hello from node"), "{page}");
    }
    // No enclave here, so no documents; a good client learns why, a bad one what to ask for.
    let code = [
        "-sS",
        "-w",
        " %{http_code}",
        "http://192.0.2.1:3000/attestation?nonce=00ff",
    ];
    let answer = lab.internet.run("curl", &code).ok();
    assert!(
        answer.ends_with(" 503") && answer.contains("attestation: "),
        "{answer}"
    );
    let answer = get("http://192.0.2.1:3000/attestation?nonce=q");
    assert!(answer.contains("hexadecimal"), "{answer}");

    assert!(service.terminate().success());
    let refused = lab.internet.run("curl", &["-sS", "http://192.0.2.1:3000/"]);
    assert!(!refused.status.success(), "{refused}");
}

#[test]
fn its_own_key_is_the_one_it_tells() {
    let lab = Lab::new();
    let (_daemons, service) = up(&lab, &["--tls", "--tls-name", "enclave.lab.example"]);
    let log = service.log();
    let key = log
        .split("key=\"")
        .nth(1)
        .and_then(|rest| rest.get(..64))
        .unwrap_or_else(|| panic!("{log}"));
    let bytes: Vec<u8> = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(&key[at..at + 2], 16).unwrap())
        .collect();
    std::fs::write(lab.dir().join("key"), bytes).unwrap();
    let base64 = lab
        .internet
        .shell(&format!("base64 -w0 {}/key", lab.dir().display()))
        .ok();
    let get = |pin: &str| {
        let to = "enclave.lab.example:3000:192.0.2.1";
        let pin = format!("sha256//{pin}");
        let options = [
            "-sS",
            "-k",
            "--pinnedpubkey",
            &pin,
            "--resolve",
            to,
            "-w",
            "%{http_version}",
        ];
        lab.internet.run(
            "curl",
            &[&options[..], &["https://enclave.lab.example:3000/"]].concat(),
        )
    };
    assert_eq!(get(&base64).ok(), "Hello from Nitro Enclave!\n2");
    let other = get(&format!("A{}", &base64[1..]));
    assert!(
        !other.status.success() || base64.starts_with('A'),
        "{other}"
    );
}

#[test]
fn a_document_names_the_key_of_the_connection_it_came_by() {
    let lab = Lab::new();
    let authority = lab.dir().join("authority");
    lab.authority(&authority);
    let publish = ["--publish", "3000"];
    let _daemons = lab.up_with(&publish, r#"publish = ["3000/tcp"]"#);
    let (folder, pcr0) = (
        format!("TEST_AUTHORITY={}", authority.display()),
        format!("TEST_PCR0={}", "aa".repeat(48)),
    );
    let program = lab.binary("attested-app");
    let _service = start(&lab, &["env", &folder, &pcr0, &program, "serve", "--tls"]);

    // A client: a nonce of its own, the document, and the key of the very connection.
    let url = "https://192.0.2.1:3000/attestation?nonce=00112233445566778899aabbccddeeff";
    let answer = lab.internet.run("curl", &["-sS", "-k", url]).ok();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let key = lab.internet.shell(
        "openssl s_client -connect 192.0.2.1:3000 </dev/null 2>/dev/null | openssl x509 -noout -pubkey \
         | openssl pkey -pubin -outform DER | sha256sum",
    );
    let key = key.ok();
    let key = key.split(' ').next().unwrap();
    assert_eq!(answer["tls_key_sha256"], key, "{answer}");

    let document = lab.dir().join("document");
    std::fs::write(&document, answer["document"].as_str().unwrap()).unwrap();
    let (document, root) = (
        document.to_str().unwrap().to_owned(),
        authority.join("bundle-0.der"),
    );
    let app = lab.binary("enclave-app");
    let verify = |nonce: &str, key: &str| {
        let user_data = format!("text:tls-key-sha256:{key}");
        let line = [
            "attest",
            "verify",
            &document,
            "--root",
            root.to_str().unwrap(),
            "--nonce",
            nonce,
            "--user-data",
            &user_data,
        ];
        lab.internet.run(&app, &line)
    };
    let nonce = "hex:00112233445566778899aabbccddeeff";
    verify(nonce, key).ok();
    // Another connection's key, or an old answer, is not believed.
    let other = format!(
        "{}{}",
        if key.starts_with('0') { '1' } else { '0' },
        &key[1..]
    );
    assert_eq!(verify(nonce, &other).code(), 7);
    assert_eq!(verify("hex:00", key).code(), 7);

    let raw = format!("{url}&format=cose");
    let raw = lab
        .internet
        .shell(&format!("curl -sS -k '{raw}' | head -c1 | od -An -tx1"))
        .ok();
    assert_eq!(raw.trim(), "84", "a CBOR array of four");
}

#[test]
fn certificates_of_a_ca_are_served() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    let (certificate, key) = (
        nginx.ca.replace("ca.pem", "server.pem"),
        nginx.ca.replace("ca.pem", "server.key"),
    );
    let files = [
        "--tls-certificate",
        &certificate,
        "--tls-key",
        &key,
        "--tls-oldest",
        "1.3",
    ];
    let (_daemons, _service) = up(&lab, &files);
    let url = "https://web.lab.example:3000/";
    let get = |more: &[&str]| {
        let options = [
            "-sS",
            "--cacert",
            &nginx.ca,
            "--resolve",
            "web.lab.example:3000:192.0.2.1",
        ];
        lab.internet
            .run("curl", &[&options[..], more, &[url]].concat())
    };
    assert_eq!(get(&[]).ok(), "Hello from Nitro Enclave!\n");
    let old = get(&["--tls-max", "1.2"]);
    assert!(!old.status.success(), "{old}");

    let program = lab.binary("enclave-app");
    let wrong = lab.enclave.run(
        &program,
        &["serve", "--tls-certificate", &nginx.ca, "--tls-key", &key],
    );
    assert_eq!(wrong.code(), 2, "{wrong}");
}

#[test]
fn floods_of_headers_and_bodies_are_refused_and_it_goes_on() {
    let lab = Lab::new();
    let (_daemons, mut service) = up(&lab, &["--connections", "20"]);
    let header = format!("X-Long: {}", "x".repeat(100_000));
    let url = "http://192.0.2.1:3000/";
    let status = ["-sS", "-o", "/dev/null", "-w", "%{http_code}"];
    let long = lab
        .internet
        .run("curl", &[&status[..], &["-H", &header, url]].concat());
    assert!(long.stdout == "431" || !long.status.success(), "{long}");
    let line =
        format!("head -c 1000000 /dev/zero | curl -sS -o /dev/null -w '%{{http_code}}' -T - {url}");
    let body = lab.internet.shell(&line);
    assert!(body.stdout == "413" || body.stdout == "405", "{body}");

    // Connections that say nothing take every place; whoever comes next waits for one to end.
    let connect = || {
        lab.internet
            .inside(|| TcpStream::connect("192.0.2.1:3000"))
            .unwrap()
    };
    let mut idle: Vec<_> = (0..20).map(|_| connect()).collect();
    let mut next = connect();
    next.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    next.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
    // One that says something wrong is ended at once.
    idle[0].write_all(b"nonsense\r\n\r\n").unwrap();
    let mut answer = String::new();
    next.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with(r#"{"status":"ok"}"#), "{answer}");

    service.signal(Signal::SIGTERM);
    assert!(service.wait(15).success());
}
