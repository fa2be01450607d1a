//! What was asked for is in a document, or it is refused.

use crate::{Case, IMAGE, now};
use ciborium::Value;
use enclave_app::attest::{Error, Expected, Root, verify};
use enclave_app::nsm::Place;
use std::collections::BTreeMap;
use test_attester::{Attester, Authority, payload};

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
