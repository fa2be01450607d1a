//! Chains of certificates and signed documents, right and wrong.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use ciborium::Value;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SignatureAlgorithm,
};
use time::{Duration, OffsetDateTime};

use crate::attester::Attester;

/// What a chain looks like. As it comes: as AWS makes it, valid from yesterday until tomorrow.
#[derive(Debug, Clone)]
pub struct Shape {
    /// When the signer's certificate begins and ends, in seconds from now.
    pub signer: (i64, i64),
    /// The same of those above.
    pub above: (i64, i64),
    /// The curve of the signer's key.
    pub signer_curve: &'static SignatureAlgorithm,
    /// The curve of the keys above it.
    pub above_curve: &'static SignatureAlgorithm,
    /// What the signer's key is for.
    pub signer_usage: Vec<KeyUsagePurpose>,
    /// What the keys above are for.
    pub above_usage: Vec<KeyUsagePurpose>,
    /// A further purpose of the signer's.
    pub signer_purpose: Option<ExtendedKeyUsagePurpose>,
    /// Whether the signer's certificate is one of an authority.
    pub signer_is_ca: bool,
    /// Whether those between signer and root are authorities.
    pub between_is_ca: bool,
    /// Whether each authority limits how many are below it, as AWS's do.
    pub is_limited: bool,
    /// By how many the limits are too low.
    pub limit_short: u8,
}

impl Default for Shape {
    fn default() -> Self {
        const DAY: i64 = 86_400;
        Shape {
            signer: (-DAY, DAY),
            above: (-DAY, DAY),
            signer_curve: &PKCS_ECDSA_P384_SHA384,
            above_curve: &PKCS_ECDSA_P384_SHA384,
            signer_usage: vec![KeyUsagePurpose::DigitalSignature],
            above_usage: vec![KeyUsagePurpose::KeyCertSign],
            signer_purpose: None,
            signer_is_ca: false,
            between_is_ca: true,
            is_limited: true,
            limit_short: 0,
        }
    }
}

impl Shape {
    /// With keys of another curve above the signer's, which AWS never has.
    #[must_use]
    pub fn p256() -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// A chain of certificates, and the key at its lower end.
#[derive(Debug, Clone)]
pub struct Authority {
    /// In DER, the root's first.
    pub bundle: Vec<Vec<u8>>,
    /// The signer's, in DER.
    pub certificate: Vec<u8>,
    /// The signer's key, in PKCS#8.
    key: Vec<u8>,
}

impl Default for Authority {
    fn default() -> Self {
        Authority::new(&Shape::default())
    }
}

impl Authority {
    /// A new one, with a new root and two authorities between it and the signer.
    #[must_use]
    pub fn new(shape: &Shape) -> Authority {
        let now = OffsetDateTime::now_utc();
        let certificate = |name: &str, (from, to): (i64, i64)| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.not_before = now + Duration::seconds(from);
            params.not_after = now + Duration::seconds(to);
            params.use_authority_key_identifier_extension = true;
            params
        };
        let authority = |name: &str, below: u8| {
            let mut params = certificate(name, shape.above);
            params.is_ca = IsCa::Ca(if shape.is_limited {
                BasicConstraints::Constrained(below.saturating_sub(shape.limit_short))
            } else {
                BasicConstraints::Unconstrained
            });
            params.key_usages.clone_from(&shape.above_usage);
            params
        };
        let root_key = KeyPair::generate_for(shape.above_curve).unwrap();
        let root = authority("test root", 2);
        let mut bundle = vec![root.self_signed(&root_key).unwrap().der().to_vec()];
        let mut issuer = Issuer::new(root, root_key);
        for (name, below) in [("test region", 1), ("test instance", 0)] {
            let key = KeyPair::generate_for(shape.above_curve).unwrap();
            let mut params = authority(name, below);
            if !shape.between_is_ca {
                params.is_ca = IsCa::ExplicitNoCa;
            }
            bundle.push(params.signed_by(&key, &issuer).unwrap().der().to_vec());
            issuer = Issuer::new(params, key);
        }
        let key = KeyPair::generate_for(shape.signer_curve).unwrap();
        let mut signer = certificate("i-test-enc-test", shape.signer);
        signer.key_usages.clone_from(&shape.signer_usage);
        signer
            .extended_key_usages
            .extend(shape.signer_purpose.clone());
        signer.is_ca = if shape.signer_is_ca {
            IsCa::Ca(BasicConstraints::Unconstrained)
        } else {
            IsCa::ExplicitNoCa
        };
        Authority {
            bundle,
            certificate: signer.signed_by(&key, &issuer).unwrap().der().to_vec(),
            key: key.serialize_der(),
        }
    }

    /// Signs a payload, whatever it is.
    ///
    /// # Panics
    /// When the signer's key is not of P-384.
    #[must_use]
    pub fn sign(&self, payload: &Value) -> Vec<u8> {
        let es384 = Value::Map(vec![(1.into(), (-35).into())]);
        self.sign_with(&es384, &encoded(payload))
    }

    /// The same with a protected header, whatever it is.
    ///
    /// # Panics
    /// As [`Authority::sign`].
    #[must_use]
    pub fn sign_with(&self, protected: &Value, payload: &[u8]) -> Vec<u8> {
        let protected = Value::Bytes(encoded(protected));
        let payload = Value::Bytes(payload.to_vec());
        let signed = encoded(&Value::Array(vec![
            "Signature1".into(),
            protected.clone(),
            Value::Bytes(Vec::new()),
            payload.clone(),
        ]));
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &self.key).unwrap();
        let signature = key.sign(&SystemRandom::new(), &signed).unwrap();
        encoded(&Value::Array(vec![
            protected,
            Value::Map(Vec::new()),
            payload,
            Value::Bytes(signature.as_ref().to_vec()),
        ]))
    }

    /// Writes it into a folder, for [`Authority::load`]; the root is `bundle-0.der`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn save(&self, dir: &Path) {
        fs::write(dir.join("signer.key"), &self.key).unwrap();
        fs::write(dir.join("signer.der"), &self.certificate).unwrap();
        for (number, der) in self.bundle.iter().enumerate() {
            fs::write(dir.join(format!("bundle-{number}.der")), der).unwrap();
        }
    }

    /// Reads what [`Authority::save`] wrote.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn load(dir: &Path) -> Authority {
        let read = |name: &str| fs::read(dir.join(name)).unwrap();
        Authority {
            bundle: (0..3)
                .map(|number| read(&format!("bundle-{number}.der")))
                .collect(),
            certificate: read("signer.der"),
            key: read("signer.key"),
        }
    }
}

/// A payload as a secure module makes it now, to be changed by whoever wants it wrong.
#[must_use]
pub fn payload(authority: &Authority, attester: &Attester) -> Vec<(Value, Value)> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = u64::try_from(since.as_millis()).unwrap();
    let pcrs = attester.pcrs();
    let bytes = |bytes: &Vec<u8>| Value::Bytes(bytes.clone());
    [
        ("module_id", "i-test-enc-test".into()),
        ("digest", "SHA384".into()),
        ("timestamp", now.into()),
        ("pcrs", Value::Map(pcrs)),
        ("certificate", bytes(&authority.certificate)),
        (
            "cabundle",
            authority
                .bundle
                .iter()
                .map(bytes)
                .collect::<Vec<_>>()
                .into(),
        ),
        ("public_key", Value::Null),
        ("user_data", Value::Null),
        ("nonce", Value::Null),
    ]
    .map(|(name, value)| (name.into(), value))
    .into()
}

/// In CBOR.
#[must_use]
pub fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}
