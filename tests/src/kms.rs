//! An enclave that asks KMS: both daemons, the AWS of the tests, and a key.

use crate::aws::{Aws, Client};
use crate::lab::{Daemons, Lab};
use crate::process::Done;
use crate::servers::Server;
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Stdio};

/// A lab with AWS in it, and a key for the enclave of [`Aws::client`] alone.
#[derive(Debug)]
pub struct KmsBed {
    // In the order of their end.
    _daemons: Daemons,
    /// The AWS in it.
    pub aws: Aws,
    _dns: Server,
    /// The key, in us-east-1.
    pub key: String,
    /// [`KmsBed::SECRET`], encrypted with it; as an argument.
    pub ciphertext: String,
    /// The lab.
    pub lab: Lab,
}

impl Default for KmsBed {
    fn default() -> Self {
        KmsBed::new()
    }
}

impl KmsBed {
    /// The context that the tests' ciphertexts are bound to.
    pub const CONTEXT: &str = "tenant=one";
    /// What they hold.
    pub const SECRET: &str = "the secret of tenant one";

    /// As it comes.
    pub fn new() -> KmsBed {
        KmsBed::with(&[])
    }

    /// The same with arguments for host-netd.
    pub fn with(host: &[&str]) -> KmsBed {
        let lab = Lab::new();
        let dns = lab.unbound();
        let aws = lab.aws();
        let daemons = lab.up_with(host, "");
        let key = aws.sealed_key("us-east-1", &lab);
        let mut bed = KmsBed {
            _daemons: daemons,
            aws,
            _dns: dns,
            key,
            ciphertext: String::new(),
            lab,
        };
        bed.ciphertext = bed.encrypt(&bed.aws.client(), &bed.key);
        bed
    }

    /// Encrypts [`KmsBed::SECRET`] and tells the ciphertext as an argument.
    pub fn encrypt(&self, client: &Client<'_>, key: &str) -> String {
        let plaintext = format!("text:{}", KmsBed::SECRET);
        let call = ["encrypt", "--key", key, "--plaintext", &plaintext];
        let sealed = self.ok(
            client,
            &[&call[..], &["--context", KmsBed::CONTEXT]].concat(),
        );
        format!("base64:{}", sealed["ciphertext"].as_str().unwrap())
    }

    /// The arguments that decrypt the bed's ciphertext.
    pub fn decrypt(&self) -> [&str; 5] {
        KmsBed::decrypt_of(&self.ciphertext)
    }

    /// The arguments that decrypt a ciphertext of the bed's context.
    pub fn decrypt_of(ciphertext: &str) -> [&str; 5] {
        [
            "decrypt",
            "--ciphertext",
            ciphertext,
            "--context",
            KmsBed::CONTEXT,
        ]
    }

    /// `kms` in the enclave, which has a secure module of the test's.
    pub fn kms(&self, client: &Client<'_>, arguments: &[&str]) -> Done {
        let app = self.lab.binary("attested-app");
        client.run(&self.lab.enclave, &app, &[&["kms"], arguments].concat())
    }

    /// A call that succeeds, and its answer.
    #[track_caller]
    pub fn ok(&self, client: &Client<'_>, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.kms(client, arguments).ok()).unwrap()
    }

    /// A call that fails, by exit code and words, and says nothing on standard output.
    #[track_caller]
    pub fn refused(&self, client: &Client<'_>, arguments: &[&str], code: i32, words: &[&str]) {
        let done = self.kms(client, arguments);
        assert_eq!(done.code(), code, "{}", done.text());
        for word in words {
            assert!(done.stderr.contains(word), "no {word:?}: {}", done.stderr);
        }
        assert_eq!(done.stdout, "");
        for secret in [KmsBed::SECRET, "enclave-secret", "stranger-secret"] {
            assert!(!done.stderr.contains(secret), "{}", done.stderr);
        }
    }
}

/// What base64 holds, by a program that is not ours.
pub fn base64(text: &Value) -> Vec<u8> {
    let mut child = Command::new("base64")
        .arg("-d")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_str().unwrap().as_bytes()).unwrap();
    drop(input);
    child.wait_with_output().unwrap().stdout
}
