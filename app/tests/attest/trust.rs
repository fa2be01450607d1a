//! Who signed, by which certificates, and when.

use crate::{Case, bytes, now};
use ciborium::Value;
use enclave_app::attest::{Error, Expected, Root, verify};
use test_attester::{Authority, Shape};

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
    let qemu = include_bytes!("../data/qemu-document/document.cose");
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
