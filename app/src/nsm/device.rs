//! The real secure module: `/dev/nsm`.
#![allow(unsafe_code, reason = "the device is asked by ioctl")]

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::iovec;
use zeroize::Zeroizing;

use super::protocol::{Request, Response};
use super::{Error, Nsm};
use crate::limits;

/// What the driver takes: where the request is, and where the answer goes. It writes the answer's
/// length into the second.
#[repr(C)]
struct Message {
    request: iovec,
    response: iovec,
}

nix::ioctl_readwrite!(nsm_call, 0x0a, 0, Message);

/// `/dev/nsm`, open.
#[derive(Debug)]
pub(crate) struct Device(File);

impl Device {
    /// Opens it, if there is one.
    pub(crate) fn open(path: &Path) -> Result<Option<Device>, Error> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(Device(file))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::Open(path.to_owned(), error)),
        }
    }
}

impl Nsm for Device {
    fn ask(&self, request: &Request) -> Result<Response, Error> {
        let mut asked = Zeroizing::new(Vec::with_capacity(limits::NSM_REQUEST));
        ciborium::into_writer(request, &mut *asked).map_err(|_| Error::TooLong)?;
        if asked.len() > limits::NSM_REQUEST {
            return Err(Error::TooLong);
        }
        let mut answer = Zeroizing::new(vec![0; limits::NSM_RESPONSE]);
        let mut message = Message {
            request: iovec {
                iov_base: asked.as_mut_ptr().cast(),
                iov_len: asked.len(),
            },
            response: iovec {
                iov_base: answer.as_mut_ptr().cast(),
                iov_len: answer.len(),
            },
        };
        // SAFETY: both buffers live until the call returns, and the driver reads and writes no more
        // of each than its length says.
        let done = unsafe { nsm_call(self.0.as_raw_fd(), &raw mut message) };
        match done {
            Ok(_) => {}
            Err(Errno::EMSGSIZE) => return Err(Error::TooLong),
            Err(errno) => return Err(Error::Call(errno.into())),
        }
        let length = message.response.iov_len;
        let answer = answer.get(..length).ok_or(Error::Answer)?;
        ciborium::from_reader(answer).map_err(|_| Error::Answer)
    }
}
