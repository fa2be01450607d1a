//! `sidecar`: requests that are none, and sites that break the rules.

use crate::{SITE, expired_site, start, wrong_site};
use netd_tests::Lab;
use serde_json::Value;

#[test]
fn a_proxy_tells_wrong_requests_from_wrong_sites() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    let _unbound = lab.unbound();
    let _expired = expired_site(&lab, &nginx);
    wrong_site(&lab);
    let _daemons = lab.up_with(&["--publish", "8080"], r#"publish = ["8080/tcp"]"#);
    let (app, ca) = (
        lab.binary("enclave-app"),
        format!("SSL_CERT_FILE={}", nginx.ca),
    );
    let allow = "SIDECAR_ALLOW=*.lab.example:*, 192.0.2.2:*";
    let plain = "SIDECAR_PLAIN_HTTP=allow";
    let back_off = "SIDECAR_BACKOFF_MILLISECONDS=1";
    let mut sidecar = start(&lab, &[&ca, allow, plain, back_off, &app, "sidecar"]);
    let get = |path: &str| {
        let url = format!("http://192.0.2.1:8080/{path}");
        lab.parent
            .run("curl", &["-sS", "-g", "-w", "\n%{http_code}", &url])
    };
    let at = |path: &str| format!("http://{SITE}/{path}");
    let sites = [
        "reset",
        "nothing",
        "nonsense",
        "two-lengths",
        "switch",
        "headers",
    ];
    let broken = sites.map(|path| (at(path), "502", "exchange"));
    let others = [
        ("https://", "400", "bad_request"),
        ("https:///path", "400", "bad_request"),
        ("https://web.lab.example:99999/", "400", "bad_request"),
        ("https://[::1/", "400", "bad_request"),
        ("https://user:secret@web.lab.example/", "400", "bad_request"),
        ("ftp://web.lab.example/", "404", ""),
        ("nothing", "404", ""),
        ("https://192.0.2.3/", "403", "refused"),
        ("https://nothere.lab.example/", "502", "dns"),
        ("https://web.lab.example:1/", "502", "connect"),
        ("https://chain2.lab.example/", "502", "tls"),
        ("https://web.lab.example:8444/", "502", "tls"),
        ("https://web.lab.example:80/", "502", "tls"),
    ]
    .map(|(path, status, why)| (path.to_owned(), status, why));
    for (path, status, why) in others.into_iter().chain(broken) {
        let answer = get(&path).ok();
        let (body, got) = answer.rsplit_once('\n').unwrap();
        assert_eq!(got, status, "{path}: {body}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            body["why"].as_str().unwrap_or_default(),
            why,
            "{path}: {body}"
        );
        assert!(!body["error"].as_str().unwrap().is_empty(), "{path}");
        assert!(!body.to_string().contains("secret"), "{body}");
    }
    // What has begun cannot be taken back: the client's connection breaks off as well.
    for path in ["half", "reset-midway", "chunk"] {
        let done = get(&at(path));
        assert!(!done.status.success(), "{path}: {done}");
    }
    let page = get("https://web.lab.example/").ok();
    assert!(page.starts_with("hello from nginx"), "{page}");
    assert!(sidecar.terminate().success());
}
