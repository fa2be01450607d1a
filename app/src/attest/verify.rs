//! Whether to believe an attestation document.
//!
//! In this order, each step resting on those before it: the document is read strictly; its bundle
//! begins with the root that is believed, whole and unchanged; every certificate is valid at the
//! time asked for, of the curve P-384 and meant for what it is used for; each certificate of the
//! bundle, and none besides, is a link of the chain from the signer to the root; the signer's key
//! made the signature; the document's own time lies within the signer's certificate and not in the
//! future; and the measurements, nonce, user data and key are those that were expected.
//!
//! Nothing is asked of the network and nothing of the host but the time. AWS publishes no
//! revocations for these certificates: the signer's lives for three hours instead.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use der::oid::ObjectIdentifier;
use der::{DateTime, Decode};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, anchor_from_trusted_cert,
};
use x509_cert::Certificate;
use x509_cert::ext::pkix::KeyUsage;

use super::document::{self, Document, Unverified};
use super::root::{Root, fingerprint};
use crate::limits;

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// Why a document is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not a document.
    #[error("not an attestation document: {0}")]
    Document(document::Error),
    /// An emulated secure module signs nothing.
    #[error(
        "nobody signed it: its signature is all zeros, as an emulated secure module (QEMU) makes it"
    )]
    Unsigned,
    /// Its bundle begins with another root.
    #[error(
        "its chain ends at another root: {0}; believed is {1} (another one only by --root FILE)"
    )]
    Root(String, String),
    /// A certificate cannot be read, or is not meant for this.
    #[error("certificate {0}: {1}")]
    Certificate(usize, String),
    /// A certificate is not valid at that time.
    #[error("certificate {number} is valid from {from} to {to}, and not at {at}")]
    Validity {
        /// Which one, counted from the signer's.
        number: usize,
        /// When it begins.
        from: String,
        /// When it ends.
        to: String,
        /// What was asked for.
        at: String,
    },
    /// The certificates do not sign each other up to the root.
    #[error("its certificates are no chain to the root: {0}")]
    Chain(String),
    /// The signature is not the signer's, or not over these bytes.
    #[error("its signature does not match: it was changed, or another key signed it")]
    Signature,
    /// The document's own time contradicts.
    #[error("it says it was made at {0}, {1}")]
    Timestamp(String, &'static str),
    /// The enclave ran in debug mode.
    #[error(
        "the enclave runs in debug mode: nothing is measured, and its console is open to the parent \
         (--allow-debug believes it anyway)"
    )]
    Debug,
    /// A measurement is not the expected one.
    #[error("PCR{index} is {found}, expected {expected}")]
    Pcr {
        /// Which one.
        index: u8,
        /// What the document says.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// Something that was handed in is not the expected.
    #[error("its {0} is not the expected one: {1}")]
    Field(&'static str, &'static str),
}

impl From<document::Error> for Error {
    fn from(error: document::Error) -> Self {
        match error {
            document::Error::Unsigned => Error::Unsigned,
            error => Error::Document(error),
        }
    }
}

/// What a verifier expects. Whatever is missing is not checked.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Measurements by number.
    pub pcrs: BTreeMap<u8, [u8; limits::PCR]>,
    /// What it sent to the program.
    pub nonce: Option<Vec<u8>>,
    /// What the program shall have handed in.
    pub user_data: Option<Vec<u8>>,
    /// The public key the program shall have handed in, in DER.
    pub public_key: Option<Vec<u8>>,
    /// Whether enclaves in debug mode are believed.
    pub allow_debug: bool,
}

/// A document to believe.
#[derive(Debug, Clone)]
pub struct Verified {
    /// What it says.
    pub document: Document,
    /// What was checked, in words.
    pub checks: Vec<String>,
    /// The certificates from the signer's to the root's.
    pub chain: Vec<Link>,
}

/// One certificate of a chain.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Link {
    /// Whom it names.
    pub subject: String,
    /// When it begins.
    pub not_before: String,
    /// When it ends.
    pub not_after: String,
    /// Its SHA-256.
    pub fingerprint: String,
}

/// Verifies a document as of a time, given in seconds since 1970.
///
/// # Errors
/// Why it is not to be believed.
pub fn verify(bytes: &[u8], root: &Root, at: u64, expected: &Expected) -> Result<Verified, Error> {
    let Unverified {
        document,
        signed,
        signature,
    } = Unverified::read(bytes)?;
    let mut checks = vec!["format: COSE_Sign1, ES384, each field once and in bounds".to_owned()];
    if document.bundle[0] != root.der {
        return Err(Error::Root(
            fingerprint(&document.bundle[0]),
            root.fingerprint(),
        ));
    }
    // From the signer's to the root's.
    let certificates: Vec<&[u8]> = std::iter::once(&document.certificate)
        .chain(document.bundle.iter().rev())
        .map(Vec::as_slice)
        .collect();
    let mut chain = Vec::new();
    let mut parsed = Vec::new();
    for (number, der) in certificates.iter().enumerate() {
        let certificate = one_certificate(number, der, at)?;
        chain.push(link(&certificate, der));
        parsed.push(certificate);
    }
    one_chain(&certificates, at)?;
    checks.push(format!(
        "chain: {} certificates, P-384, each valid at {}, to the root {}",
        chain.len(),
        time(at),
        root.fingerprint()
    ));
    let key = parsed[0]
        .tbs_certificate()
        .subject_public_key_info()
        .subject_public_key
        .raw_bytes();
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key)
        .verify(&signed, &signature)
        .map_err(|_| Error::Signature)?;
    checks.push(format!("signature: made by {}", chain[0].subject));
    own_time(&document, &parsed[0], at)?;
    checks.push(format!(
        "time: made at {}, within the signer's certificate and not after {}",
        time(document.timestamp / 1000),
        time(at)
    ));
    as_expected(&document, expected, &mut checks)?;
    Ok(Verified {
        document,
        checks,
        chain,
    })
}

/// What the path library leaves to others: the key's curve, what the key is for, and a root's time.
fn one_certificate(number: usize, der: &[u8], at: u64) -> Result<Certificate, Error> {
    let failed = |why: String| Error::Certificate(number, why);
    if der.iter().all(|&byte| byte == 0) {
        return Err(failed("all zeros: an emulated secure module".into()));
    }
    let certificate = Certificate::from_der(der).map_err(|error| failed(error.to_string()))?;
    let fields = certificate.tbs_certificate();
    let key = &fields.subject_public_key_info().algorithm;
    let curve = key
        .parameters
        .as_ref()
        .and_then(|curve| curve.decode_as::<ObjectIdentifier>().ok());
    if key.oid != EC_PUBLIC_KEY || curve != Some(P384) {
        return Err(failed("its key is not one of the curve P-384".into()));
    }
    let usage = fields
        .get_extension::<KeyUsage>()
        .map_err(|error| failed(error.to_string()))?
        .ok_or_else(|| failed("it does not say what its key is for".into()))?
        .1;
    if number == 0 && !usage.digital_signature() {
        return Err(failed("its key is not for signatures".into()));
    }
    if number > 0 && !usage.key_cert_sign() {
        return Err(failed("its key is not for certificates".into()));
    }
    let validity = fields.validity();
    let (from, to) = (validity.not_before, validity.not_after);
    if at < from.to_unix_duration().as_secs() || at > to.to_unix_duration().as_secs() {
        return Err(Error::Validity {
            number,
            from: from.to_date_time().to_string(),
            to: to.to_date_time().to_string(),
            at: time(at),
        });
    }
    Ok(certificate)
}

fn link(certificate: &Certificate, der: &[u8]) -> Link {
    let fields = certificate.tbs_certificate();
    Link {
        subject: fields.subject().to_string(),
        not_before: fields.validity().not_before.to_date_time().to_string(),
        not_after: fields.validity().not_after.to_date_time().to_string(),
        fingerprint: fingerprint(der),
    }
}

/// Certificates of enclaves name no further purpose; one that does is for something else.
struct NoPurpose;

impl ExtendedKeyUsageValidator for NoPurpose {
    fn validate(&self, mut purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        match purposes.next() {
            None => Ok(()),
            Some(_) => Err(webpki::Error::ExtensionValueInvalid),
        }
    }
}

/// `certificates` from the signer's to the root's.
fn one_chain(certificates: &[&[u8]], at: u64) -> Result<(), Error> {
    let failed = |error: webpki::Error| Error::Chain(error.to_string());
    let [signer, between @ .., root] = certificates else {
        return Err(Error::Chain("too few".into()));
    };
    let root = CertificateDer::from(*root);
    let anchor = anchor_from_trusted_cert(&root).map_err(failed)?;
    let between: Vec<_> = between
        .iter()
        .map(|der| CertificateDer::from(*der))
        .collect();
    let signer = CertificateDer::from(*signer);
    let signer = EndEntityCert::try_from(&signer).map_err(failed)?;
    let anchors = [anchor];
    let path = signer
        .verify_for_usage(
            &[webpki::aws_lc_rs::ECDSA_P384_SHA384],
            &anchors,
            &between,
            UnixTime::since_unix_epoch(Duration::from_secs(at)),
            NoPurpose,
            None,
            None,
        )
        .map_err(failed)?;
    if !path
        .intermediate_certificates()
        .map(|link| link.der())
        .eq(between.iter().cloned())
    {
        return Err(Error::Chain("some are no part of it".into()));
    }
    Ok(())
}

fn own_time(document: &Document, signer: &Certificate, at: u64) -> Result<(), Error> {
    let made = document.timestamp / 1000;
    let validity = signer.tbs_certificate().validity();
    let failed = |why| Err(Error::Timestamp(time(made), why));
    if made > at.saturating_add(limits::CLOCK_SKEW) {
        return failed("later than the time it is verified at");
    }
    if made < validity.not_before.to_unix_duration().as_secs()
        || made > validity.not_after.to_unix_duration().as_secs()
    {
        return failed("when the signer's certificate was not valid");
    }
    Ok(())
}

fn as_expected(
    document: &Document,
    expected: &Expected,
    checks: &mut Vec<String>,
) -> Result<(), Error> {
    if document.is_debug() && !expected.allow_debug {
        return Err(Error::Debug);
    }
    for (&index, wanted) in &expected.pcrs {
        let found = document.pcrs.get(&index);
        if found != Some(wanted) {
            return Err(Error::Pcr {
                index,
                found: found.map_or("not in the document".into(), hex::encode),
                expected: hex::encode(wanted),
            });
        }
        checks.push(format!("PCR{index}: as expected"));
    }
    for (name, found, wanted) in [
        ("nonce", &document.nonce, &expected.nonce),
        ("user data", &document.user_data, &expected.user_data),
        ("public key", &document.public_key, &expected.public_key),
    ] {
        let Some(wanted) = wanted else { continue };
        match found {
            Some(found) if found == wanted => checks.push(format!("{name}: as expected")),
            Some(_) => return Err(Error::Field(name, "it has another")),
            None => return Err(Error::Field(name, "it has none")),
        }
    }
    Ok(())
}

/// Seconds since 1970 as a date.
pub(super) fn time(seconds: u64) -> String {
    DateTime::from_unix_duration(Duration::from_secs(seconds)).map_or_else(
        |_| format!("{seconds} s after 1970"),
        |date| date.to_string(),
    )
}
