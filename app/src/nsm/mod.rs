//! The Nitro Secure Module: measurements, random bytes and attestation documents.
//!
//! Each enclave has one, served by the hypervisor; the parent can neither see nor forge what it
//! says. Whether there is one decides whether this is an enclave ([`Place`]), once, at the start:
//! nothing that the parent or a configuration says does.

mod command;
mod device;
mod protocol;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_bytes::ByteBuf;

use crate::error::{Failure, What};
use crate::limits;

pub use command::{Command, run};
pub use protocol::{ErrorCode, Request, Response};

/// Where the driver puts the device.
const DEVICE: &str = "/dev/nsm";

/// A secure module that can be asked. The real one is `/dev/nsm`; tests bring their own, the
/// shipped program cannot.
pub trait Nsm: Send + Sync + std::fmt::Debug {
    /// Asks once. A refusal is [`Response::Error`].
    ///
    /// # Errors
    /// When there is no answer.
    fn ask(&self, request: &Request) -> Result<Response, Error>;
}

/// Why the secure module gave no answer, or none that fits.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is a device, but not for this process.
    #[error("cannot open {}: {}; the program's user needs to read and write it", .0.display(), .1)]
    Open(PathBuf, io::Error),
    /// The request is longer than the driver takes.
    #[error(
        "more than the secure module takes: {} bytes with everything",
        limits::NSM_REQUEST
    )]
    TooLong,
    /// The driver failed.
    #[error("the secure module's driver failed: {0}")]
    Call(io::Error),
    /// The answer could not be read, or belongs to another call.
    #[error("the secure module's answer makes no sense: is the device of another version?")]
    Answer,
    /// The module refused.
    #[error("the secure module refused: {0}")]
    Refused(ErrorCode),
    /// This is not an enclave.
    #[error("there is no {DEVICE}: this is not a Nitro enclave, or its driver is not loaded")]
    Outside,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let what = match error {
            Error::TooLong
            | Error::Refused(
                ErrorCode::InvalidIndex | ErrorCode::InvalidArgument | ErrorCode::InputTooLarge,
            ) => What::Usage,
            _ => What::Attestation,
        };
        Failure::new(what, error.to_string())
    }
}

/// Where this process runs.
#[derive(Debug, Clone)]
pub enum Place {
    /// In an enclave, with its secure module.
    Enclave(Arc<dyn Nsm>),
    /// Anywhere else: there is no secure module.
    Outside,
}

impl Place {
    /// Finds out.
    ///
    /// # Errors
    /// When there is a secure module that cannot be opened: that is never taken for "outside".
    pub fn find() -> Result<Place, Failure> {
        Ok(match device::Device::open(Path::new(DEVICE))? {
            Some(device) => Place::Enclave(Arc::new(device)),
            None => Place::Outside,
        })
    }

    /// Asks the secure module once.
    ///
    /// # Errors
    /// Outside an enclave, and when the secure module refuses or gives no answer.
    pub fn ask(&self, request: &Request) -> Result<Response, Error> {
        let Place::Enclave(nsm) = self else {
            return Err(Error::Outside);
        };
        match nsm.ask(request)? {
            Response::Error(code) => Err(Error::Refused(code)),
            response => Ok(response),
        }
    }

    /// A fresh attestation document over these, each of which may be missing.
    ///
    /// # Errors
    /// Outside an enclave, when one of them is too long, and when the secure module refuses.
    pub fn attest(
        &self,
        nonce: Option<&[u8]>,
        user_data: Option<&[u8]>,
        public_key: Option<&[u8]>,
    ) -> Result<Vec<u8>, Failure> {
        for (name, value, most) in [
            ("the nonce", nonce, limits::USER_DATA),
            ("the user data", user_data, limits::USER_DATA),
            ("the public key", public_key, limits::PUBLIC_KEY),
        ] {
            if value.is_some_and(|value| value.len() > most) {
                let why = format!("{name} may have up to {most} bytes");
                return Err(Failure::usage(why));
            }
        }
        let own = |value: Option<&[u8]>| value.map(ByteBuf::from);
        let request = Request::Attestation {
            user_data: own(user_data),
            nonce: own(nonce),
            public_key: own(public_key),
        };
        match self.ask(&request)? {
            Response::Attestation { document } => Ok(document.into_vec()),
            _ => Err(Error::Answer.into()),
        }
    }
}
