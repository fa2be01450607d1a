//! Clients, servers and encoders that others wrote, through the same tunnel: boto3, the AWS CLI,
//! MiniStack's metadata service and LocalStack's KMS.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Aws, Client, KmsBed as Bed, base64};
use serde_json::Value;
use std::fs;

#[test]
fn boto3_through_the_same_tunnel_is_the_control() {
    let bed = Bed::new();
    let client = bed.aws.client();
    // Its policy asks for no document.
    let open = bed.aws.open_key(&bed.aws.admin(), &bed.lab);
    let context = r#"{"tenant": "one"}"#;
    let used = bed.aws.boto3(
        &client,
        &bed.lab.enclave,
        &["use", &open, context, Bed::SECRET],
    );
    assert_eq!(used["plaintext"], Bed::SECRET);
    assert_eq!(used["random"], 32);
    // What one encrypts the other opens.
    let theirs = format!("base64:{}", used["ciphertext"].as_str().unwrap());
    let opened = bed.ok(&client, &Bed::decrypt_of(&theirs));
    assert_eq!(base64(&opened["plaintext"]), Bed::SECRET.as_bytes());
    // The same credentials without a document open nothing of the enclave's own key.
    let refused = bed.aws.boto3(
        &client,
        &bed.lab.enclave,
        &["use", &bed.key, context, Bed::SECRET],
    );
    assert_eq!(refused["refused"], "AccessDeniedException");
}

#[test]
fn the_aws_cli_through_the_same_tunnel_is_another_control() {
    let bed = Bed::new();
    let client = bed.aws.client();
    let open = bed.aws.open_key(&bed.aws.admin(), &bed.lab);
    let aws = |arguments: &[&str]| -> Value {
        let said = bed.aws.cli(&client, &bed.lab.enclave, arguments).ok();
        serde_json::from_str(&said).unwrap_or_default()
    };
    let file = |name: &str, content: &[u8]| {
        let path = bed.lab.enclave.dir().join(name);
        fs::write(&path, content).unwrap();
        format!("fileb://{}", path.display())
    };

    let random = aws(&["kms", "generate-random", "--number-of-bytes", "1024"]);
    assert_eq!(base64(&random["Plaintext"]).len(), 1024);

    // What one encrypts the other opens, both ways.
    let secret = file("secret", Bed::SECRET.as_bytes());
    let encrypt = ["kms", "encrypt", "--key-id", &open, "--plaintext", &secret];
    let context = ["--encryption-context", Bed::CONTEXT];
    let sealed = aws(&[&encrypt[..], &context].concat());
    let theirs = format!("base64:{}", sealed["CiphertextBlob"].as_str().unwrap());
    let opened = bed.ok(&client, &Bed::decrypt_of(&theirs));
    assert_eq!(base64(&opened["plaintext"]), Bed::SECRET.as_bytes());
    let decrypt = |ciphertext: &str| {
        let ciphertext = ciphertext.strip_prefix("base64:").unwrap();
        let blob = file("ciphertext", &base64(&ciphertext.into()));
        let call = ["kms", "decrypt", "--ciphertext-blob", &blob];
        let call = [&call[..], &context].concat();
        bed.aws.cli(&client, &bed.lab.enclave, &call)
    };
    let ours = decrypt(&bed.encrypt(&client, &open)).ok();
    let ours: Value = serde_json::from_str(&ours).unwrap();
    assert_eq!(base64(&ours["Plaintext"]), Bed::SECRET.as_bytes());
    // Without a document the enclave's own key stays closed to it.
    let refused = decrypt(&bed.ciphertext);
    assert!(!refused.status.success(), "{refused}");
    assert!(refused.stderr.contains("AccessDenied"), "{refused}");

    // The other services of the enclave's region.
    let who = aws(&["sts", "get-caller-identity"]);
    assert_eq!(who["Account"], "123456789012", "{who}");
    let queue = aws(&["sqs", "create-queue", "--queue-name", "cards"]);
    let queue = ["--queue-url", queue["QueueUrl"].as_str().unwrap()];
    let send = ["sqs", "send-message", "--message-body", "a card"];
    aws(&[&send[..], &queue].concat());
    let taken = aws(&[&["sqs", "receive-message"][..], &queue].concat());
    assert_eq!(taken["Messages"][0]["Body"], "a card", "{taken}");
}

/// A client without credentials of its own.
fn role(aws: &Aws) -> Client<'_> {
    Client {
        credentials: None,
        has_imds: true,
        ..aws.client()
    }
}

#[test]
fn the_parents_role_comes_by_imds_where_the_host_allows_it() {
    let bed = Bed::with(&["--allow", "tcp 169.254.169.254:80"]);
    let imds = bed.lab.imds(&bed.aws, Client::SESSION);
    let opened = bed.ok(&role(&bed.aws), &bed.decrypt());
    assert_eq!(base64(&opened["plaintext"]), Bed::SECRET.as_bytes());
    // The clients of others get theirs there as well.
    let random = ["call", "generate_random", r#"{"NumberOfBytes": 8}"#];
    let random = bed.aws.boto3(&role(&bed.aws), &bed.lab.enclave, &random);
    assert_eq!(base64(&random["Plaintext"]).len(), 8, "{random}");
    // Without a token it says nothing.
    let path = "http://169.254.169.254/latest/meta-data/iam/security-credentials/";
    let status = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", path];
    assert_eq!(bed.lab.enclave.run("curl", &status).ok(), "401");
    drop(imds);

    // A session whose time is over.
    let expired = Client {
        credentials: Some((Client::EXPIRED[0], Client::EXPIRED[1])),
        token: Some(Client::EXPIRED[2]),
        ..bed.aws.client()
    };
    let words = ["credentials: ExpiredToken", "expired"];
    bed.refused(&expired, &bed.decrypt(), 5, &words);
    // A session without its token.
    let bare = Client {
        credentials: Some((Client::SESSION[0], Client::SESSION[1])),
        ..bed.aws.client()
    };
    let words = ["credentials: UnrecognizedClient"];
    bed.refused(&bare, &bed.decrypt(), 5, &words);

    let closed = Bed::new();
    let _imds = closed.lab.imds(&closed.aws, Client::SESSION);
    let words = ["credentials:"];
    closed.refused(&role(&closed.aws), &closed.decrypt(), 5, &words);
}

/// DER, version 0, the recipient by issuer and serial number: not the form that KMS uses. That it
/// is sealed follows from its being used: what is not sealed is refused, as is seen below.
#[test]
fn what_localstack_seals_is_opened() {
    let bed = Bed::new();
    let Some(_localstack) = bed.lab.localstack(&bed.aws) else {
        return;
    };
    let client = Client {
        region: "eu-central-1",
        ..bed.aws.client()
    };
    let key = bed.aws.open_key(&client, &bed.lab);
    for length in [1, 15, 16, 4096] {
        let secret = "x".repeat(length);
        let plaintext = format!("text:{secret}");
        let sealed = bed.ok(
            &client,
            &["encrypt", "--key", &key, "--plaintext", &plaintext],
        );
        let sealed = format!("base64:{}", sealed["ciphertext"].as_str().unwrap());
        let opened = bed.ok(&client, &["decrypt", "--ciphertext", &sealed]);
        assert_eq!(base64(&opened["plaintext"]), secret.as_bytes());
    }
    // The calls for which it ignores the document answer in plain text, which is not used.
    let words = ["attestation:", "plain text", "not used"];
    let data_key = ["generate-data-key", "--key", &key];
    bed.refused(&client, &data_key, 7, &words);
    bed.refused(&client, &["generate-random"], 7, &words);

    // Another context.
    let ours = bed.encrypt(&client, &key);
    let words = ["decryption: InvalidCiphertext"];
    bed.refused(&client, &["decrypt", "--ciphertext", &ours], 8, &words);
}
