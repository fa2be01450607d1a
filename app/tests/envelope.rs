//! Envelopes in the very form that KMS makes them, and every way of being wrong.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use enclave_app::kms::{Envelope, EnvelopeError, Recipient, RecipientError};
use proptest::prelude::*;

const ENVELOPED_DATA: &str = "06092a864886f70d010703";
const DATA: &str = "06092a864886f70d010701";
const OAEP: &str = "06092a864886f70d010107";
/// SHA-256 for the hash and for MGF1, both without parameters.
const OAEP_SHA256: &str = "302fa00f300d06096086480165030402010500\
                           a11c301a06092a864886f70d010108300d06096086480165030402010500";
const AES_256_CBC: &str = "060960864801650304012a";

fn hex(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

/// A value with its definite length.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    let [high, low] = length.to_be_bytes();
    let head = match length {
        0..0x80 => vec![tag, low],
        0x80..0x100 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [&head, content].concat()
}

/// The same with an indefinite length.
fn ber(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, 0x80], content, &[0, 0]].concat()
}

/// What an envelope is made of; as it comes, as KMS does.
struct Parts {
    outer_type: Vec<u8>,
    version: Vec<u8>,
    recipient_version: Vec<u8>,
    recipient: Vec<u8>,
    key_algorithm: Vec<u8>,
    content_type: Vec<u8>,
    content_algorithm: Vec<u8>,
    encrypted_key: Vec<u8>,
    content: Vec<u8>,
    /// How long each octet string of the content is.
    chunk: usize,
    recipients: usize,
}

impl Parts {
    fn of(recipient: &Recipient, plaintext: &[u8]) -> Parts {
        let content_key = [9; 32];
        let public = PublicEncryptingKey::from_der(recipient.public_key()).unwrap();
        let public = OaepPublicEncryptingKey::new(public).unwrap();
        let mut encrypted_key = vec![0; public.ciphertext_size()];
        public
            .encrypt(
                &OAEP_SHA256_MGF1SHA256,
                &content_key,
                &mut encrypted_key,
                None,
            )
            .unwrap();
        let iv = [4; 16];
        let mut content = plaintext.to_vec();
        let key = UnboundCipherKey::new(&AES_256, &content_key).unwrap();
        let context = EncryptionContext::Iv128(FixedLength::from(iv));
        let context = PaddedBlockEncryptingKey::cbc_pkcs7(key)
            .unwrap()
            .less_safe_encrypt(&mut content, context)
            .unwrap();
        assert!(matches!(context, DecryptionContext::Iv128(_)));
        Parts {
            outer_type: hex(ENVELOPED_DATA),
            version: vec![2],
            recipient_version: vec![2],
            recipient: der(0x80, &[7; 32]),
            key_algorithm: der(0x30, &[hex(OAEP), hex(OAEP_SHA256)].concat()),
            content_type: hex(DATA),
            content_algorithm: der(0x30, &[hex(AES_256_CBC), der(4, &iv)].concat()),
            encrypted_key,
            content,
            chunk: usize::MAX,
            recipients: 1,
        }
    }

    fn sealed(&self) -> Vec<u8> {
        let recipient = der(
            0x30,
            &[
                der(2, &self.recipient_version),
                self.recipient.clone(),
                self.key_algorithm.clone(),
                der(4, &self.encrypted_key),
            ]
            .concat(),
        );
        let chunks: Vec<u8> = self
            .content
            .chunks(self.chunk)
            .flat_map(|chunk| der(4, chunk))
            .collect();
        let content = [
            self.content_type.clone(),
            self.content_algorithm.clone(),
            ber(0xa0, &chunks),
        ]
        .concat();
        let data = [
            der(2, &self.version),
            der(0x31, &recipient.repeat(self.recipients)),
            ber(0x30, &content),
        ]
        .concat();
        ber(
            0x30,
            &[self.outer_type.clone(), ber(0xa0, &ber(0x30, &data))].concat(),
        )
    }
}

/// Making a pair takes long, and reading needs none of its own.
static SEALED: LazyLock<Vec<u8>> =
    LazyLock::new(|| Parts::of(&Recipient::generate().unwrap(), b"secret").sealed());

#[test]
fn the_form_of_kms_is_opened_in_one_octet_string_or_many() {
    for (length, chunk) in [
        (32, usize::MAX),
        (0, usize::MAX),
        (4096, 1000),
        (100, 1),
        (64, 16),
    ] {
        let recipient = Recipient::generate().unwrap();
        let plaintext: Vec<u8> = (0..=255).cycle().take(length).collect();
        let mut parts = Parts::of(&recipient, &plaintext);
        parts.chunk = chunk;
        assert_eq!(
            *recipient.open(&parts.sealed()).unwrap(),
            plaintext,
            "{length} in {chunk}"
        );
    }
}

#[test]
fn what_is_sealed_for_another_pair_is_refused() {
    let (recipient, other) = (
        Recipient::generate().unwrap(),
        Recipient::generate().unwrap(),
    );
    let sealed = Parts::of(&other, b"secret").sealed();
    assert_eq!(recipient.open(&sealed), Err(RecipientError::Key));
}

#[test]
fn a_content_that_was_changed_is_refused() {
    for change in [
        // The first block's last byte is the padding's, by the vector.
        (|parts: &mut Parts| *parts.content_algorithm.last_mut().unwrap() ^= 0x80)
            as fn(&mut Parts),
        |parts| parts.content.truncate(15),
        |parts| parts.content.clear(),
        |parts| parts.content.push(0),
    ] {
        let recipient = Recipient::generate().unwrap();
        let mut parts = Parts::of(&recipient, b"secret");
        change(&mut parts);
        let error = recipient.open(&parts.sealed()).unwrap_err();
        assert!(
            matches!(error, RecipientError::Content | RecipientError::Envelope(_)),
            "{error}"
        );
    }
}

#[test]
fn a_content_key_of_another_length_is_refused() {
    let recipient = Recipient::generate().unwrap();
    let public = PublicEncryptingKey::from_der(recipient.public_key()).unwrap();
    let public = OaepPublicEncryptingKey::new(public).unwrap();
    let mut parts = Parts::of(&recipient, b"secret");
    public
        .encrypt(
            &OAEP_SHA256_MGF1SHA256,
            &[9; 16],
            &mut parts.encrypted_key,
            None,
        )
        .unwrap();
    assert_eq!(recipient.open(&parts.sealed()), Err(RecipientError::Key));
}

#[test]
fn another_kind_of_envelope_is_refused() {
    let recipient = Recipient::generate().unwrap();
    let right = || Parts::of(&recipient, b"secret");
    assert!(Envelope::read(&right().sealed()).is_ok());
    let algorithm = |oid: &str, rest: &[u8]| der(0x30, &[&hex(oid)[..], rest].concat());
    let iv = |length: usize| der(4, &vec![4; length]);
    for (what, parts) in [
        (
            "signed data",
            Parts {
                outer_type: hex("06092a864886f70d010702"),
                ..right()
            },
        ),
        (
            "version 1",
            Parts {
                version: vec![1],
                ..right()
            },
        ),
        (
            "version 3",
            Parts {
                version: vec![3],
                ..right()
            },
        ),
        (
            "versions apart",
            Parts {
                recipient_version: vec![0],
                ..right()
            },
        ),
        (
            "no recipient",
            Parts {
                recipients: 0,
                ..right()
            },
        ),
        (
            "two recipients",
            Parts {
                recipients: 2,
                ..right()
            },
        ),
        (
            "PKCS#1 v1.5",
            Parts {
                key_algorithm: algorithm("06092a864886f70d010101", &[5, 0]),
                ..right()
            },
        ),
        (
            "AES-128",
            Parts {
                content_algorithm: algorithm("0609608648016503040102", &iv(16)),
                ..right()
            },
        ),
        (
            "AES-256-GCM",
            Parts {
                content_algorithm: algorithm("060960864801650304012e", &iv(12)),
                ..right()
            },
        ),
        (
            "a short vector",
            Parts {
                content_algorithm: algorithm(AES_256_CBC, &iv(15)),
                ..right()
            },
        ),
        (
            "a long vector",
            Parts {
                content_algorithm: algorithm(AES_256_CBC, &iv(17)),
                ..right()
            },
        ),
        (
            "no vector",
            Parts {
                content_algorithm: algorithm(AES_256_CBC, &[]),
                ..right()
            },
        ),
        (
            "no data",
            Parts {
                content_type: hex(ENVELOPED_DATA),
                ..right()
            },
        ),
    ] {
        assert!(Envelope::read(&parts.sealed()).is_err(), "{what}");
    }
}

#[test]
fn what_is_cut_off_long_deep_or_has_more_behind_is_refused() {
    for length in 0..SEALED.len() {
        assert!(Envelope::read(&SEALED[..length]).is_err(), "{length}");
    }
    let more = [&SEALED[..], &[0]].concat();
    assert!(Envelope::read(&more).is_err());
    let long = vec![0x30; 8 * 1024 + 1];
    assert_eq!(Envelope::read(&long).err(), Some(EnvelopeError::TooLong));
    // Nothing but beginnings, in each form that may nest.
    for open in [[0x30, 0x80], [0x24, 0x80], [0xa0, 0x80]] {
        assert!(Envelope::read(&open.repeat(4096)).is_err());
    }
    let nested = (0..2000).fold(vec![4, 1, 7], |inner, _| ber(0x24, &inner));
    assert!(Envelope::read(&nested[..nested.len().min(8192)]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Bytes changed, removed and repeated: read or refused, never a panic.
    #[test]
    fn what_was_changed_anyhow_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<u8>(), 1..64usize), 1..6)
    ) {
        let mut sealed = SEALED.clone();
        for (place, kind, byte, length) in edits {
            if sealed.is_empty() {
                break;
            }
            let at = place.index(sealed.len());
            let end = (at + length).min(sealed.len());
            match kind {
                0 => sealed[at] = byte,
                1 => drop(sealed.drain(at..end)),
                2 => sealed.insert(at, byte),
                _ => {
                    let copy = sealed[at..end].to_vec();
                    sealed.splice(at..at, copy);
                }
            }
        }
        let _ = Envelope::read(&sealed);
    }

    /// Anything at all.
    #[test]
    fn anything_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Envelope::read(&bytes).is_err());
    }
}
