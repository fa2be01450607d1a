//! KMS from inside an enclave: through the tunnel, by its real name, over TLS.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Client, KmsBed as Bed, Machine, base64};
use serde_json::json;
use std::time::Instant;

#[test]
fn every_answer_is_sealed_and_opened_in_the_enclave() {
    let bed = Bed::new();
    let client = bed.aws.client();
    let opened = bed.ok(&client, &bed.decrypt());
    assert_eq!(base64(&opened["plaintext"]), Bed::SECRET.as_bytes());
    let with_key = [&bed.decrypt()[..], &["--key", &bed.key]].concat();
    assert_eq!(bed.ok(&client, &with_key), opened);

    let made = bed.ok(
        &client,
        &[
            "generate-data-key",
            "--key",
            &bed.key,
            "--context",
            Bed::CONTEXT,
        ],
    );
    let sealed = format!("base64:{}", made["ciphertext"].as_str().unwrap());
    let again = bed.ok(
        &client,
        &[
            "decrypt",
            "--ciphertext",
            &sealed,
            "--context",
            Bed::CONTEXT,
        ],
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
    let admin = bed.aws.admin();
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

/// Whoever answers in the name of KMS: nothing that is wrong is used.
#[test]
fn answers_that_are_wrong_are_not_used() {
    let bed = Bed::new();
    let (network, attestation, request) = (3, 7, 9);
    for (region, code, words) in [
        (
            "ca-central-1",
            attestation,
            &["attestation:", "another key"][..],
        ),
        ("sa-east-1", attestation, &["attestation:", "another key"]),
        (
            "eu-west-3",
            attestation,
            &["attestation:", "cannot be read"],
        ),
        ("eu-south-1", network, &["network:", "reading a body"]),
        ("ap-south-1", request, &["request:", "status 200"]),
        ("ap-east-1", request, &["request:", "status 200"]),
    ] {
        eprintln!("{region}");
        let client = Client {
            region,
            ..bed.aws.client()
        };
        bed.refused(&client, &["generate-random"], code, words);
    }
    // The name has no address, and nobody serves it.
    let nowhere = Client {
        region: "eu-north-1",
        ..bed.aws.client()
    };
    bed.refused(&nowhere, &["generate-random"], 3, &["network:", "lookup"]);
}

/// Measured beside a direct call; printed, not judged: the machine decides.
#[test]
fn alone_thirty_decrypts_at_once_are_answered() {
    let bed = Bed::new();
    let client = bed.aws.client();
    let app = bed.lab.binary("attested-app");
    let arguments = [&["kms"], &bed.decrypt()[..]].concat();
    let timed = |machine: &Machine| {
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
