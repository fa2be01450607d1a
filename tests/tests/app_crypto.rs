//! `enclave-app crypto` for a program on the parent: what is wrong gets an answer, and it goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Daemons, Lab, Process, connect};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

const KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";

/// Daemons with port 5000 published, and the service with one tenant, without credentials.
fn up(lab: &Lab) -> (Daemons, Process) {
    let daemons = lab.up_with(&["--publish", "5000"], r#"publish = ["5000/tcp"]"#);
    let tenants = lab.config(&json!({"tenants": {"acme": {"keys": [KEY]}}}).to_string());
    let program = lab.binary("enclave-app");
    let line = [
        "AWS_EC2_METADATA_DISABLED=true",
        &program,
        "crypto",
        "--plain",
        "--tenants",
        &tenants,
    ];
    let mut service = lab.enclave.spawn("env", &line);
    service.wait_log("listening", 20);
    (daemons, service)
}

/// What a Python program on the parent is answered, message by message on one connection.
fn ask(lab: &Lab, messages: &[&str]) -> Vec<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/crypto_client.py");
    let line = [&[script, "127.0.0.1", "5000"], messages].concat();
    let answers = lab.parent.run("python3", &line).ok();
    answers
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn open(lab: &Lab) -> TcpStream {
    let stream = connect(&lab.parent, "192.0.2.1:5000".parse().unwrap(), 5).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

/// The next answer on a stream.
fn answer(mut stream: &TcpStream) -> Value {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut text = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut text).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn wrong_messages_are_answered_on_one_connection() {
    let lab = Lab::new();
    let (_daemons, mut service) = up(&lab);
    let message = |more: &str| format!(r#"{{"request_id": "r", "tenant_id": "acme", {more}}}"#);
    let (no_payload, not_base64) = (
        message(r#""action": "decrypt""#),
        message(r#""action": "decrypt", "encrypted_payload": "!""#),
    );
    let other_key = message(&format!(
        r#""action": "encrypt", "plaintext_result": "x", "kms_key_arn": "{}0""#,
        KEY.trim_end_matches('b')
    ));
    let no_credentials = message(r#""action": "encrypt", "plaintext_result": "x""#);
    let cases = [
        ("nonsense", "usage: the message is not JSON"),
        (
            r#"{"action": "steal", "request_id": "r"}"#,
            "is none of decrypt, encrypt and health",
        ),
        (
            r#"{"action": "decrypt", "tenant_id": "other", "request_id": "r"}"#,
            "permission: there is no tenant",
        ),
        (&no_payload, "encrypted_payload is missing"),
        (&not_base64, "is not base64"),
        (&other_key, "permission: tenant \"acme\" may not use"),
        (&no_credentials, "credentials: "),
        (r#"{"action": "health", "request_id": "r"}"#, ""),
    ];
    let answers = ask(&lab, &cases.map(|(message, _)| message));
    for ((message, expected), answer) in cases.iter().zip(&answers) {
        if message.contains("health") {
            let health = json!({
                "success": true, "status": "degraded", "attestation_ready": false,
                "kms_ready": false, "request_id": "r",
            });
            assert_eq!(*answer, health);
            continue;
        }
        let error = answer["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{message}: {answer}"));
        assert!(error.contains(expected), "{message}: {answer}");
        assert_eq!(answer["success"], false, "{message}");
        assert_eq!(
            answer["request_id"] == "r",
            *message != "nonsense",
            "{answer}"
        );
    }
    assert!(service.terminate().success());
}

#[test]
fn a_length_beyond_the_bound_is_answered_and_others_are_not_held_up() {
    let lab = Lab::new();
    let (_daemons, mut service) = up(&lab);
    let mut long = open(&lab);
    long.write_all(&(200_000_u32).to_be_bytes()).unwrap();
    long.write_all(&vec![b' '; 200_000]).unwrap();
    let told = answer(&long);
    assert!(
        told["error"].as_str().unwrap().contains("200000 bytes"),
        "{told}"
    );
    assert_eq!(
        long.read(&mut [0; 1]).unwrap(),
        0,
        "the connection has ended, and was not reset"
    );

    // Half a message, half a length, and nothing.
    let halves = [&[0, 0, 0, 9, b'{'][..], &[0, 0], &[]].map(|half| {
        let mut stream = open(&lab);
        stream.write_all(half).unwrap();
        stream
    });
    assert_eq!(ask(&lab, &[r#"{"action": "health"}"#])[0]["success"], true);
    for stream in halves {
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&stream).read(&mut [0; 1]).unwrap(), 0);
    }

    // What is quiet does not keep it from ending.
    let _quiet = open(&lab);
    assert!(service.terminate().success());
}

#[test]
fn wrong_tenants_are_named() {
    let lab = Lab::new();
    let program = lab.binary("enclave-app");
    for (text, named) in [
        (r#"{"tenants": {}}"#, "tenants is empty"),
        (
            r#"{"tenants": {"acme": {"keys": ["alias/x"]}}}"#,
            "\"alias/x\" is no key ARN",
        ),
        ("nonsense", "expected"),
    ] {
        let file = lab.config(text);
        let done = lab.enclave.run(&program, &["crypto", "--tenants", &file]);
        assert_eq!(done.code(), 2, "{done}");
        assert!(done.stderr.contains(named), "{done}");
    }
    // Outside an enclave nothing is sealed, so it must be asked for.
    let file = lab.config(&json!({"tenants": {"acme": {"keys": [KEY]}}}).to_string());
    let done = lab.enclave.run(&program, &["crypto", "--tenants", &file]);
    assert_eq!(done.code(), 7, "{done}");
}
