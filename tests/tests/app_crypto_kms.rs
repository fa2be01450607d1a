//! `enclave-app crypto` with KMS behind it: a program on the parent, an enclave, and AWS beyond the
//! tunnel.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Aws, Client, Daemons, Lab, Process, Server};
use serde_json::{Value, json};

/// A lab with AWS in it, a key for enclaves of the image `aa…`, and two tenants that share it.
struct Bed {
    // In the order of their end.
    service: Process,
    _daemons: Daemons,
    aws: Aws,
    _dns: Server,
    key: String,
    tenants: String,
    lab: Lab,
}

impl Bed {
    fn new() -> Bed {
        let lab = Lab::new();
        let dns = lab.unbound();
        let aws = lab.aws();
        let daemons = lab.up_with(&["--publish", "5000"], r#"publish = ["5000/tcp"]"#);
        let key = aws.sealed_key("us-east-1", &lab);
        let tenants = json!({"tenants": {"acme": {"keys": [key]}, "zeta": {"keys": [key]}}});
        let tenants = lab.config(&tenants.to_string());
        let service = start(&lab, &aws, &tenants, "aa");
        Bed {
            service,
            _daemons: daemons,
            aws,
            _dns: dns,
            key,
            tenants,
            lab,
        }
    }

    /// What a Python program on the parent is answered.
    fn ask(&self, messages: &[Value]) -> Vec<Value> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/crypto_client.py");
        let messages: Vec<String> = messages.iter().map(Value::to_string).collect();
        let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
        let line = [&[script, "127.0.0.1", "5000"], &messages[..]].concat();
        let answers = self.lab.parent.run("python3", &line).ok();
        answers
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Starts the service in an enclave whose image's PCR0 is this byte, 48 times.
fn start(lab: &Lab, aws: &Aws, tenants: &str, pcr0: &str) -> Process {
    let (id, secret) = Client::ENCLAVE;
    let set = [
        format!("SSL_CERT_FILE={}", aws.ca),
        "AWS_EC2_METADATA_DISABLED=true".to_owned(),
        format!("AWS_ACCESS_KEY_ID={id}"),
        format!("AWS_SECRET_ACCESS_KEY={secret}"),
        format!("TEST_AUTHORITY={}", aws.authority.display()),
        format!("TEST_PCR0={}", pcr0.repeat(48)),
    ];
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    let program = lab.binary("attested-app");
    let line = [&set[..], &[&program, "crypto", "--tenants", tenants]].concat();
    let mut service = lab.enclave.spawn("env", &line);
    service.wait_log("listening", 20);
    service
}

fn encrypt(tenant: &str, text: &str) -> Value {
    json!({"action": "encrypt", "tenant_id": tenant, "plaintext_result": text})
}

fn decrypt(tenant: &str, payload: &Value) -> Value {
    json!({"action": "decrypt", "tenant_id": tenant, "encrypted_payload": payload})
}

#[test]
fn a_parents_program_gets_what_its_tenant_may_have() {
    let mut bed = Bed::new();
    let answers = bed.ask(&[
        json!({"action": "health"}),
        encrypt("acme", "the card of acme"),
    ]);
    let health = json!({
        "success": true, "status": "healthy", "attestation_ready": true, "kms_ready": true,
    });
    assert_eq!(answers[0], health);
    let payload = &answers[1]["encrypted_response"];
    let mut other_key = decrypt("acme", payload);
    other_key["kms_key_arn"] = format!("{}0", bed.key).into();
    let answers = bed.ask(&[
        decrypt("acme", payload),
        decrypt("zeta", payload),
        other_key,
        decrypt("acme", &json!("AAAA")),
        decrypt("acme", payload),
    ]);
    assert_eq!(
        answers[0],
        json!({"success": true, "plaintext": "the card of acme"})
    );
    let error = |at: usize| {
        answers[at]["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{answers:?}"))
    };
    assert!(error(1).starts_with("decryption: "), "{}", error(1));
    assert!(error(2).starts_with("permission: "), "{}", error(2));
    assert!(error(3).starts_with("decryption: "), "{}", error(3));
    assert_eq!(answers[4], answers[0]);
    assert!(
        !bed.service.log().contains("the card"),
        "{}",
        bed.service.log()
    );

    // Another image is another enclave: KMS does not open it, and the service tells so and goes on.
    assert!(bed.service.terminate().success());
    bed.service = start(&bed.lab, &bed.aws, &bed.tenants, "bb");
    let answers = bed.ask(&[decrypt("acme", payload), json!({"action": "health"})]);
    assert_eq!(answers[0]["success"], false, "{answers:?}");
    assert_eq!(answers[1]["attestation_ready"], true, "{answers:?}");
}

#[test]
fn many_programs_are_served_at_once() {
    let bed = Bed::new();
    let made = bed.ask(&[encrypt("acme", "shared")]);
    let ask = [decrypt("acme", &made[0]["encrypted_response"])];
    let opened = std::thread::scope(|scope| {
        let programs: Vec<_> = (0..30).map(|_| scope.spawn(|| bed.ask(&ask))).collect();
        programs
            .into_iter()
            .map(|program| program.join().unwrap())
            .collect::<Vec<_>>()
    });
    for answers in opened {
        assert_eq!(answers, [json!({"success": true, "plaintext": "shared"})]);
    }
}

#[test]
fn a_key_or_a_kms_that_is_gone_is_told_and_its_return_needs_no_restart() {
    let mut bed = Bed::new();
    let made = bed.ask(&[encrypt("acme", "shared")]);
    let ask = [decrypt("acme", &made[0]["encrypted_response"])];
    let opened = [json!({"success": true, "plaintext": "shared"})];
    let admin = |bed: &Bed, operation: &str| {
        let id = bed.key.rsplit('/').next().unwrap();
        let mut arguments = json!({ "KeyId": id });
        if operation == "schedule_key_deletion" {
            arguments["PendingWindowInDays"] = 7.into();
        }
        let arguments = ["call", operation, &arguments.to_string()];
        let done = bed.aws.boto3(&bed.aws.admin(), &bed.lab.parent, &arguments);
        assert_eq!(done.get("refused"), None, "{done}");
    };
    let refused = |bed: &Bed, word: &str| {
        let answers = bed.ask(&ask);
        let error = answers[0]["error"].as_str().unwrap_or_default();
        assert!(error.starts_with(word), "{word}: {answers:?}");
    };
    admin(&bed, "disable_key");
    refused(&bed, "request: DisabledException");
    admin(&bed, "enable_key");
    assert_eq!(bed.ask(&ask), opened);

    bed.aws.nginx.kill();
    refused(&bed, "network: ");
    bed.aws.nginx = bed.lab.aws_nginx();
    assert_eq!(bed.ask(&ask), opened);

    admin(&bed, "schedule_key_deletion");
    refused(&bed, "request: KMSInvalidStateException");
    assert!(bed.service.terminate().success());
}
