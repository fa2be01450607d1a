//! `enclave-netd init`: the first process of an enclave.

#[allow(dead_code, reason = "called once the command is there")]
pub(crate) mod boot;
