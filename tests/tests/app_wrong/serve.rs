//! `serve`, asked for what it does not have.

use crate::start;
use netd_tests::{Lab, connect};
use std::io::{Read, Write};

#[test]
fn a_server_answers_what_is_wrong_with_a_request() {
    let lab = Lab::new();
    let _daemons = lab.up_with(&["--publish", "3000"], r#"publish = ["3000/tcp"]"#);
    let app = lab.binary("enclave-app");
    let mut service = start(&lab, &[&app, "serve"]);
    let get = |path: &str, options: &[&str]| {
        let url = format!("http://192.0.2.1:3000{path}");
        let line = [&["-sS", "-w", " %{http_code}", &url], options].concat();
        lab.internet.run("curl", &line).ok()
    };
    let nonce = |bytes: usize| format!("/attestation?nonce={}", "00".repeat(bytes));
    let many: Vec<String> = (0..110).map(|n| format!("X-{n}: 1")).collect();
    let many: Vec<&str> = many.iter().flat_map(|header| ["-H", header]).collect();
    let long = format!("X-Long: {}", "x".repeat(50_000));
    let path = format!("/{}", "x".repeat(50_000));
    for (path, options, status, word) in [
        (
            "/attestation",
            &[][..],
            400,
            "ask for /attestation?nonce=HEX",
        ),
        ("/attestation?nonce=", &[], 400, "1 to 512 bytes"),
        ("/attestation?nonce=0", &[], 400, "hexadecimal"),
        ("/attestation?nonce=xyz", &[], 400, "hexadecimal"),
        ("/attestation?nonce=00&nonce=11", &[], 400, "nonce"),
        ("/attestation?nonce=00&format=xml", &[], 400, "nonce"),
        (&nonce(513), &[], 400, "1 to 512 bytes"),
        // As long as it may be: what is missing is the enclave.
        (&nonce(512), &[], 503, "attestation: there is no /dev/nsm"),
        ("/nothing", &[], 404, "/attestation?nonce="),
        ("/", &["-X", "POST"], 405, ""),
        ("/attestation?nonce=00", &["-X", "DELETE"], 405, ""),
        ("/", &["-H", &long], 431, ""),
        ("/", &many, 431, ""),
        (&path, &[], 431, ""),
    ] {
        let answer = get(path, options);
        let shown = &path[..path.len().min(40)];
        assert!(answer.ends_with(&format!(" {status}")), "{shown}: {answer}");
        assert!(answer.contains(word), "{shown}: {answer}");
    }
    for raw in [
        "nonsense\r\n\r\n",
        "GET / HTTP/7.0\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        let mut stream = connect(&lab.internet, "192.0.2.1:3000".parse().unwrap(), 5).unwrap();
        stream.write_all(raw.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{raw:?}: {answer}");
    }
    assert_eq!(get("/health", &[]), r#"{"status":"ok"} 200"#);
    assert!(service.terminate().success());
}
