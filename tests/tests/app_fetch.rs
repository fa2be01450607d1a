//! `enclave-app fetch`: its report is true, and its errors name the step.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Lab, serve};
use serde_json::Value;
use std::io::Read;

/// Runs `fetch` in the enclave with the lab's CA, or with the roots it has by itself.
fn fetch(lab: &Lab, ca: Option<&str>, arguments: &[&str]) -> (i32, Value, String) {
    let program = lab.binary("enclave-app");
    let variable = ca.map(|ca| format!("SSL_CERT_FILE={ca}"));
    let mut line: Vec<&str> = variable.as_deref().into_iter().collect();
    line.extend([&program, "fetch"]);
    line.extend(arguments);
    let done = lab.enclave.run("env", &line);
    let report = serde_json::from_str(&done.stdout).unwrap_or_default();
    (done.code(), report, done.stderr)
}

#[test]
fn a_report_says_what_openssl_curl_and_the_server_say() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    let _unbound = lab.unbound();
    let _daemons = lab.up();
    std::fs::write(nginx.www.join("file"), vec![b'x'; 3_000_000]).unwrap();

    let (code, report, errors) = fetch(&lab, Some(&nginx.ca), &["https://web.lab.example/file"]);
    assert_eq!(code, 0, "{errors}");
    let request = &report["requests"][0];
    assert_eq!(request["status"], 200, "{report:#}");
    assert_eq!(request["http"], "2");
    assert_eq!(request["bytes"], 3_000_000);
    let sum = lab
        .enclave
        .shell(&format!("sha256sum < {}/file", nginx.www.display()))
        .ok();
    assert_eq!(request["sha256"], sum.split(' ').next().unwrap());
    let address = request["address"].as_str().unwrap();
    assert!(
        ["192.0.2.2:443", "[2001:db8:1::2]:443"].contains(&address),
        "{address}"
    );

    let tls = &request["tls"];
    assert_eq!(tls["version"], "TLSv1.3");
    assert_eq!(tls["alpn"], "h2");
    let certificate = &tls["certificate"];
    assert_eq!(certificate["subject"], "CN=web.lab.example");
    assert_eq!(certificate["issuer"], "CN=Lab test CA");
    let pem = nginx.ca.replace("ca.pem", "server.pem");
    let openssl = format!("openssl x509 -in {pem} -noout -fingerprint -sha256");
    let printed = lab.internet.shell(&openssl).ok();
    let printed = printed
        .trim()
        .split('=')
        .nth(1)
        .unwrap()
        .replace(':', "")
        .to_lowercase();
    assert_eq!(certificate["sha256"], Value::from(printed));

    let times = &request["times"];
    let of = |step: &str| {
        times[step]
            .as_f64()
            .unwrap_or_else(|| panic!("{step}: {times}"))
    };
    let steps: f64 = ["dns", "connect", "tls", "first_byte", "body"]
        .map(of)
        .iter()
        .sum();
    assert!(steps > 0.0 && steps <= of("total") + 0.01, "{times}");

    // The same by a client that others wrote.
    let curl = [
        "-sS",
        "--cacert",
        &nginx.ca,
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{size_download}",
    ];
    let curl = lab
        .enclave
        .run(
            "curl",
            &[&curl[..], &["https://web.lab.example/file"]].concat(),
        )
        .ok();
    assert_eq!(curl, "200 3000000");
}

#[test]
fn many_at_once_are_summed_up() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    let _unbound = lab.unbound();
    let _daemons = lab.up();
    let url = "https://web.lab.example/";
    let many = [
        "--count",
        "300",
        "--concurrency",
        "30",
        "--http",
        "1.1",
        url,
    ];
    let (code, report, errors) = fetch(&lab, Some(&nginx.ca), &many);
    assert_eq!(code, 0, "{errors}");
    let summary = &report["summary"];
    assert_eq!(summary["requests"], 300);
    assert_eq!(summary["failed"], 0);
    assert_eq!(summary["statuses"]["200"], 300);
    assert_eq!(report["requests"].as_array().unwrap().len(), 1);
    assert_eq!(nginx.access_log().matches("GET / HTTP/1.1").count(), 300);
    for step in ["dns", "connect", "tls", "first_byte", "total"] {
        let spread = &summary["milliseconds"][step];
        let of = |name: &str| spread[name].as_f64().unwrap();
        assert!(
            of("min") <= of("p50") && of("p50") <= of("p99"),
            "{step}: {spread}"
        );
    }

    let kept = ["--count", "20", "--reuse", "--each", url];
    let (code, report, errors) = fetch(&lab, Some(&nginx.ca), &kept);
    assert_eq!(code, 0, "{errors}");
    let reused = |request: &&Value| request["reused"] == true;
    let requests = report["requests"].as_array().unwrap();
    assert_eq!(
        (requests.len(), requests.iter().filter(reused).count()),
        (20, 19)
    );
}

#[test]
fn an_error_names_its_step() {
    let lab = Lab::new();
    let nginx = lab.nginx();
    let _unbound = lab.unbound();
    let _daemons = lab.up();
    // Takes requests and never answers.
    serve(
        &lab.internet,
        "192.0.2.2:7000".parse().unwrap(),
        |mut stream| {
            let _ = stream.read_to_end(&mut Vec::new());
        },
    );
    let ca = Some(nginx.ca.as_str());
    let (network, tls, request) = (3, 4, 9);
    for (url, ca, expected, step, named) in [
        (
            "https://nothere.lab.example/",
            ca,
            network,
            "dns",
            "failed to lookup",
        ),
        (
            "https://web.lab.example:81/",
            ca,
            network,
            "connect",
            "refused",
        ),
        (
            "https://198.51.100.1/",
            ca,
            network,
            "connect",
            "not done within 3 s",
        ),
        (
            "https://web.lab.example/",
            None,
            tls,
            "tls",
            "UnknownIssuer",
        ),
        (
            "https://chain2.lab.example/",
            ca,
            tls,
            "tls",
            "not valid for name",
        ),
        ("https://web.lab.example:80/", ca, tls, "tls", ""),
        (
            "http://192.0.2.2:7000/",
            ca,
            network,
            "request",
            "not done within 3 s",
        ),
        (
            "https://web.lab.example/nothere",
            ca,
            request,
            "status",
            "404, not 200",
        ),
    ] {
        let arguments = ["--timeout", "3", "--expect", "200", url];
        let (code, report, errors) = fetch(&lab, ca, &arguments);
        let error = &report["requests"][0]["error"];
        assert_eq!(error["step"], step, "{url}: {report:#}");
        assert!(
            error["message"].as_str().unwrap().contains(named),
            "{url}: {error}"
        );
        assert_eq!(code, expected, "{url}: {errors}");
        assert!(errors.contains(&format!("step {step}")), "{url}: {errors}");
        assert_eq!(report["summary"]["failed"], 1);
    }
    for wrong in [
        &["ftp://web.lab.example/"][..],
        &["--count", "0", "https://x/"],
        &["x"],
    ] {
        let (code, _, errors) = fetch(&lab, None, wrong);
        assert_eq!(code, 2, "{wrong:?}: {errors}");
    }
}
