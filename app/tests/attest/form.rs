//! Every form but the one that AWS writes is refused.

use crate::{Case, bytes};
use ciborium::Value;
use enclave_app::attest::{DocumentError, Unverified};
use proptest::prelude::*;
use test_attester::encoded;

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
