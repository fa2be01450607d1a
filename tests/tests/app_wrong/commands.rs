//! Commands whose arguments or files are wrong: nothing is asked of anybody, and nothing is answered.

use netd_tests::Lab;
use std::fs;

#[test]
fn a_document_that_is_none_is_not_believed() {
    let lab = Lab::new();
    let app = lab.binary("enclave-app");
    let file = |name: &str, content: &[u8]| {
        let path = lab.dir().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let folder = lab.dir().to_str().unwrap().to_owned();
    for (document, code, word) in [
        (file("empty", b""), 7, "cut off"),
        (file("blank", b"\n \n"), 7, "cut off"),
        (file("text", b"no document!"), 2, "neither raw nor base64"),
        (
            file("base64", b"bm90IGEgZG9jdW1lbnQ="),
            7,
            "not an attestation",
        ),
        (file("garbage", &[0x84; 500]), 7, "not an attestation"),
        (file("long", &[0x84; 100_000]), 2, "longer than"),
        (folder, 2, "directory"),
        ("/nothing/here".to_owned(), 2, "No such file"),
    ] {
        let done = lab.enclave.run(&app, &["attest", "verify", &document]);
        assert_eq!(done.code(), code, "{document}: {done}");
        assert!(done.stderr.contains(word), "{document}: {done}");
        assert!(!done.stdout.contains("\"verified\": true"), "{done}");
    }
}

#[test]
fn wrong_arguments_of_kms_are_named_before_anything_is_asked() {
    let lab = Lab::new();
    let authority = lab.dir().join("authority");
    lab.authority(&authority);
    let (authority, pcr0) = (
        format!("TEST_AUTHORITY={}", authority.display()),
        format!("TEST_PCR0={}", "aa".repeat(48)),
    );
    let app = lab.binary("attested-app");
    let long = format!("text:{}", "x".repeat(4097));
    let region = "AWS_REGION=us-east-1";
    for (region, arguments, word) in [
        ("A=", &["generate-random"][..], "set AWS_REGION"),
        (region, &["generate-random", "--bytes", "0"], "1 to 1024"),
        (region, &["generate-random", "--bytes", "1025"], "1 to 1024"),
        (region, &["generate-random", "--bytes", "-1"], "'-1'"),
        (
            region,
            &["generate-random", "--context", "a=b"],
            "no encryption context",
        ),
        (region, &["generate-random", "--context", "a"], "KEY=VALUE"),
        (
            region,
            &["generate-data-key", "--key", "k", "--bytes", "0"],
            "1 to 1024",
        ),
        (
            region,
            &["encrypt", "--key", "k", "--plaintext", "text:"],
            "1 to 4096",
        ),
        (
            region,
            &["encrypt", "--key", "k", "--plaintext", &long],
            "1 to 4096",
        ),
        (region, &["encrypt", "--plaintext", "text:x"], "--key"),
        (
            region,
            &["decrypt", "--ciphertext", "AAAA"],
            "hex:, base64:",
        ),
        (region, &["decrypt", "--ciphertext", "base64:!"], "nvalid"),
        (
            region,
            &["decrypt", "--ciphertext", "file:/nothing"],
            "No such file",
        ),
        (
            region,
            &[
                "decrypt",
                "--ciphertext",
                "hex:00",
                "--context",
                "a=1",
                "--context",
                "a=2",
            ],
            "\"a\" twice",
        ),
        (region, &["decrypt"], "--ciphertext"),
        (region, &["decrpyt"], "decrypt"),
    ] {
        let line = [&[region, &authority, &pcr0, &app, "kms"], arguments].concat();
        let done = lab.enclave.run("env", &line);
        assert_eq!(done.code(), 2, "{arguments:?}: {done}");
        assert!(done.stderr.contains(word), "{arguments:?}: {done}");
        assert_eq!(done.stdout, "", "{done}");
    }
}
