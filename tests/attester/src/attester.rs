//! A secure module.

use std::sync::Mutex;

use aws_lc_rs::digest::{Context, SHA384};
use ciborium::Value;
use enclave_app::nsm::{Error, ErrorCode, Nsm, Request, Response};
use serde_bytes::ByteBuf;

use crate::authority::{Authority, payload};

/// One PCR's length.
pub const PCR: usize = 48;
/// How many there are, and from which on the program may extend them.
const PCRS: usize = 32;
const OWN: usize = 16;

/// A secure module over an authority.
#[derive(Debug)]
pub struct Attester {
    authority: Authority,
    /// Value, and whether it is locked.
    pcrs: Mutex<[([u8; PCR], bool); PCRS]>,
}

impl Attester {
    /// One of an image with these PCR0, PCR1 and PCR2.
    #[must_use]
    pub fn new(authority: Authority, image: [[u8; PCR]; 3]) -> Attester {
        let mut pcrs = [([0; PCR], false); PCRS];
        for (index, (value, is_locked)) in pcrs.iter_mut().enumerate() {
            *is_locked = index < OWN;
            if let Some(measured) = image.get(index) {
                *value = *measured;
            }
        }
        Attester {
            authority,
            pcrs: Mutex::new(pcrs),
        }
    }

    /// The locked ones, as a document holds them.
    pub(crate) fn pcrs(&self) -> Vec<(Value, Value)> {
        let pcrs = self.pcrs.lock().unwrap();
        (0_u8..)
            .zip(pcrs.iter())
            .filter(|(_, (_, is_locked))| *is_locked)
            .map(|(index, (value, _))| (index.into(), Value::Bytes(value.to_vec())))
            .collect()
    }

    fn extend(&self, index: u16, data: &[u8]) -> Response {
        let mut pcrs = self.pcrs.lock().unwrap();
        match pcrs.get_mut(usize::from(index)) {
            None => Response::Error(ErrorCode::InvalidIndex),
            Some((_, true)) => Response::Error(ErrorCode::ReadOnlyIndex),
            Some((value, false)) => {
                let mut hash = Context::new(&SHA384);
                hash.update(value);
                hash.update(data);
                value.copy_from_slice(hash.finish().as_ref());
                Response::ExtendPCR {
                    data: ByteBuf::from(value.to_vec()),
                }
            }
        }
    }

    fn lock(&self, range: std::ops::Range<u16>, done: Response) -> Response {
        let mut pcrs = self.pcrs.lock().unwrap();
        match pcrs.get_mut(usize::from(range.start)..usize::from(range.end)) {
            None => Response::Error(ErrorCode::InvalidIndex),
            Some(pcrs) => {
                pcrs.iter_mut().for_each(|(_, is_locked)| *is_locked = true);
                done
            }
        }
    }

    fn attest(&self, handed_in: [(&str, &Option<ByteBuf>); 3]) -> Response {
        let mut payload = payload(&self.authority, self);
        for (name, value) in handed_in {
            if let Some(value) = value {
                let field = payload
                    .iter_mut()
                    .find(|(key, _)| key.as_text() == Some(name));
                field.unwrap().1 = Value::Bytes(value.to_vec());
            }
        }
        Response::Attestation {
            document: ByteBuf::from(self.authority.sign(&Value::Map(payload))),
        }
    }
}

impl Nsm for Attester {
    fn ask(&self, request: &Request) -> Result<Response, Error> {
        Ok(match request {
            Request::DescribeNSM => Response::DescribeNSM {
                version_major: 1,
                version_minor: 0,
                version_patch: 0,
                module_id: "i-test-enc-test".into(),
                max_pcrs: 32,
                locked_pcrs: {
                    let pcrs = self.pcrs.lock().unwrap();
                    (0..32)
                        .filter(|&index| pcrs[usize::from(index)].1)
                        .collect()
                },
                digest: "SHA384".into(),
            },
            Request::DescribePCR { index } => {
                match self.pcrs.lock().unwrap().get(usize::from(*index)) {
                    None => Response::Error(ErrorCode::InvalidIndex),
                    Some((value, is_locked)) => Response::DescribePCR {
                        lock: *is_locked,
                        data: ByteBuf::from(value.to_vec()),
                    },
                }
            }
            Request::ExtendPCR { index, data } => self.extend(*index, data),
            Request::LockPCR { index } => {
                self.lock(*index..index.saturating_add(1), Response::LockPCR)
            }
            Request::LockPCRs { range } => self.lock(0..*range, Response::LockPCRs),
            Request::Attestation {
                user_data,
                nonce,
                public_key,
            } => self.attest([
                ("user_data", user_data),
                ("nonce", nonce),
                ("public_key", public_key),
            ]),
            Request::GetRandom => {
                let mut random = vec![0; 256];
                aws_lc_rs::rand::fill(&mut random).unwrap();
                Response::GetRandom {
                    random: ByteBuf::from(random),
                }
            }
        })
    }
}
