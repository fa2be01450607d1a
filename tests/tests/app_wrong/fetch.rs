//! `fetch` of sites that break the rules.

use crate::{SITE, expired_site, reset, wrong_site};
use netd_tests::{Lab, serve};
use serde_json::Value;
use std::io::Read;

#[test]
fn a_client_names_the_step_at_which_a_site_goes_wrong() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    let _unbound = lab.unbound();
    let _expired = expired_site(&lab, &nginx);
    wrong_site(&lab);
    // Resets whoever says hello.
    serve(
        &lab.internet,
        "192.0.2.2:7002".parse().unwrap(),
        |mut stream| {
            let _ = stream.read(&mut [0; 100]);
            reset(stream);
        },
    );
    let _daemons = lab.up();
    let app = lab.binary("enclave-app");
    let (network, tls) = (3, 4);
    let at = |path: &str| format!("http://{SITE}/{path}");
    for (url, code, step, word) in [
        (
            "https://web.lab.example:8444/".to_owned(),
            tls,
            "tls",
            "xpired",
        ),
        ("https://192.0.2.2:7002/".to_owned(), tls, "tls", "reset"),
        (at("reset"), network, "request", "reset"),
        (at("nothing"), network, "request", "closed before"),
        (at("nonsense"), network, "request", "pars"),
        (at("headers"), network, "request", "too large"),
        (at("half"), network, "body", "before"),
        (at("reset-midway"), network, "body", "reset"),
        (at("chunk"), network, "body", "chunk"),
    ] {
        let line = ["fetch", "--roots", &nginx.ca, "--timeout", "20", &url];
        let done = lab.enclave.run(&app, &line);
        assert_eq!(done.code(), code, "{url}: {done}");
        let report: Value = serde_json::from_str(&done.stdout).unwrap();
        let error = &report["requests"][0]["error"];
        assert_eq!(error["step"], step, "{url}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(word), "{url}: {message}");
    }
}
