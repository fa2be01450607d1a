//! What a data loop tells the operator.

use super::work::Work;
use crate::engine::drops::DropReason;
use crate::sparse::Sparse;
use nix::errno::Errno;
use std::io;
use std::sync::Arc;

impl Work {
    /// Writes the counters to the log.
    pub(super) fn report(&mut self, what: &str) {
        let shares = Arc::clone(self.engine.shares());
        let (flows, to_enclave) = (self.engine.flow_count(), self.engine.to_enclave());
        let (ring_memory, dns_queries) = (self.engine.ring_memory(), self.dns_queries);
        let counters = self.engine.counters();
        counters.add(DropReason::FlowLimit, shares.flows.take_refusals());
        counters.add(DropReason::HalfOpenLimit, shares.half_open.take_refusals());
        counters.add(DropReason::DnsLimit, shares.dns_queries.take_refusals());
        tracing::info!(
            flows,
            flows_opened = counters.flows_opened,
            dials = shares.dials.used(),
            mappings = shares.mappings.used(),
            half_open = shares.half_open.used(),
            dns_queries,
            ring_memory,
            packets_from_enclave = counters.from_enclave.packets,
            bytes_from_enclave = counters.from_enclave.bytes,
            packets_to_enclave = to_enclave.packets,
            bytes_to_enclave = to_enclave.bytes,
            drops = %counters.drop_summary(),
            capture_left_out = self.services.tap.as_ref().map(crate::capture::Tap::left_out),
            "{what}"
        );
    }
}

/// Errors of sockets that an operator can do something about, now and then.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    files: Sparse,
    ports: Sparse,
}

impl Warnings {
    pub(super) fn of(&self, error: &io::Error) {
        if is_out_of_files(error) {
            self.files.warn(|left_out| {
                tracing::warn!(
                    left_out,
                    "no more open files: raise LimitNOFILE (ulimit -n) of host-netd"
                );
            });
        }
        if error.raw_os_error() == Some(Errno::EADDRNOTAVAIL as i32) {
            self.ports.warn(|left_out| {
                tracing::warn!(
                    left_out,
                    "no free port for this destination: widen net.ipv4.ip_local_port_range"
                );
            });
        }
    }
}

pub(super) fn is_out_of_files(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE))
}
