//! KMS from inside an enclave: through the tunnel, by its real name, over TLS.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Aws, Client, Daemons, Lab, Server};
use serde_json::{Value, json};
use std::fs;
use std::time::Instant;

/// The context that the tests' ciphertexts are bound to.
const CONTEXT: &str = "tenant=one";
const SECRET: &str = "the secret of tenant one";

/// A lab with AWS in it, and a key for the enclave of [`Aws::client`] alone.
struct Bed {
    // In the order of their end.
    _daemons: Daemons,
    aws: Aws,
    _dns: Server,
    key: String,
    ciphertext: String,
    lab: Lab,
}

impl Bed {
    fn new() -> Bed {
        Bed::with(&[])
    }

    /// The same with arguments for host-netd.
    fn with(host: &[&str]) -> Bed {
        let lab = Lab::new();
        let dns = lab.unbound();
        let aws = lab.aws();
        let daemons = lab.up_with(host, "");
        let mut bed = Bed {
            _daemons: daemons,
            aws,
            _dns: dns,
            key: String::new(),
            ciphertext: String::new(),
            lab,
        };
        bed.key = bed.key_for("us-east-1");
        bed.ciphertext = bed.encrypt(&bed.aws.client(), &bed.key);
        bed
    }

    /// A key with the policy that `kms policy` prints for the client's image.
    fn key_for(&self, region: &str) -> String {
        let pcrs = self.lab.dir().join("pcr-values.json");
        let image = json!({ "PCR0": "aa".repeat(48), "PCR1": "01".repeat(48) });
        fs::write(&pcrs, image.to_string()).unwrap();
        let role = |name: &str| format!("arn:aws:iam::123456789012:role/{name}");
        let app = self.lab.binary("enclave-app");
        let (enclave, admin) = (role("enclave"), role("admin"));
        let arguments = ["kms", "policy", "--pcrs", pcrs.to_str().unwrap()];
        let arguments = [
            &arguments[..],
            &["--principal", &enclave, "--admin", &admin],
        ]
        .concat();
        let policy = self.lab.parent.run(&app, &arguments).ok();
        let file = self.lab.dir().join("policy.json");
        fs::write(&file, policy).unwrap();
        let made = self.aws.boto3(
            &self.admin(region),
            &self.lab.parent,
            &["set-up", file.to_str().unwrap()],
        );
        made["key"].as_str().unwrap().to_owned()
    }

    fn admin<'a>(&'a self, region: &'a str) -> Client<'a> {
        Client {
            credentials: Some(Client::ADMIN),
            region,
            ..self.aws.client()
        }
    }

    fn encrypt(&self, client: &Client<'_>, key: &str) -> String {
        let plaintext = format!("text:{SECRET}");
        let sealed = self.ok(
            client,
            &[
                "encrypt",
                "--key",
                key,
                "--plaintext",
                &plaintext,
                "--context",
                CONTEXT,
            ],
        );
        format!("base64:{}", sealed["ciphertext"].as_str().unwrap())
    }

    /// `kms` in the enclave, which has a secure module of the test's.
    fn kms(&self, client: &Client<'_>, arguments: &[&str]) -> netd_tests::Done {
        let app = self.lab.binary("attested-app");
        client.run(&self.lab.enclave, &app, &[&["kms"], arguments].concat())
    }

    fn ok(&self, client: &Client<'_>, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.kms(client, arguments).ok()).unwrap()
    }

    fn decrypt(&self) -> [&str; 5] {
        [
            "decrypt",
            "--ciphertext",
            &self.ciphertext,
            "--context",
            CONTEXT,
        ]
    }

    /// A call that fails, by exit code and words, and says nothing on standard output.
    #[track_caller]
    fn refused(&self, client: &Client<'_>, arguments: &[&str], code: i32, words: &[&str]) {
        let done = self.kms(client, arguments);
        assert_eq!(done.code(), code, "{}", done.text());
        for word in words {
            assert!(done.stderr.contains(word), "no {word:?}: {}", done.stderr);
        }
        assert_eq!(done.stdout, "");
        for secret in [SECRET, "enclave-secret", "stranger-secret"] {
            assert!(!done.stderr.contains(secret), "{}", done.stderr);
        }
    }
}

fn base64(text: &Value) -> Vec<u8> {
    use std::io::Write;
    let mut child = std::process::Command::new("base64")
        .arg("-d")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_str().unwrap().as_bytes()).unwrap();
    drop(input);
    child.wait_with_output().unwrap().stdout
}

#[test]
fn every_answer_is_sealed_and_opened_in_the_enclave() {
    let bed = Bed::new();
    let client = bed.aws.client();
    let opened = bed.ok(&client, &bed.decrypt());
    assert_eq!(base64(&opened["plaintext"]), SECRET.as_bytes());
    let with_key = [&bed.decrypt()[..], &["--key", &bed.key]].concat();
    assert_eq!(bed.ok(&client, &with_key), opened);

    let made = bed.ok(
        &client,
        &["generate-data-key", "--key", &bed.key, "--context", CONTEXT],
    );
    let sealed = format!("base64:{}", made["ciphertext"].as_str().unwrap());
    let again = bed.ok(
        &client,
        &["decrypt", "--ciphertext", &sealed, "--context", CONTEXT],
    );
    assert_eq!(again["plaintext"], made["plaintext"]);
    assert_eq!(base64(&made["plaintext"]).len(), 32);

    let random = bed.ok(&client, &["generate-random", "--bytes", "1024"]);
    assert_eq!(base64(&random["random"]).len(), 1024);

    let log = bed.aws.service.log();
    for call in ["Decrypt", "GenerateDataKey", "GenerateRandom"] {
        let caller = "arn:aws:iam::123456789012:role/enclave";
        assert!(
            log.contains(&format!("{call} for {caller}: sealed")),
            "{log}"
        );
        assert!(
            !log.contains(&format!("{call} for {caller}: plain")),
            "{log}"
        );
    }
}

#[test]
fn boto3_through_the_same_tunnel_is_the_control() {
    let bed = Bed::new();
    let client = bed.aws.client();
    // A key whose policy asks for no document.
    let open = bed.lab.dir().join("open.json");
    let statement = json!({
        "Effect": "Allow", "Principal": { "AWS": "arn:aws:iam::123456789012:root" },
        "Action": "kms:*", "Resource": "*",
    });
    let policy = json!({ "Version": "2012-10-17", "Statement": [statement] });
    fs::write(&open, policy.to_string()).unwrap();
    let made = bed.aws.boto3(
        &bed.admin("us-east-1"),
        &bed.lab.parent,
        &["set-up", open.to_str().unwrap()],
    );
    let context = r#"{"tenant": "one"}"#;
    let used = bed.aws.boto3(
        &client,
        &bed.lab.enclave,
        &["use", made["key"].as_str().unwrap(), context, SECRET],
    );
    assert_eq!(used["plaintext"], SECRET);
    assert_eq!(used["random"], 32);
    // What one encrypts the other opens.
    let theirs = format!("base64:{}", used["ciphertext"].as_str().unwrap());
    let opened = bed.ok(
        &client,
        &["decrypt", "--ciphertext", &theirs, "--context", CONTEXT],
    );
    assert_eq!(base64(&opened["plaintext"]), SECRET.as_bytes());
    // The same credentials without a document open nothing of the enclave's own key.
    let refused = bed.aws.boto3(
        &client,
        &bed.lab.enclave,
        &["use", &bed.key, context, SECRET],
    );
    assert_eq!(refused["refused"], "AccessDeniedException");
}

#[test]
fn another_image_another_root_and_another_caller_are_refused() {
    let bed = Bed::new();
    let other_image = Client {
        pcr0: "ab".repeat(48),
        ..bed.aws.client()
    };
    let words = ["permission: AccessDeniedException", "other PCR values"];
    bed.refused(&other_image, &bed.decrypt(), 6, &words);

    let dir = bed.lab.dir().join("other-authority");
    bed.lab.authority(&dir);
    let other_root = Client {
        authority: &dir,
        ..bed.aws.client()
    };
    let words = ["attestation: ValidationException", "not of this root"];
    bed.refused(&other_root, &bed.decrypt(), 7, &words);

    let stranger = Client {
        credentials: Some(Client::STRANGER),
        ..bed.aws.client()
    };
    bed.refused(&stranger, &bed.decrypt(), 6, &["permission:"]);

    // Outside an enclave nothing is asked unless it may be plain, and then the policy refuses.
    let app = bed.lab.binary("enclave-app");
    let arguments = [&["kms"], &bed.decrypt()[..]].concat();
    let outside = bed.aws.client().run(&bed.lab.enclave, &app, &arguments);
    assert_eq!(outside.code(), 7, "{}", outside.text());
    assert!(outside.stderr.contains("--plain"), "{}", outside.stderr);
    let plain = [&arguments[..], &["--plain"]].concat();
    let outside = bed.aws.client().run(&bed.lab.enclave, &app, &plain);
    assert_eq!(outside.code(), 6, "{}", outside.text());
    let inside = [&bed.decrypt()[..], &["--plain"]].concat();
    bed.refused(
        &bed.aws.client(),
        &inside,
        2,
        &["usage:", "every answer is sealed"],
    );
}

#[test]
fn the_parents_role_comes_by_imds_where_the_host_allows_it() {
    let role = |aws| Client {
        credentials: None,
        has_imds: true,
        ..Aws::client(aws)
    };
    let bed = Bed::with(&["--allow", "tcp 169.254.169.254:80"]);
    let _imds = bed.lab.imds(&bed.aws);
    let opened = bed.ok(&role(&bed.aws), &bed.decrypt());
    assert_eq!(base64(&opened["plaintext"]), SECRET.as_bytes());

    let closed = Bed::new();
    let _imds = closed.lab.imds(&closed.aws);
    let words = ["credentials:"];
    closed.refused(&role(&closed.aws), &closed.decrypt(), 5, &words);
}

#[test]
fn a_clock_that_is_an_hour_off_is_mended_by_the_services() {
    let bed = Bed::new();
    let client = Client {
        region: "ap-southeast-1",
        ..bed.aws.client()
    };
    let random = bed.ok(&client, &["generate-random"]);
    assert_eq!(base64(&random["random"]).len(), 32);
    let log = bed.aws.service.log();
    let refused = "refused: InvalidSignatureException: Signature expired";
    assert!(log.contains(refused), "{log}");
}

#[test]
fn each_failure_says_what_failed() {
    let bed = Bed::new();
    let client = || bed.aws.client();
    let decrypt = bed.decrypt();

    let nobody = Client {
        credentials: None,
        ..client()
    };
    bed.refused(&nobody, &decrypt, 5, &["credentials:"]);
    let unknown = Client {
        credentials: Some(("AKIANOBODY", "x")),
        ..client()
    };
    bed.refused(
        &unknown,
        &decrypt,
        5,
        &["credentials: UnrecognizedClientException"],
    );
    let wrong = Client {
        credentials: Some((Client::ENCLAVE.0, "x")),
        ..client()
    };
    bed.refused(
        &wrong,
        &decrypt,
        5,
        &["credentials: InvalidSignatureException"],
    );

    // Another context, none, a changed ciphertext, another key.
    let context = [
        "decrypt",
        "--ciphertext",
        &bed.ciphertext,
        "--context",
        "tenant=two",
    ];
    bed.refused(
        &client(),
        &context,
        8,
        &["decryption: InvalidCiphertext", "context"],
    );
    bed.refused(
        &client(),
        &decrypt[..3],
        8,
        &["decryption: InvalidCiphertext"],
    );
    let changed = ["decrypt", "--ciphertext", "base64:AAAA"];
    bed.refused(&client(), &changed, 8, &["decryption:"]);

    // Regions: without the key, ignoring attestation, without a certificate, with an expired one,
    // closed, and not there.
    let region = |region| Client { region, ..client() };
    bed.refused(
        &region("eu-west-1"),
        &decrypt,
        9,
        &["NotFoundException", "AWS_REGION"],
    );
    let random = ["generate-random"];
    let words = ["attestation:", "plain text", "not used"];
    bed.refused(&region("eu-west-2"), &random, 7, &words);
    bed.refused(
        &region("us-west-1"),
        &random,
        4,
        &["tls:", "not valid for name"],
    );
    bed.refused(&region("us-west-2"), &random, 3, &["network:", "refused"]);
    bed.refused(&region("eu-north-1"), &random, 3, &["network:"]);

    let words = ["tls:", "expired", "clock"];
    bed.refused(&region("us-east-2"), &random, 4, &words);

    // A CA that nobody named.
    let system = Client {
        ca: "/etc/ssl/certs/ca-certificates.crt",
        ..client()
    };
    bed.refused(&system, &random, 4, &["tls:", "UnknownIssuer"]);

    // The key disabled, and pending deletion.
    let admin = bed.admin("us-east-1");
    // moto wants the bare identifier for these.
    let id = bed.key.rsplit('/').next().unwrap();
    let key = json!({ "KeyId": id }).to_string();
    let call = |operation: &str, arguments: &str| {
        let arguments = ["call", operation, arguments];
        let done = bed.aws.boto3(&admin, &bed.lab.parent, &arguments);
        assert_eq!(done.get("refused"), None, "{done}");
    };
    call("disable_key", &key);
    bed.refused(&client(), &decrypt, 9, &["request: DisabledException"]);
    call("enable_key", &key);
    bed.ok(&client(), &decrypt);
    let delete = json!({ "KeyId": id, "PendingWindowInDays": 7 }).to_string();
    call("schedule_key_deletion", &delete);
    bed.refused(
        &client(),
        &decrypt,
        9,
        &["KMSInvalidState", "pending deletion"],
    );
}

/// Measured beside a direct call; printed, not judged: the machine decides.
#[test]
fn alone_thirty_decrypts_at_once_are_answered() {
    let bed = Bed::new();
    let client = bed.aws.client();
    let app = bed.lab.binary("attested-app");
    let arguments = [&["kms"], &bed.decrypt()[..]].concat();
    let timed = |machine: &netd_tests::Machine| {
        let begin = Instant::now();
        client.run(machine, &app, &arguments).ok();
        begin.elapsed()
    };
    let (direct, tunnel) = (timed(&bed.lab.parent), timed(&bed.lab.enclave));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let decrypts: Vec<_> = (0..30)
            .map(|_| scope.spawn(|| timed(&bed.lab.enclave)))
            .collect();
        for decrypt in decrypts {
            decrypt.join().unwrap();
        }
    });
    let thirty = begin.elapsed();
    eprintln!(
        "one directly {direct:?}, one through the tunnel {tunnel:?}, thirty at once {thirty:?}"
    );
    let log = bed.aws.service.log();
    assert_eq!(log.matches("Decrypt for").count(), 32, "{log}");
}
