//! Where a link listens or connects.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A vsock context identifier: 3 is the parent of a Nitro enclave, enclaves have 4 and above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid(pub u32);

impl Cid {
    /// Every local context (VMADDR_CID_ANY); only for listening.
    pub const ANY: Cid = Cid(u32::MAX);
    /// The parent instance, as an enclave sees it.
    pub const PARENT: Cid = Cid(3);
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Cid::ANY => f.write_str("any"),
            Cid(number) => number.fmt(f),
        }
    }
}

impl FromStr for Cid {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "any" {
            Ok(Cid::ANY)
        } else {
            text.parse().map(Cid)
        }
    }
}

/// A vsock port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VsockPort(pub u32);

/// The port both daemons use unless told otherwise.
pub const DEFAULT_PORT: VsockPort = VsockPort(1024);

/// One end of a link: `vsock:CID:PORT`, `vsock:any:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkAddress {
    /// AF_VSOCK, stream.
    Vsock(Cid, VsockPort),
    /// AF_UNIX, stream.
    Unix(PathBuf),
}

/// The text is no link address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no link address: write vsock:CID:PORT (such as vsock:3:1024), vsock:any:PORT (to listen), or unix:PATH"
)]
pub struct AddressError(String);

impl FromStr for LinkAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressError(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(LinkAddress::Unix(path.into())),
            Some(("vsock", rest)) => {
                let (cid, port) = rest.split_once(':').ok_or_else(error)?;
                let cid = cid.parse().map_err(|_| error())?;
                let port = port.parse().map_err(|_| error())?;
                Ok(LinkAddress::Vsock(cid, VsockPort(port)))
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkAddress::Vsock(cid, port) => write!(f, "vsock:{cid}:{}", port.0),
            LinkAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_read_and_printed_alike() {
        for text in ["vsock:3:1024", "vsock:any:1024", "unix:/run/netd.sock"] {
            let address: LinkAddress = text.parse().expect("valid");
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn wrong_addresses_say_what_is_right() {
        for text in [
            "",
            "vsock",
            "vsock:3",
            "vsock:x:1",
            "vsock:3:99999999999",
            "unix:",
            "tcp:1:2",
        ] {
            let error = text.parse::<LinkAddress>().expect_err(text);
            assert!(error.to_string().contains("vsock:CID:PORT"), "{error}");
        }
    }
}
