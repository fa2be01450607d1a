//! The server's key and certificate.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest;
use der::{Decode, Encode};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_cert::Certificate;

use crate::error::Failure;
use crate::net::tls::Oldest;

/// A key, its certificate, and what an attestation document says of them.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) config: ServerConfig,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo, in hexadecimal digits.
    pub(super) key_sha256: String,
}

impl Identity {
    /// A key made now that nobody else ever has, and a certificate that it signs itself.
    pub(super) fn own(names: &[String], oldest: Oldest) -> Result<Identity, Failure> {
        let made = rcgen::generate_simple_self_signed(names).map_err(|error| {
            Failure::usage(format!("no certificate can have these names: {error}"))
        })?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        Identity::new(vec![made.cert.der().clone()], key.into(), oldest)
    }

    /// A key and a chain of certificates in PEM files.
    pub(super) fn read(chain: &Path, key: &Path, oldest: Oldest) -> Result<Identity, Failure> {
        let place = chain.display();
        let wrong =
            |error| Failure::usage(format!("cannot read the certificates in {place}: {error}"));
        let chain: Vec<_> = CertificateDer::pem_file_iter(chain)
            .and_then(Iterator::collect)
            .map_err(wrong)?;
        if chain.is_empty() {
            return Err(Failure::usage(format!(
                "{place} holds no certificate in PEM"
            )));
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| {
            Failure::usage(format!("cannot read the key in {}: {error}", key.display()))
        })?;
        Identity::new(chain, key, oldest)
    }

    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        oldest: Oldest,
    ) -> Result<Identity, Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::usage(format!("the certificate is of no use to a server: {error}"))
        };
        let own = chain.first().map_or(&[][..], |certificate| certificate);
        let key_sha256 = Certificate::from_der(own)
            .and_then(|certificate| {
                certificate
                    .tbs_certificate()
                    .subject_public_key_info()
                    .to_der()
            })
            .map(|spki| hex::encode(digest::digest(&digest::SHA256, &spki)))
            .map_err(|error| wrong(&error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(oldest.versions())
            .map_err(|error| wrong(&error))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| wrong(&error))?;
        Ok(Identity { config, key_sha256 })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;
    use std::fs;

    #[test]
    fn a_key_that_is_not_the_certificates_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = (dir.path().join("chain.pem"), dir.path().join("key.pem"));
        let made = rcgen::generate_simple_self_signed(["lab.example".to_owned()]).unwrap();
        fs::write(&chain, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let identity = Identity::read(&chain, &key, Oldest::Tls13).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&made.signing_key);
        assert_eq!(
            identity.key_sha256,
            hex::encode(digest::digest(&digest::SHA256, &spki))
        );

        let other = rcgen::KeyPair::generate().unwrap();
        fs::write(&key, other.serialize_pem()).unwrap();
        let failure = Identity::read(&chain, &key, Oldest::Tls13).unwrap_err();
        assert!(failure.why.contains("of no use"), "{failure}");
        let failure = Identity::read(&key, &chain, Oldest::Tls13).unwrap_err();
        assert!(failure.why.contains("holds no certificate"), "{failure}");
    }

    #[test]
    fn every_own_key_is_another() {
        let names = ["enclave.lab.example".to_owned()];
        let own = || Identity::own(&names, Oldest::Tls12).unwrap().key_sha256;
        assert_ne!(own(), own());
    }
}
