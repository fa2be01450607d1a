//! Whom documents are believed for: AWS's root, built in.

use aws_lc_rs::digest::{SHA256, digest};

/// The certificate `aws.nitro-enclaves`, AWS_NitroEnclaves_Root-G1.
const AWS: &[u8] = include_bytes!("aws-nitro-enclaves-root-g1.der");
/// Its SHA-256, as AWS publishes it.
pub const AWS_FINGERPRINT: &str = "64:1A:03:21:A3:E2:44:EF:E4:56:46:31:95:D6:06:31:7E:D7:CD:CC:3C:17:56:E0:98:93:F3:C6:8F:79:BB:5B";

/// The certificate that ends every chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// In DER.
    pub(super) der: Vec<u8>,
}

impl Root {
    /// AWS's.
    #[must_use]
    pub fn aws() -> Root {
        Root { der: AWS.to_vec() }
    }

    /// Another one, in DER: whoever holds its key can attest anything.
    #[must_use]
    pub fn other(der: Vec<u8>) -> Root {
        Root { der }
    }

    /// Whether this is AWS's.
    #[must_use]
    pub fn is_aws(&self) -> bool {
        self.der == AWS
    }

    /// The SHA-256 of the certificate.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }
}

/// The SHA-256 of a certificate, as it is usually written.
pub(super) fn fingerprint(der: &[u8]) -> String {
    let bytes: Vec<String> = digest(&SHA256, der)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_root_has_the_fingerprint_that_aws_publishes() {
        assert_eq!(Root::aws().fingerprint(), AWS_FINGERPRINT);
    }
}
