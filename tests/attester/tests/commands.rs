//! `nsm` and `attest verify` as commands, in an enclave that is a test's.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use test_attester::Authority;

struct Enclave {
    dir: TempDir,
}

impl Enclave {
    fn new() -> Enclave {
        let dir = tempfile::tempdir().unwrap();
        Authority::default().save(dir.path());
        Enclave { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_attested-app"))
            .args(arguments)
            .current_dir(self.dir.path())
            .env("TEST_AUTHORITY", self.dir.path())
            .env("TEST_PCR0", "aa".repeat(48))
            .output()
            .unwrap()
    }

    /// What a call that succeeds answers.
    fn ok(&self, arguments: &[&str]) -> Value {
        let done = self.run(arguments);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&done.stdout).unwrap()
    }

    /// What a call that fails says, and its answer.
    fn fails(&self, arguments: &[&str], code: i32) -> (String, Vec<u8>) {
        let done = self.run(arguments);
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {said}");
        (said, done.stdout)
    }
}

#[test]
fn each_call_of_the_secure_module_answers_in_json() {
    let enclave = Enclave::new();
    let module = enclave.ok(&["nsm", "describe"]);
    assert_eq!(module["module_id"], "i-test-enc-test");
    assert_eq!(module["version"], "1.0.0");
    assert_eq!(module["max_pcrs"], 32);
    assert_eq!(module["locked_pcrs"].as_array().unwrap().len(), 16);
    assert_eq!(module["digest"], "SHA384");

    let pcr = enclave.ok(&["nsm", "describe-pcr", "0"]);
    assert_eq!(pcr["value"], "aa".repeat(48));
    assert_eq!(pcr["locked"], true);

    // SHA-384 of 48 zero bytes and "x".
    let extended = enclave.ok(&["nsm", "extend-pcr", "16", "--data", "text:x"]);
    let expected = "f42eb18dcc96216807ca9e870c07a51a";
    assert!(extended["value"].as_str().unwrap().starts_with(expected));
    let again = enclave.ok(&["nsm", "extend-pcr", "16", "--data", "hex:78"]);
    assert_eq!(extended, again);

    assert_eq!(enclave.ok(&["nsm", "lock-pcr", "16"])["locked"], true);
    assert_eq!(enclave.ok(&["nsm", "lock-pcrs", "20"])["range"], 20);
    let random = enclave.ok(&["nsm", "random", "--bytes", "600"]);
    assert_eq!(random["random"].as_str().unwrap().len(), 1200);
    assert_ne!(random, enclave.ok(&["nsm", "random", "--bytes", "600"]));
}

#[test]
fn what_the_secure_module_refuses_is_told() {
    let enclave = Enclave::new();
    let (said, _) = enclave.fails(&["nsm", "extend-pcr", "0", "--data", "text:x"], 7);
    assert!(said.contains("the PCR is locked"), "{said}");
    for call in [
        &["describe-pcr", "32"][..],
        &["lock-pcr", "32"],
        &["lock-pcrs", "33"],
    ] {
        let (said, _) = enclave.fails(&[&["nsm"], call].concat(), 2);
        assert!(said.contains("no such PCR"), "{said}");
    }
}

#[test]
fn a_document_is_made_and_verified() {
    let enclave = Enclave::new();
    let made = [
        "nsm",
        "attest",
        "--nonce",
        "hex:00ff",
        "--user-data",
        "text:hello",
    ];
    let text = enclave.ok(&made);
    fs::write(
        enclave.path("doc.base64"),
        text["document"].as_str().unwrap(),
    )
    .unwrap();
    let file = enclave.ok(&[&made[..], &["--out", "doc"]].concat());
    assert_eq!(
        file["bytes"].as_u64().unwrap(),
        fs::metadata(enclave.path("doc")).unwrap().len()
    );
    let pcrs = serde_json::json!({ "Measurements": { "PCR0": "aa".repeat(48) } });
    fs::write(enclave.path("pcrs.json"), pcrs.to_string()).unwrap();
    let one = format!("1={}", "01".repeat(48));
    let asked = [
        "--root",
        "bundle-0.der",
        "--pcrs",
        "pcrs.json",
        "--pcr",
        &one,
        "--nonce",
        "hex:00ff",
        "--user-data",
        "text:hello",
    ];
    for document in ["doc", "doc.base64"] {
        let report = enclave.ok(&[&["attest", "verify", document], &asked[..]].concat());
        assert_eq!(report["verified"], true);
        assert_eq!(report["root"]["aws"], false);
        assert_eq!(report["not_checked"], serde_json::json!(["public key"]));
        let warned = report["warnings"][0].as_str().unwrap();
        assert!(warned.contains("not AWS's root"), "{warned}");
    }
    let warned = enclave.run(&["attest", "verify", "doc", "--root", "bundle-0.der"]);
    let warned = String::from_utf8(warned.stderr).unwrap();
    assert!(warned.contains("not AWS's root"), "{warned}");

    for (more, why) in [
        (&[][..], "another root"),
        (&["--root", "bundle-1.der"], "another root"),
        (&["--root", "bundle-0.der", "--nonce", "text:x"], "nonce"),
        (
            &[
                "--root",
                "bundle-0.der",
                "--pcr",
                &format!("0={}", "ab".repeat(48)),
            ],
            "PCR0",
        ),
        (
            &["--root", "bundle-0.der", "--at", "2000-01-01T00:00:00Z"],
            "is valid from",
        ),
        (&["--root", "bundle-0.der", "--at", "1"], "is valid from"),
    ] {
        let (said, report) = enclave.fails(&[&["attest", "verify", "doc"], more].concat(), 7);
        assert!(said.contains(why), "{more:?}: {said}");
        let report: Value = serde_json::from_slice(&report).unwrap();
        assert_eq!(report["verified"], false);
        assert!(report.get("document").is_none());
    }
    for more in [
        &["--at", "yesterday"][..],
        &["--pcr", "0=ab"],
        &["--pcr", "32=00"],
        &["--pcrs", "doc"],
        &["--root", "nowhere"],
        &["--pcr", &one, "--pcr", &format!("1={}", "ab".repeat(48))],
    ] {
        enclave.fails(&[&["attest", "verify", "doc"], more].concat(), 2);
    }
}
