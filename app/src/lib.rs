//! What runs inside the enclave: attestation, KMS and the example services.
//!
//! Nothing here knows of vsock, of proxies or of `/etc/hosts`: names are looked up and connections
//! are made as anywhere else, and the network below carries them. The one exception is `crypto
//! --vsock`, for parents that dial it.
//!
//! | module | idea |
//! | --- | --- |
//! | [`nsm`] | the enclave's security module: measurements, random bytes, attestation documents |
//! | [`attest`] | what an attestation document says, and whether to believe it |
//! | [`aws`] | what its services share: settings, keys, failures |
//! | [`kms`] | AWS KMS, whose answers are sealed for this enclave alone |
//! | [`serve`], [`crypto`], [`cards`], [`sidecar`], [`volume`], [`fetch`] | the services |
//! | [`net`] | what the services share: connections out and in, TLS roots |

pub mod attest;
pub mod aws;
pub mod bytes;
pub mod cards;
pub mod cli;
pub mod crypto;
pub mod error;
pub mod fetch;
pub mod kms;
pub mod limits;
pub mod log;
pub mod net;
pub mod nsm;
pub mod serve;
pub mod sidecar;
pub mod volume;
