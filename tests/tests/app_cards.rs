//! `enclave-app cards`: a sender on the parent, the service in the enclave, SQS and KMS beyond the
//! tunnel, and boto3 as the client that is not ours.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use netd_tests::{Aws, Client, Daemons, Done, Lab, Process, Server, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// A number that payment providers document for tests.
const NUMBER: &str = "4000002760003184";

/// A lab with AWS in it, two queues, and a key for enclaves of the image `aa…`.
struct Bed {
    // In the order of their end.
    service: Process,
    daemons: Daemons,
    aws: Aws,
    _dns: Server,
    key: String,
    lab: Lab,
}

impl Bed {
    fn new() -> Bed {
        Bed::with("aa")
    }

    /// With a service of this image's PCR0, a byte.
    fn with(pcr0: &str) -> Bed {
        let lab = Lab::new();
        let dns = lab.unbound();
        let aws = lab.aws();
        let capture = capture(&lab);
        let daemons = lab.up_with(&["--capture", capture.to_str().unwrap()], "");
        let key = aws.sealed_key("us-east-1", &lab);
        for name in ["cards", "results"] {
            let make = ["queue", "create_queue", name, "{}"];
            aws.boto3(&aws.client(), &lab.parent, &make);
        }
        let service = start(&lab, &aws, &key, pcr0);
        Bed {
            service,
            daemons,
            aws,
            _dns: dns,
            key,
            lab,
        }
    }

    /// `cards send`, on the parent.
    #[track_caller]
    fn send(&self, arguments: &[&str]) -> Done {
        let line = ["cards", "send", "--queue", "cards", "--key", &self.key];
        let app = self.lab.binary("enclave-app");
        let client = self.aws.client();
        client.run(&self.lab.parent, &app, &[&line[..], arguments].concat())
    }

    /// Sends cards that must be answered.
    #[track_caller]
    fn send_and_see(&self, count: &str) {
        let done = self.send(&["--count", count, "--results", "results"]).ok();
        let said: Value = serde_json::from_str(&done).unwrap();
        let cards = said["cards"].as_array().unwrap();
        assert_eq!(cards.len().to_string(), count, "{said}");
        for card in cards {
            assert_eq!(card["last_four"].as_str().unwrap().len(), 4, "{said}");
        }
    }

    /// boto3 in the enclave, through the tunnel.
    #[track_caller]
    fn boto3(&self, arguments: &[&str]) -> Value {
        let done = self
            .aws
            .boto3(&self.aws.client(), &self.lab.enclave, arguments);
        assert_eq!(done.get("refused"), None, "{arguments:?}: {done}");
        done
    }

    /// Puts any text on the queue; SQS's name for it.
    #[track_caller]
    fn put(&self, body: &str) -> String {
        let body = json!({ "MessageBody": body }).to_string();
        let sent = self.boto3(&["queue", "send_message", "cards", &body]);
        sent["MessageId"].as_str().unwrap().to_owned()
    }

    /// So many answers, which are deleted.
    #[track_caller]
    fn take(&self, count: usize) -> Vec<Value> {
        let taken = self.boto3(&["take", "results", &count.to_string()]);
        let texts = taken.as_array().unwrap().iter();
        let answers: Vec<Value> = texts
            .map(|text| serde_json::from_str(text.as_str().unwrap()).unwrap())
            .collect();
        assert_eq!(answers.len(), count, "{answers:?}\n{}", self.service.log());
        answers
    }

    /// How many messages a queue has, those that somebody looks at included.
    fn left(&self, queue: &str) -> usize {
        let names = [
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
        ];
        let asked = json!({ "AttributeNames": names }).to_string();
        let told = self.boto3(&["queue", "get_queue_attributes", queue, &asked]);
        let count = |name: &str| -> usize {
            let text = told["Attributes"][name].as_str();
            text.unwrap_or_else(|| panic!("{told}")).parse().unwrap()
        };
        names.into_iter().map(count).sum()
    }

    /// A message with any plaintext, encrypted with any key and bound to any identifier.
    fn message(&self, id: &str, plaintext: &str, key: &str, bound: &str) -> String {
        let context = json!({ "purpose": "enclave-app cards", "id": bound });
        let asked = json!({ "KeyId": key, "Plaintext": plaintext, "EncryptionContext": context });
        let made = self.boto3(&["call", "encrypt", &asked.to_string()]);
        json!({ "id": id, "card": made["CiphertextBlob"] }).to_string()
    }

    /// Changes the key, as who administers it.
    #[track_caller]
    fn administer(&self, operation: &str, more: &Value) {
        // moto wants the bare identifier.
        let id = self.key.rsplit('/').next().unwrap();
        let mut asked = json!({ "KeyId": id });
        asked
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let call = ["call", operation, &asked.to_string()];
        let done = self.aws.boto3(&self.aws.admin(), &self.lab.parent, &call);
        assert_eq!(done.get("refused"), None, "{done}");
    }

    /// How many answers KMS gave to this call.
    fn calls(&self, call: &str) -> usize {
        self.aws
            .service
            .log()
            .matches(&format!("{call} for "))
            .count()
    }
}

/// What host-netd keeps of the link.
fn capture(lab: &Lab) -> PathBuf {
    lab.dir().join("link/host.pcapng")
}

/// Starts the service in an enclave whose image's PCR0 is this byte, 48 times.
fn start(lab: &Lab, aws: &Aws, key: &str, pcr0: &str) -> Process {
    let mut service = spawn(lab, aws, key, pcr0);
    service.wait_log("serving", 30);
    service
}

/// The same without waiting for it.
fn spawn(lab: &Lab, aws: &Aws, key: &str, pcr0: &str) -> Process {
    let client = Client {
        pcr0: pcr0.repeat(48),
        ..aws.client()
    };
    let app = lab.binary("attested-app");
    let line = [
        &app,
        "cards",
        "serve",
        "--queue",
        "cards",
        "--results",
        "results",
    ];
    let line = [&line[..], &["--key", key]].concat();
    client.spawn(&lab.enclave, &["ENCLAVE_APP_LOG=debug"], &line)
}

#[test]
fn each_card_is_answered_with_its_own_last_four_digits() {
    let mut bed = Bed::new();
    bed.send_and_see("12");
    assert_eq!((bed.left("cards"), bed.left("results")), (0, 0));
    let log = bed.aws.service.log();
    let opened = "Decrypt for arn:aws:iam::123456789012:role/enclave: ";
    assert_eq!(log.matches(&format!("{opened}sealed")).count(), 12, "{log}");
    assert!(!log.contains(&format!("{opened}plain")), "{log}");
    // Waiting for messages, it ends at once.
    assert!(bed.service.terminate().success(), "{}", bed.service.log());
    // Nobody answers any more; the card waits.
    let done = bed.send(&["--results", "results", "--timeout", "2"]);
    assert_eq!(done.code(), 3, "{done}");
    assert!(
        done.stderr
            .contains("1 of 1 cards were not answered within 2 s"),
        "{done}"
    );
    assert_eq!(bed.left("cards"), 1);
}

#[test]
fn boto3_through_the_same_tunnel_is_the_control_and_no_number_is_seen() {
    let bed = Bed::new();
    let message = bed.message("order-7", NUMBER, &bed.key, "order-7");
    // The same message twice, as SQS may deliver it.
    let ids = [bed.put(&message), bed.put(&message)];
    let mut answers = bed.take(2);
    answers.sort_by_key(|answer| ids.iter().position(|id| answer["message_id"] == **id));
    let expected = ids.map(|id| json!({"message_id": id, "id": "order-7", "last_four": "3184"}));
    assert_eq!(answers, expected);
    until(30, "both are deleted", || {
        (bed.left("cards") == 0).then_some(())
    });

    let captured = fs::read(capture(&bed.lab)).unwrap();
    let sees = |text: &str| {
        captured
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    assert!(sees("sqs.us-east-1.amazonaws.com"), "the capture works");
    assert!(!sees(NUMBER) && !sees("3184\""));
    for log in [
        bed.service.log(),
        bed.daemons.host.log(),
        bed.daemons.enclave.log(),
    ] {
        assert!(!log.contains(NUMBER), "{log}");
    }
    let log = bed.service.log();
    assert_eq!(log.matches("answered").count(), 2, "{log}");
}

#[test]
fn what_is_no_card_is_answered_as_such_and_deleted() {
    let bed = Bed::new();
    let other_key = bed.aws.sealed_key("us-east-1", &bed.lab);
    let of =
        |id: &str, plaintext: &str, key: &str, bound: &str| bed.message(id, plaintext, key, bound);
    let cases = [
        ("not JSON".to_owned(), None, "message"),
        (
            json!({"id": "1", "card": "AAAA", "more": 1}).to_string(),
            None,
            "message",
        ),
        (
            json!({"id": "2", "card": "!"}).to_string(),
            None,
            "ciphertext",
        ),
        ("x".repeat(100_000), None, "too_long"),
        (
            json!({"id": "3", "card": "AAAA"}).to_string(),
            Some("3"),
            "decryption",
        ),
        (of("4", NUMBER, &bed.key, "5"), Some("4"), "decryption"),
        (of("6", NUMBER, &other_key, "6"), Some("6"), "decryption"),
        (
            of("7", "4000002760003185", &bed.key, "7"),
            Some("7"),
            "card",
        ),
    ];
    let mut expected: Vec<Value> = cases
        .iter()
        .map(|(body, id, error)| {
            let mut answer = json!({ "message_id": bed.put(body), "error": error });
            if let Some(id) = id {
                answer["id"] = json!(id);
            }
            answer
        })
        .collect();
    let mut answers = bed.take(cases.len());
    for list in [&mut expected, &mut answers] {
        list.sort_by_key(|answer| answer["message_id"].to_string());
    }
    assert_eq!(answers, expected);
    bed.send_and_see("1");
    assert_eq!(bed.left("cards"), 0);
    let log = bed.service.log();
    assert_eq!(log.matches("rejected").count(), cases.len(), "{log}");
    assert!(!log.contains(&NUMBER[..15]), "{log}");
}

#[test]
fn what_kms_refuses_stays_and_is_answered_once_it_is_allowed() {
    let mut bed = Bed::with("bb");
    bed.send(&["--count", "2"]).ok();
    // Each comes again, and again.
    let refused = "left in the queue";
    bed.service.wait_log_times(refused, 5, 60);
    bed.service.wait_log("permission: AccessDeniedException", 1);
    bed.service.wait_log("other PCR values", 1);
    assert_eq!(bed.calls("Decrypt"), 0);
    assert_eq!((bed.left("cards"), bed.left("results")), (2, 0));

    let policy = bed.lab.key_policy(&"bb".repeat(48));
    bed.administer(
        "put_key_policy",
        &json!({ "PolicyName": "default", "Policy": policy }),
    );
    bed.take(2);

    // A disabled key is no fault of the card's either.
    let card = bed.message("late", NUMBER, &bed.key, "late");
    bed.administer("disable_key", &json!({}));
    bed.put(&card);
    bed.service.wait_log("request: DisabledException", 60);
    bed.administer("enable_key", &json!({}));
    assert_eq!(bed.take(1)[0]["last_four"], "3184");
    assert_eq!(bed.service.ended(), None);
}

#[test]
fn a_queue_that_is_gone_is_waited_for() {
    let mut bed = Bed::new();
    let gone = "NonExistentQueue";
    bed.boto3(&["queue", "delete_queue", "results", "{}"]);
    bed.send(&[]).ok();
    bed.service.wait_log("left in the queue", 30);
    bed.service.wait_log(gone, 1);
    bed.boto3(&["queue", "create_queue", "results", "{}"]);
    bed.take(1);
    until(30, "it is deleted", || {
        (bed.left("cards") == 0).then_some(())
    });

    bed.boto3(&["queue", "delete_queue", "cards", "{}"]);
    bed.service.wait_log("no messages can be received", 60);
    bed.boto3(&["queue", "create_queue", "cards", "{}"]);
    bed.send_and_see("1");
    // At the start it is an error at once: a wrong name would be waited for in vain.
    let app = bed.lab.binary("attested-app");
    let line = [
        "cards",
        "serve",
        "--queue",
        "nothere",
        "--results",
        "results",
        "--key",
        &bed.key,
    ];
    let done = bed.aws.client().run(&bed.lab.enclave, &app, &line);
    assert_eq!(done.code(), 9, "{done}");
    assert!(
        done.stderr.contains("queue nothere") && done.stderr.contains(gone),
        "{done}"
    );
}

#[test]
fn a_network_that_is_gone_is_waited_for() {
    let mut bed = Bed::new();
    bed.send_and_see("1");
    bed.daemons.host.kill();
    bed.service.wait_log("no messages can be received", 60);
    bed.service.wait_log("network: ", 1);
    bed.daemons.host = bed.lab.start_host(&[]);
    // A card may be given to the request that broke off: that one comes again, much later.
    let once = ["--results", "results", "--timeout", "10"];
    let is_seen = (0..3).any(|_| bed.send(&once).status.success());
    assert!(is_seen, "{}", bed.service.log());

    // Nor is it an error at the start.
    bed.service.terminate();
    bed.daemons.host.kill();
    bed.service = spawn(&bed.lab, &bed.aws, &bed.key, "aa");
    bed.service.wait_log("the queues are not found", 60);
    bed.daemons.host = bed.lab.start_host(&[]);
    bed.service.wait_log("serving", 60);
}

#[test]
fn what_is_under_way_is_finished_before_the_end() {
    let mut bed = Bed::new();
    let message = bed.message("many", NUMBER, &bed.key, "many");
    let all = 10;
    // AWS stands still while messages are under way. The service sees none before all are sent.
    let stand_still = |bed: &mut Bed| {
        let before = bed.service.log().matches("received").count();
        bed.service.signal(Signal::SIGSTOP);
        let entry = |id: usize| json!({ "Id": id.to_string(), "MessageBody": message });
        let bodies: Vec<Value> = (0..all).map(entry).collect();
        let entries = json!({ "Entries": bodies }).to_string();
        bed.boto3(&["queue", "send_message_batch", "cards", &entries]);
        bed.service.signal(Signal::SIGCONT);
        bed.service.wait_log_times("received", before + 1, 30);
        bed.aws.service.signal(Signal::SIGSTOP);
        bed.service.signal(Signal::SIGTERM);
        bed.service
            .wait_log("ending: no more messages are received", 10);
        let log = bed.service.log();
        assert!(!log.contains("under_way=0"), "{log}");
    };
    stand_still(&mut bed);
    assert_eq!(bed.service.ended(), None);
    bed.aws.service.signal(Signal::SIGCONT);
    assert!(bed.service.wait(20).success());
    assert!(
        !bed.service.log().contains("still under way"),
        "{}",
        bed.service.log()
    );
    let answered = bed.left("results");
    assert!(answered >= 1);
    assert_eq!(answered + bed.left("cards"), all, "{}", bed.service.log());
    bed.take(answered);

    // There is a limit to it: what is cut is not lost.
    bed.service = start(&bed.lab, &bed.aws, &bed.key, "aa");
    let left = bed.left("cards");
    stand_still(&mut bed);
    let status = bed.service.wait(20);
    bed.aws.service.signal(Signal::SIGCONT);
    assert!(status.success());
    assert!(
        bed.service.log().contains("still under way"),
        "{}",
        bed.service.log()
    );
    assert!(bed.left("cards") > left);
}
