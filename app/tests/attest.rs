//! Documents of a test root that are to be believed, and every way of being wrong.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use ciborium::Value;
use enclave_app::attest::{DocumentError, Error, Expected, Root, Unverified, Verified, verify};
use enclave_app::nsm::Place;
use proptest::prelude::*;
use test_attester::{Attester, Authority, Shape, encoded, payload};

const IMAGE: [[u8; 48]; 3] = [[0xa0; 48], [0xa1; 48], [0xa2; 48]];

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// An authority, and the payload of a document that is right.
struct Case {
    authority: Authority,
    payload: Vec<(Value, Value)>,
}

impl Case {
    fn new() -> Case {
        Case::of(&Shape::default())
    }

    fn of(shape: &Shape) -> Case {
        let authority = Authority::new(shape);
        let attester = Attester::new(authority.clone(), IMAGE);
        let payload = payload(&authority, &attester);
        Case { authority, payload }
    }

    fn set(mut self, name: &str, value: impl Into<Value>) -> Case {
        self.payload.retain(|(key, _)| key.as_text() != Some(name));
        self.payload.push((name.into(), value.into()));
        self
    }

    fn signed(&self) -> Vec<u8> {
        self.authority.sign(&Value::Map(self.payload.clone()))
    }

    fn root(&self) -> Root {
        Root::other(self.authority.bundle[0].clone())
    }

    fn verify_at(&self, at: u64, expected: &Expected) -> Result<Verified, Error> {
        verify(&self.signed(), &self.root(), at, expected)
    }

    fn verify(&self) -> Result<Verified, Error> {
        self.verify_at(now(), &Expected::default())
    }

    fn refused(&self) -> Error {
        self.verify().unwrap_err()
    }
}

fn bytes(length: usize) -> Value {
    Value::Bytes(vec![5; length])
}

#[test]
fn a_test_document_verifies_under_its_root_alone() {
    let case = Case::new();
    let verified = case.verify().unwrap();
    assert_eq!(verified.chain.len(), 4);
    let error = verify(&case.signed(), &Root::aws(), now(), &Expected::default()).unwrap_err();
    assert!(matches!(error, Error::Root(..)), "{error}");
    // The tag of a COSE_Sign1 may be there.
    let mut tagged = vec![0xd2];
    tagged.extend(case.signed());
    verify(&tagged, &case.root(), now(), &Expected::default()).unwrap();
}

#[test]
fn a_document_of_a_secure_module_holds_what_was_handed_in() {
    let authority = Authority::default();
    let root = Root::other(authority.bundle[0].clone());
    let place = Place::Enclave(std::sync::Arc::new(Attester::new(authority, IMAGE)));
    let document = place.attest(Some(b"n"), Some(b"u"), Some(b"k")).unwrap();
    let expected = Expected {
        pcrs: BTreeMap::from([(0, IMAGE[0]), (1, IMAGE[1]), (2, IMAGE[2])]),
        nonce: Some(b"n".to_vec()),
        user_data: Some(b"u".to_vec()),
        public_key: Some(b"k".to_vec()),
        allow_debug: false,
    };
    let verified = verify(&document, &root, now(), &expected).unwrap();
    for check in ["PCR0", "PCR1", "PCR2", "nonce", "user data", "public key"] {
        let said = format!("{check}: as expected");
        assert!(verified.checks.contains(&said), "{check}");
    }
}

#[test]
fn what_is_not_expected_is_refused() {
    let case = Case::new().set("nonce", Value::Bytes(b"n".to_vec()));
    let refused = |expected: &Expected| case.verify_at(now(), expected).unwrap_err().to_string();
    let pcr = |index, value| Expected {
        pcrs: BTreeMap::from([(index, value)]),
        ..Expected::default()
    };
    assert!(refused(&pcr(0, IMAGE[1])).contains("PCR0 is a0"));
    assert!(refused(&pcr(16, [0; 48])).contains("PCR16 is not in the document"));
    let nonce = |nonce: &[u8]| Expected {
        nonce: Some(nonce.to_vec()),
        ..Expected::default()
    };
    assert!(case.verify_at(now(), &nonce(b"n")).is_ok());
    assert!(refused(&nonce(b"m")).contains("nonce"));
    assert!(refused(&nonce(b"")).contains("nonce"));
    let user_data = Expected {
        user_data: Some(Vec::new()),
        ..Expected::default()
    };
    assert!(refused(&user_data).contains("user data is not the expected one: it has none"));
    let key = Expected {
        public_key: Some(b"k".to_vec()),
        ..Expected::default()
    };
    assert!(refused(&key).contains("public key"));
}

#[test]
fn an_enclave_in_debug_mode_is_refused_unless_asked_for() {
    let authority = Authority::default();
    let attester = Attester::new(authority.clone(), [[0; 48]; 3]);
    let payload = payload(&authority, &attester);
    let case = Case { authority, payload };
    assert_eq!(case.refused(), Error::Debug);
    let expected = Expected {
        allow_debug: true,
        ..Expected::default()
    };
    assert!(case.verify_at(now(), &expected).is_ok());
}

#[test]
fn what_an_emulated_secure_module_makes_is_refused_as_unsigned() {
    let case = Case::new()
        .set("certificate", Value::Bytes(vec![0; 512]))
        .set("cabundle", vec![Value::Bytes(vec![0; 512])]);
    let mut document = case.signed();
    let length = document.len();
    document[length - 96..].fill(0);
    let refused = |document: &[u8], root: &Root| {
        verify(document, root, now(), &Expected::default()).unwrap_err()
    };
    // Not even under the root it names.
    let named = Root::other(vec![0; 512]);
    assert_eq!(refused(&document, &Root::aws()), Error::Unsigned);
    assert_eq!(refused(&document, &named), Error::Unsigned);
    // As QEMU makes it, with another algorithm and a shorter signature.
    let qemu = include_bytes!("data/qemu-document/document.cose");
    assert_eq!(refused(qemu, &Root::aws()), Error::Unsigned);
    // Nor with something for a signature.
    document[length - 1] = 1;
    let error = refused(&document, &named).to_string();
    assert!(error.contains("all zeros"), "{error}");
}

#[test]
fn a_signature_of_another_key_or_over_other_bytes_is_refused() {
    let (case, other) = (Case::new(), Case::new());
    let theirs = other.authority.sign(&Value::Map(case.payload.clone()));
    let refused =
        |document: &[u8]| verify(document, &case.root(), now(), &Expected::default()).unwrap_err();
    assert_eq!(refused(&theirs), Error::Signature);
    // The signature of one document on another.
    let mut swapped = case.signed();
    let second = Case {
        authority: case.authority.clone(),
        payload: case.payload.clone(),
    }
    .set("nonce", bytes(1))
    .signed();
    let length = swapped.len();
    swapped[length - 96..].copy_from_slice(&second[second.len() - 96..]);
    assert_eq!(refused(&swapped), Error::Signature);
}

#[test]
fn another_algorithm_is_refused() {
    let case = Case::new();
    let payload = encoded(&Value::Map(case.payload.clone()));
    let alg = |number: i64| (Value::from(1), Value::from(number));
    for header in [
        vec![alg(-7)],
        vec![alg(-36)],
        vec![],
        vec![alg(-35), alg(-35)],
        vec![alg(-35), (Value::from(4), bytes(1))],
        vec![(Value::from(1), Value::from("ES384"))],
    ] {
        let document = case
            .authority
            .sign_with(&Value::Map(header.clone()), &payload);
        let error = Unverified::read(&document).unwrap_err();
        assert_eq!(error, DocumentError::Algorithm, "{header:?}");
    }
    // An empty protected header, as COSE writes none at all.
    let mut parts = parts(&case.signed());
    parts[0] = Value::Bytes(Vec::new());
    assert!(Unverified::read(&encoded(&Value::Array(parts))).is_err());
}

fn parts(document: &[u8]) -> Vec<Value> {
    let document: Value = ciborium::from_reader(document).unwrap();
    document.into_array().unwrap()
}

#[test]
fn another_form_than_cose_sign1_is_refused() {
    let case = Case::new();
    let right = parts(&case.signed());
    let with = |index: usize, value: Value| {
        let mut parts = right.clone();
        parts[index] = value;
        encoded(&Value::Array(parts))
    };
    let mut three = right.clone();
    three.pop();
    let mut five = right.clone();
    five.push(Value::Null);
    let whole = Value::Array(right.clone());
    for (what, document) in [
        ("three parts", encoded(&Value::Array(three))),
        ("five parts", encoded(&Value::Array(five))),
        (
            "another tag",
            encoded(&Value::Tag(17, Box::new(whole.clone()))),
        ),
        (
            "two tags",
            encoded(&Value::Tag(18, Box::new(Value::Tag(18, Box::new(whole))))),
        ),
        (
            "an unprotected header",
            with(1, Value::Map(vec![(1.into(), (-35).into())])),
        ),
        ("no payload", with(2, Value::Null)),
        ("a short signature", with(3, bytes(95))),
        ("a long signature", with(3, bytes(97))),
        ("a text", encoded(&"text".into())),
        ("deep", [vec![0x81; 5000], vec![0x00]].concat()),
        (
            "a huge array",
            vec![0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ),
        (
            "a huge string",
            vec![0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ),
    ] {
        assert!(Unverified::read(&document).is_err(), "{what}");
    }
}

#[test]
fn another_encoding_of_the_same_is_refused() {
    let case = Case::new();
    let signed = case.signed();
    // The array of four with an indefinite length, and with one byte more than needed.
    let indefinite = [&[0x9f], &signed[1..], &[0xff]].concat();
    let longer = [&[0x98, 4], &signed[1..]].concat();
    for document in [indefinite, longer] {
        let error = Unverified::read(&document).unwrap_err();
        assert_eq!(error, DocumentError::Encoding("document"));
    }
    // The payload with an indefinite length: signed, and refused all the same.
    let payload = encoded(&Value::Map(case.payload.clone()));
    let payload = [&[0xbf], &payload[1..], &[0xff]].concat();
    let es384 = Value::Map(vec![(1.into(), (-35).into())]);
    let document = case.authority.sign_with(&es384, &payload);
    assert_eq!(
        Unverified::read(&document),
        Err(DocumentError::Encoding("payload"))
    );
}

#[test]
fn fields_that_are_missing_doubled_unknown_or_out_of_bounds_are_refused() {
    let pcrs = |entries: Vec<(Value, Value)>| Value::Map(entries);
    let list = |count: usize, length: usize| Value::Array(vec![bytes(length); count]);
    for (name, value) in [
        ("module_id", Value::from("")),
        ("module_id", "x".repeat(257).into()),
        ("module_id", bytes(4)),
        ("digest", "SHA256".into()),
        ("digest", Value::Null),
        ("timestamp", 0.into()),
        ("timestamp", (-1).into()),
        ("timestamp", 1.5.into()),
        ("timestamp", "now".into()),
        ("pcrs", pcrs(vec![])),
        ("pcrs", pcrs(vec![(32.into(), bytes(48))])),
        ("pcrs", pcrs(vec![((-1).into(), bytes(48))])),
        ("pcrs", pcrs(vec![("0".into(), bytes(48))])),
        ("pcrs", pcrs(vec![(0.into(), bytes(47))])),
        ("pcrs", pcrs(vec![(0.into(), bytes(64))])),
        (
            "pcrs",
            pcrs(vec![(0.into(), bytes(48)), (0.into(), bytes(48))]),
        ),
        ("pcrs", list(1, 48)),
        ("certificate", bytes(0)),
        ("certificate", bytes(1025)),
        ("certificate", Value::Null),
        ("cabundle", list(0, 0)),
        ("cabundle", list(1, 0)),
        ("cabundle", list(1, 1025)),
        ("cabundle", list(7, 100)),
        ("cabundle", bytes(100)),
        ("public_key", bytes(0)),
        ("public_key", bytes(1025)),
        ("public_key", "text".into()),
        ("user_data", bytes(513)),
        ("nonce", bytes(513)),
        ("nonce", 1.into()),
        ("extra", Value::Null),
    ] {
        let document = Case::new().set(name, value.clone()).signed();
        assert!(Unverified::read(&document).is_err(), "{name}: {value:?}");
    }
    for name in [
        "module_id",
        "digest",
        "timestamp",
        "pcrs",
        "certificate",
        "cabundle",
    ] {
        let mut case = Case::new();
        case.payload.retain(|(key, _)| key.as_text() != Some(name));
        let missing = Err(DocumentError::Missing(name));
        assert_eq!(Unverified::read(&case.signed()).map(drop), missing);
    }
    let mut twice = Case::new();
    twice.payload.push(("nonce".into(), bytes(1)));
    let error = Unverified::read(&twice.signed()).unwrap_err();
    assert_eq!(error, DocumentError::Twice("nonce".into()));
    let mut number = Case::new();
    number.payload.push((1.into(), bytes(1)));
    assert!(Unverified::read(&number.signed()).is_err());
}

#[test]
fn the_bounds_themselves_are_allowed_and_optional_fields_may_be_missing() {
    let mut case = Case::new()
        .set("public_key", bytes(1024))
        .set("user_data", bytes(512))
        .set("nonce", bytes(0));
    assert!(case.verify().is_ok());
    let optional = ["public_key", "user_data", "nonce"];
    case.payload
        .retain(|(key, _)| !optional.contains(&key.as_text().unwrap()));
    assert!(case.verify().is_ok());
}

#[test]
fn certificates_that_are_not_valid_or_not_meant_for_this_are_refused() {
    use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
    const HOUR: i64 = 3600;
    let base = Shape::default;
    for (what, shape, why) in [
        (
            "expired",
            Shape {
                signer: (-2 * HOUR, -HOUR),
                ..base()
            },
            "certificate 0 is valid from",
        ),
        (
            "not yet",
            Shape {
                signer: (HOUR, 2 * HOUR),
                ..base()
            },
            "certificate 0 is valid from",
        ),
        (
            "expired above",
            Shape {
                above: (-2 * HOUR, -HOUR),
                ..base()
            },
            "is valid from",
        ),
        (
            "a curve above",
            Shape {
                above_curve: Shape::p256(),
                ..base()
            },
            "P-384",
        ),
        (
            "an authority signs",
            Shape {
                signer_is_ca: true,
                ..base()
            },
            "CaUsedAsEndEntity",
        ),
        (
            "no authority above",
            Shape {
                between_is_ca: false,
                ..base()
            },
            "EndEntityUsedAsCa",
        ),
        (
            "too many below",
            Shape {
                limit_short: 1,
                ..base()
            },
            "PathLenConstraintViolated",
        ),
        (
            "the signer's key for certificates",
            Shape {
                signer_usage: vec![KeyUsagePurpose::KeyCertSign],
                ..base()
            },
            "not for signatures",
        ),
        (
            "the signer's key for nothing",
            Shape {
                signer_usage: vec![],
                ..base()
            },
            "does not say what its key is for",
        ),
        (
            "keys above for signatures",
            Shape {
                above_usage: vec![KeyUsagePurpose::DigitalSignature],
                ..base()
            },
            "not for certificates",
        ),
        (
            "another purpose",
            Shape {
                signer_purpose: Some(ExtendedKeyUsagePurpose::ServerAuth),
                ..base()
            },
            "ExtensionValueInvalid",
        ),
    ] {
        let error = Case::of(&shape).refused().to_string();
        assert!(error.contains(why), "{what}: {error}");
    }
    // No limit on how many are below is no fault.
    let unlimited = Shape {
        is_limited: false,
        ..base()
    };
    assert!(Case::of(&unlimited).verify().is_ok());
}

#[test]
fn a_signer_of_another_curve_is_refused() {
    // The signature cannot be made with it, so it stays that of another key.
    let case = Case::new();
    let p256 = Authority::new(&Shape {
        signer_curve: Shape::p256(),
        ..Shape::default()
    });
    let bundle: Vec<Value> = p256.bundle.iter().cloned().map(Value::Bytes).collect();
    let root = Root::other(p256.bundle[0].clone());
    let case = case
        .set("certificate", Value::Bytes(p256.certificate.clone()))
        .set("cabundle", bundle);
    let error = verify(&case.signed(), &root, now(), &Expected::default()).unwrap_err();
    assert!(error.to_string().contains("P-384"), "{error}");
}

#[test]
fn a_bundle_that_is_no_chain_is_refused() {
    let other = Case::new();
    let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let case = Case::new();
        let mut bundle = case.authority.bundle.clone();
        change(&mut bundle);
        let bundle: Vec<Value> = bundle.into_iter().map(Value::Bytes).collect();
        case.set("cabundle", bundle).refused()
    };
    let chain = |error: Error| assert!(matches!(error, Error::Chain(_)), "{error}");
    // One missing, two swapped, one of another chain, one too many, none but the root.
    chain(with(&|bundle| drop(bundle.remove(1))));
    chain(with(&|bundle| drop(bundle.remove(2))));
    chain(with(&|bundle| bundle.swap(1, 2)));
    chain(with(&|bundle| {
        bundle[2].clone_from(&other.authority.bundle[2])
    }));
    chain(with(&|bundle| {
        bundle.push(other.authority.bundle[2].clone())
    }));
    chain(with(&|bundle| bundle.push(bundle[0].clone())));
    chain(with(&|bundle| bundle.truncate(1)));
    // The root missing, not first, or another one of the same name.
    let root = |error: Error| assert!(matches!(error, Error::Root(..)), "{error}");
    root(with(&|bundle| drop(bundle.remove(0))));
    root(with(&|bundle| bundle.rotate_left(1)));
    root(with(&|bundle| {
        bundle[0].clone_from(&other.authority.bundle[0])
    }));
    // A certificate that is none.
    let none = with(&|bundle| bundle[1] = vec![0x30; 100]);
    assert!(matches!(none, Error::Certificate(2, _)), "{none}");
    let none = Case::new().set("certificate", bytes(100)).refused();
    assert!(matches!(none, Error::Certificate(0, _)), "{none}");
}

#[test]
fn a_document_from_the_future_or_from_before_its_certificate_is_refused() {
    let soon = Case::new().set("timestamp", (now() + 250) * 1000);
    assert!(soon.verify().is_ok());
    let future = Case::new().set("timestamp", (now() + 600) * 1000);
    assert!(future.refused().to_string().contains("later than"));
    let old = Case::new().set("timestamp", (now() - 2 * 86_400) * 1000);
    assert!(old.refused().to_string().contains("was not valid"));
    let endless = Case::new().set("timestamp", u64::MAX);
    assert!(matches!(endless.refused(), Error::Timestamp(..)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A payload of any fields, signed rightly, is read as what it is or refused.
    #[test]
    fn any_lengths_are_read_or_refused_without_a_panic(
        key in 0..1100usize, data in 0..600usize, nonce in 0..600usize
    ) {
        static CASE: std::sync::LazyLock<Case> = std::sync::LazyLock::new(Case::new);
        let case = Case {
            authority: CASE.authority.clone(),
            payload: CASE.payload.clone(),
        };
        let case = case
            .set("public_key", bytes(key))
            .set("user_data", bytes(data))
            .set("nonce", bytes(nonce));
        let is_right = (1..=1024).contains(&key) && data <= 512 && nonce <= 512;
        prop_assert_eq!(case.verify().is_ok(), is_right);
    }
}
