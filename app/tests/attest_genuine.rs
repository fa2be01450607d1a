//! A document that AWS signed, and what becomes of it when anything is changed.
#![allow(clippy::unwrap_used)]

use std::time::{SystemTime, UNIX_EPOCH};

use enclave_app::attest::{
    AWS_FINGERPRINT, DocumentError, Error, Expected, Root, Unverified, verify,
};
use proptest::prelude::*;
use test_attester::Authority;

/// See the README beside it.
const GENUINE: &[u8] = include_bytes!("data/aws-document/document.cose");
const GENUINE_TIME: u64 = 1_736_179_625;

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

#[test]
fn what_aws_signed_verifies_at_its_own_time() {
    let verified = verify(GENUINE, &Root::aws(), GENUINE_TIME, &Expected::default()).unwrap();
    let document = verified.document;
    assert_eq!(
        document.module_id,
        "i-0bee92034f3d60691-enc01943c5eaab3ad6a"
    );
    assert_eq!(document.timestamp / 1000, GENUINE_TIME);
    assert_eq!(document.pcrs.len(), 16);
    assert_eq!(hex::encode(document.pcrs[&0])[..16], *"8bb159f202bb95d6");
    assert!(!document.is_debug());
    assert_eq!(verified.chain.len(), 5);
    assert_eq!(verified.chain[4].fingerprint, AWS_FINGERPRINT);
}

#[test]
fn what_aws_signed_fails_outside_of_its_three_hours_and_under_another_root() {
    for at in [now(), GENUINE_TIME - 600, GENUINE_TIME + 3 * 3600 + 1] {
        let error = verify(GENUINE, &Root::aws(), at, &Expected::default()).unwrap_err();
        assert!(
            matches!(error, Error::Validity { number: 0, .. }),
            "{error}"
        );
    }
    let other = Root::other(Authority::default().bundle[0].clone());
    let error = verify(GENUINE, &other, GENUINE_TIME, &Expected::default()).unwrap_err();
    assert!(matches!(error, Error::Root(..)), "{error}");
}

#[test]
fn any_bit_that_is_changed_in_what_aws_signed_is_noticed() {
    // Every byte, one bit of each.
    for index in 0..GENUINE.len() {
        let mut changed = GENUINE.to_vec();
        changed[index] ^= 1 << (index % 8);
        let result = verify(&changed, &Root::aws(), GENUINE_TIME, &Expected::default());
        assert!(result.is_err(), "byte {index}");
    }
}

#[test]
fn what_is_cut_off_or_has_more_behind_is_refused() {
    for length in 0..GENUINE.len() {
        assert!(Unverified::read(&GENUINE[..length]).is_err(), "{length}");
    }
    let mut more = GENUINE.to_vec();
    more.push(0);
    assert_eq!(
        Unverified::read(&more),
        Err(DocumentError::Trailing("document"))
    );
    let long = vec![0x84; 0x3001];
    assert_eq!(Unverified::read(&long), Err(DocumentError::TooLong));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Bytes changed, removed, put in and repeated: never a panic, never believed.
    #[test]
    fn what_was_changed_anyhow_is_never_believed(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<u8>(), 1..64usize), 1..6)
    ) {
        let mut document = GENUINE.to_vec();
        for (place, kind, byte, length) in edits {
            if document.is_empty() {
                break;
            }
            let at = place.index(document.len());
            let end = (at + length).min(document.len());
            match kind {
                0 => document[at] = byte,
                1 => drop(document.drain(at..end)),
                2 => document.insert(at, byte),
                _ => {
                    let copy = document[at..end].to_vec();
                    document.splice(at..at, copy);
                }
            }
        }
        prop_assume!(document != GENUINE);
        let result = verify(&document, &Root::aws(), GENUINE_TIME, &Expected::default());
        prop_assert!(result.is_err());
    }

    /// Anything at all: never a panic.
    #[test]
    fn anything_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(verify(&bytes, &Root::aws(), GENUINE_TIME, &Expected::default()).is_err());
    }
}
