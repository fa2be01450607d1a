//! What others seal for a recipient opens, and nothing else does.
#![allow(clippy::unwrap_used)]

use enclave_app::kms::Recipient;
use std::io::Write;
use std::process::{Command, Stdio};

/// What openssl seals for a recipient: an implementation of CMS that is not ours.
fn sealed_by_openssl(recipient: &Recipient, plaintext: &[u8], arguments: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let run = |arguments: &[&str], input: &[u8]| {
        let mut child = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("these tests need openssl");
        child.stdin.take().unwrap().write_all(input).unwrap();
        let done = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "openssl {arguments:?}: {said}");
        done.stdout
    };
    std::fs::write(path("public.der"), recipient.public_key()).unwrap();
    let (ca_key, ca) = (path("ca.key"), path("ca.pem"));
    run(
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=test",
            "-keyout",
            &ca_key,
            "-out",
            &ca,
        ],
        b"",
    );
    // A certificate that names the recipient's key: what `cms -encrypt` encrypts for.
    let request = run(
        &["req", "-new", "-key", &ca_key, "-subj", "/CN=recipient"],
        b"",
    );
    let certificate = run(
        &[
            "x509",
            "-req",
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-force_pubkey",
            &path("public.der"),
            "-extfile",
            "/dev/stdin",
            "-in",
            &{
                let name = path("request.pem");
                std::fs::write(&name, request).unwrap();
                name
            },
        ],
        b"subjectKeyIdentifier=hash\n",
    );
    std::fs::write(path("recipient.pem"), certificate).unwrap();
    let certificate = path("recipient.pem");
    let fixed = [
        "cms",
        "-encrypt",
        "-binary",
        "-aes-256-cbc",
        "-outform",
        "DER",
        "-recip",
        &certificate,
        "-keyopt",
        "rsa_padding_mode:oaep",
        "-keyopt",
        "rsa_oaep_md:sha256",
        "-keyopt",
        "rsa_mgf1_md:sha256",
    ];
    run(&[&fixed, arguments].concat(), plaintext)
}

/// As KMS does it: indefinite lengths, the recipient by its key's identifier.
const LIKE_KMS: [&str; 2] = ["-stream", "-keyid"];

#[test]
fn what_is_sealed_as_kms_does_is_opened() {
    for length in [0, 1, 16, 32, 4096] {
        let recipient = Recipient::generate().unwrap();
        let plaintext = vec![7; length];
        let sealed = sealed_by_openssl(&recipient, &plaintext, &LIKE_KMS);
        assert_eq!(sealed[1], 0x80, "an indefinite length");
        assert_eq!(*recipient.open(&sealed).unwrap(), plaintext);
    }
}

#[test]
fn what_is_sealed_in_der_by_issuer_is_opened() {
    let recipient = Recipient::generate().unwrap();
    let sealed = sealed_by_openssl(&recipient, b"secret", &[]);
    assert_ne!(sealed[1], 0x80, "a definite length");
    assert_eq!(*recipient.open(&sealed).unwrap(), b"secret");
}
