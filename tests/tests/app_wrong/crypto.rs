//! `crypto`, and a parent that means no good.

use crate::{reset, start};
use netd_tests::{Lab, connect};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What a service for programs on the parent is sent: the parent is not trusted.
#[test]
fn a_hostile_program_on_the_parent_holds_up_nobody() {
    const KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let lab = Lab::new();
    let _daemons = lab.up_with(&["--publish", "5000"], r#"publish = ["5000/tcp"]"#);
    let tenants = lab.config(&json!({"tenants": {"acme": {"keys": [KEY]}}}).to_string());
    let app = lab.binary("enclave-app");
    let no_role = "AWS_EC2_METADATA_DISABLED=true";
    let mut service = start(
        &lab,
        &[no_role, &app, "crypto", "--plain", "--tenants", &tenants],
    );
    let open = || {
        let stream = connect(&lab.parent, "192.0.2.1:5000".parse().unwrap(), 5).unwrap();
        let limit = Some(Duration::from_secs(30));
        stream.set_read_timeout(limit).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    };
    let framed = |message: &[u8]| {
        let length = u32::try_from(message.len()).unwrap();
        [&length.to_be_bytes()[..], message].concat()
    };
    let answer = |stream: &mut TcpStream| -> Value {
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut text = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let health = framed(br#"{"action": "health"}"#);

    // All on one connection, which goes on.
    let mut stream = open();
    let longest = [br#"{"action": "health"}"#, &[b' '; 65_516][..]].concat();
    let deep = [br#"{"action": "health", "x": "#, &[b'['; 60_000][..]].concat();
    for (message, word) in [
        (&b""[..], "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (&[b'['; 60_000], "fields"),
        (&deep, "not JSON"),
        (br#"{"action": "health"} {}"#, "not JSON"),
        (br#"{"action": "health""#, "not JSON"),
        (b"[]", "fields"),
        (b"{}", "fields"),
        (br#"{"action": 5}"#, "fields"),
        (br#"{"action": "health", "action": "health"}"#, "fields"),
        (br#"{"action": "encrypt"}"#, "tenant_id is missing"),
        (
            br#"{"action": "encrypt", "tenant_id": "\u0000"}"#,
            "there is no tenant",
        ),
        (
            br#"{"action": "encrypt", "tenant_id": "acme"}"#,
            "plaintext_result is missing",
        ),
        (
            br#"{"action": "encrypt", "tenant_id": "acme", "plaintext_result": ""}"#,
            "1 to 4096 bytes",
        ),
        (
            br#"{"action": "decrypt", "tenant_id": "acme", "encoding": "x"}"#,
            "fields",
        ),
        (&longest, ""),
    ] {
        stream.write_all(&framed(message)).unwrap();
        let told = answer(&mut stream);
        let error = told["error"].as_str().unwrap_or_default();
        let shown = String::from_utf8_lossy(&message[..message.len().min(60)]).into_owned();
        assert!(error.contains(word), "{shown}: {told}");
        assert_eq!(told["success"], word.is_empty(), "{shown}: {told}");
    }

    // Many messages before the first answer is read; then byte by byte.
    stream.write_all(&health.repeat(1000)).unwrap();
    for _ in 0..1000 {
        assert_eq!(answer(&mut stream)["success"], true);
    }
    for byte in &health {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(answer(&mut stream)["success"], true);

    // Disconnects: within a length, within a message, and with the answer still to come.
    for cut in [&health[..2], &health[..10], &health] {
        let mut stream = open();
        stream.write_all(cut).unwrap();
        reset(stream);
        let mut stream = open();
        stream.write_all(cut).unwrap();
        drop(stream);
    }
    // One that never takes its answers is not read for ever.
    let mut deaf = open();
    deaf.set_write_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let many = health.repeat(1000);
    let taken = (0..4000)
        .take_while(|_| deaf.write_all(&many).is_ok())
        .count();
    assert!(taken < 4000, "four million answers wait to be taken");

    stream.write_all(&health).unwrap();
    assert_eq!(answer(&mut stream)["success"], true);
    // It cuts off the deaf one, with time for it to change its mind.
    service.signal(Signal::SIGTERM);
    assert!(service.wait(20).success());
}
