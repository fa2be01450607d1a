//! What a server's certificate says.

use aws_lc_rs::digest;
use der::{Decode, Encode};
use serde::Serialize;
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// A certificate, as far as a reader of a report wants to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Described {
    pub(super) subject: String,
    pub(super) issuer: String,
    /// The DNS names it is good for.
    pub(super) names: Vec<String>,
    pub(super) not_before: String,
    pub(super) not_after: String,
    /// Of the whole certificate, as `openssl x509 -fingerprint -sha256` prints it.
    pub(super) sha256: String,
    /// Of its public key: what `curl --pinnedpubkey` and HPKP pin, here in hexadecimal digits.
    pub(super) key_sha256: String,
}

/// Reads a certificate; one that verified but cannot be read is described by its hash alone.
pub(super) fn describe(encoded: &[u8]) -> Described {
    let unreadable = || Described {
        subject: String::new(),
        issuer: String::new(),
        names: Vec::new(),
        not_before: String::new(),
        not_after: String::new(),
        sha256: sha256(encoded),
        key_sha256: String::new(),
    };
    let Ok(certificate) = Certificate::from_der(encoded) else {
        return unreadable();
    };
    let body = certificate.tbs_certificate();
    let names = match body.get_extension::<SubjectAltName>() {
        Ok(Some((_, names))) => names.0,
        _ => Vec::new(),
    };
    Described {
        subject: body.subject().to_string(),
        issuer: body.issuer().to_string(),
        names: names
            .into_iter()
            .filter_map(|name| match name {
                GeneralName::DnsName(name) => Some(name.to_string()),
                _ => None,
            })
            .collect(),
        not_before: body.validity().not_before.to_string(),
        not_after: body.validity().not_after.to_string(),
        key_sha256: (body.subject_public_key_info().to_der())
            .map_or_else(|_| String::new(), |key| sha256(&key)),
        ..unreadable()
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    #[test]
    fn a_certificate_is_described() {
        let names = ["web.lab.example".to_owned(), "lab.example".to_owned()];
        let mut parameters = rcgen::CertificateParams::new(names.clone()).unwrap();
        parameters.not_after = rcgen::date_time_ymd(2031, 2, 3);
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, "web.lab.example");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let described = describe(certificate.der());
        assert_eq!(described.subject, "CN=web.lab.example");
        assert_eq!(described.issuer, described.subject);
        assert_eq!(described.names, names);
        assert_eq!(described.not_after, "2031-02-03T00:00:00Z");
        assert_eq!(described.sha256, sha256(certificate.der()));
        assert_eq!(
            described.key_sha256,
            sha256(&rcgen::PublicKeyData::subject_public_key_info(&key))
        );
    }

    #[test]
    fn one_that_cannot_be_read_has_its_hash() {
        let described = describe(b"no certificate");
        assert_eq!(described.subject, "");
        assert_eq!(described.sha256, sha256(b"no certificate"));
    }
}
