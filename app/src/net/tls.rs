//! TLS towards servers: which roots are trusted and the oldest version that is spoken.
//!
//! Certificates are always verified, name and all: there is no setting to turn it off.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::error::{Failure, What};

/// Whose word is taken for who a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Mozilla's list, as it was when this program was built.
    BuiltIn,
    /// What the system trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` name it, as everywhere.
    System,
    /// The certificates of one PEM file.
    File(PathBuf),
}

impl Default for Roots {
    /// The system's if the environment names them, since that is a choice somebody made for this
    /// image; otherwise the built-in ones, so that an image needs no file.
    fn default() -> Self {
        let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
        if named.iter().any(|name| std::env::var_os(name).is_some()) {
            Roots::System
        } else {
            Roots::BuiltIn
        }
    }
}

impl FromStr for Roots {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "built-in" => Ok(Roots::BuiltIn),
            "system" => Ok(Roots::System),
            path if path.contains(['/', '.']) => Ok(Roots::File(path.into())),
            _ => Err("must be built-in, system or the path of a PEM file".to_owned()),
        }
    }
}

impl Roots {
    /// Reads them.
    ///
    /// # Errors
    /// When there is none, or a file cannot be read.
    pub fn load(&self) -> Result<RootCertStore, Failure> {
        let mut store = RootCertStore::empty();
        match self {
            Roots::BuiltIn => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Roots::System => {
                let found = rustls_native_certs::load_native_certs();
                let (_, ignored) = store.add_parsable_certificates(found.certs);
                if ignored > 0 {
                    tracing::debug!(ignored, "roots of the system that are no certificates");
                }
                if store.is_empty() {
                    let why = found.errors.first().map_or_else(
                        || "no file or folder has any".to_owned(),
                        ToString::to_string,
                    );
                    return Err(Failure::usage(format!(
                        "the system has no root certificates ({why}): set SSL_CERT_FILE to a PEM \
                         file, or use --roots built-in"
                    )));
                }
            }
            Roots::File(path) => {
                let place = path.display();
                let read =
                    |error| Failure::usage(format!("cannot read the roots in {place}: {error}"));
                let file = CertificateDer::pem_file_iter(path).map_err(read)?;
                for certificate in file {
                    store.add(certificate.map_err(read)?).map_err(|error| {
                        Failure::usage(format!("a root in {place} is of no use: {error}"))
                    })?;
                }
                if store.is_empty() {
                    return Err(Failure::usage(format!(
                        "{place} holds no certificate in PEM"
                    )));
                }
            }
        }
        Ok(store)
    }
}

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
pub enum Oldest {
    /// TLS 1.2 and 1.3.
    #[value(name = "1.2")]
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3 alone.
    #[value(name = "1.3")]
    #[serde(rename = "1.3")]
    Tls13,
}

impl Oldest {
    /// All versions from it on.
    #[must_use]
    pub fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static FROM_12: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
        static FROM_13: [&SupportedProtocolVersion; 1] = [&version::TLS13];
        match self {
            Oldest::Tls12 => &FROM_12,
            Oldest::Tls13 => &FROM_13,
        }
    }
}

/// A client that trusts `roots`; the protocols it offers (ALPN) are for the caller to set.
///
/// # Errors
/// As [`Roots::load`].
pub fn client(roots: &Roots, oldest: Oldest) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(oldest.versions())
        .map_err(|error| Failure::new(What::Tls, error.to_string()))?
        .with_root_certificates(roots.load()?)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    #[test]
    fn roots_are_read_from_where_they_are_said_to_be() {
        assert!(Roots::BuiltIn.load().unwrap().len() > 50);
        assert_eq!("system".parse(), Ok(Roots::System));
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let empty = path.parse::<Roots>().unwrap().load().unwrap_err();
        assert!(empty.why.contains("holds no certificate"), "{empty}");
        let own = rcgen::generate_simple_self_signed(["lab.example".to_owned()]).unwrap();
        std::fs::write(path, own.cert.pem()).unwrap();
        assert_eq!(path.parse::<Roots>().unwrap().load().unwrap().len(), 1);
        assert!("sytsem".parse::<Roots>().is_err());
        let missing = Roots::File("/nowhere.pem".into()).load().unwrap_err();
        assert_eq!(missing.what, What::Usage);
    }
}
