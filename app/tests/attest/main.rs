//! Documents of a test root that are to be believed, and every way of being wrong.
#![allow(clippy::unwrap_used)]

mod asked;
mod form;
mod trust;

use ciborium::Value;
use enclave_app::attest::{Error, Expected, Root, Verified, verify};
use std::time::{SystemTime, UNIX_EPOCH};
use test_attester::{Attester, Authority, Shape, payload};

const IMAGE: [[u8; 48]; 3] = [[0xa0; 48], [0xa1; 48], [0xa2; 48]];

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// An authority, and the payload of a document that is right.
struct Case {
    authority: Authority,
    payload: Vec<(Value, Value)>,
}

impl Case {
    fn new() -> Case {
        Case::of(&Shape::default())
    }

    fn of(shape: &Shape) -> Case {
        let authority = Authority::new(shape);
        let attester = Attester::new(authority.clone(), IMAGE);
        let payload = payload(&authority, &attester);
        Case { authority, payload }
    }

    fn set(mut self, name: &str, value: impl Into<Value>) -> Case {
        self.payload.retain(|(key, _)| key.as_text() != Some(name));
        self.payload.push((name.into(), value.into()));
        self
    }

    fn signed(&self) -> Vec<u8> {
        self.authority.sign(&Value::Map(self.payload.clone()))
    }

    fn root(&self) -> Root {
        Root::other(self.authority.bundle[0].clone())
    }

    fn verify_at(&self, at: u64, expected: &Expected) -> Result<Verified, Error> {
        verify(&self.signed(), &self.root(), at, expected)
    }

    fn verify(&self) -> Result<Verified, Error> {
        self.verify_at(now(), &Expected::default())
    }

    fn refused(&self) -> Error {
        self.verify().unwrap_err()
    }
}

fn bytes(length: usize) -> Value {
    Value::Bytes(vec![5; length])
}
