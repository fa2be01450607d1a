//! What a data loop tells the operator.

use super::work::Work;
use crate::engine::drops::DropReason;
use crate::record::{Figures, Held};
use crate::sparse::Sparse;
use nix::errno::Errno;
use std::io;
use std::sync::Arc;

impl Work {
    /// Writes the counters to the log.
    pub(super) fn report(&mut self, what: &str) {
        let Figures {
            held,
            to_enclave,
            counters,
            dns_asked,
        } = self.figures();
        tracing::info!(
            flows = held.flows,
            flows_opened = counters.flows_opened,
            dials = held.dials,
            mappings = held.mappings,
            half_open = held.half_open,
            dns_queries = held.dns_queries,
            dns_asked,
            ring_memory = held.ring_memory,
            packets_from_enclave = counters.from_enclave.packets,
            bytes_from_enclave = counters.from_enclave.bytes,
            packets_to_enclave = to_enclave.packets,
            bytes_to_enclave = to_enclave.bytes,
            drops = %counters.drop_summary(),
            capture_left_out = self.services.tap.as_ref().map(crate::capture::Tap::left_out),
            "{what}"
        );
    }

    /// Tells the figures to whoever asked for them. Also while the link is full: an operator asks
    /// when something hangs.
    pub(super) fn tell_figures(&mut self) {
        if self.handle.figures_asked() {
            let figures = self.figures();
            self.record.tell(figures);
        }
    }

    pub(super) fn figures(&mut self) -> Figures {
        let shares = Arc::clone(self.engine.shares());
        let held = Held {
            flows: self.engine.flow_count(),
            dials: shares.dials.used(),
            mappings: shares.mappings.used(),
            half_open: shares.half_open.used(),
            dns_queries: self.dns_queries,
            ring_memory: self.engine.ring_memory(),
        };
        let to_enclave = self.engine.to_enclave();
        let counters = self.engine.counters();
        counters.add(DropReason::FlowLimit, shares.flows.take_refusals());
        counters.add(DropReason::HalfOpenLimit, shares.half_open.take_refusals());
        counters.add(DropReason::DnsLimit, shares.dns_queries.take_refusals());
        Figures {
            held,
            to_enclave,
            counters: counters.clone(),
            dns_asked: self.dns_asked,
        }
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
