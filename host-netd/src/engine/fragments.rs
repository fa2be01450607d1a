//! Puts UDP datagrams and echo requests together that the enclave's kernel cut at its MTU.
//!
//! TCP is never cut: the kernel segments it. Fragments cross a lossless link in order, so a small
//! table and a short timeout are enough; both are bounds against an enclave that sends first
//! fragments only. What is older than the timeout is as good as gone: kernels use an
//! identification again, and parts of two datagrams must not make a third.

use crate::limits::{MAX_REASSEMBLIES, REASSEMBLY_TIMEOUT};
use etherparse::defrag::{IpDefragBuf, IpFragRange};
use etherparse::{IpFragOffset, IpNumber};
use netd_proto::packet::Fragment;
use std::net::IpAddr;
use std::time::Instant;

/// Why a fragment was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FragmentError {
    /// It contradicts the others of its packet, or is of a protocol that is never cut.
    Invalid,
    /// Too many packets are incomplete.
    Limit,
}

#[derive(Debug)]
struct Partial {
    key: (IpAddr, IpAddr, u32, u8),
    begun: Instant,
    buffer: IpDefragBuf,
}

impl Partial {
    fn is_fresh(&self, now: Instant) -> bool {
        now < self.begun + REASSEMBLY_TIMEOUT
    }
}

/// Packets of which parts are missing.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    partials: Vec<Partial>,
    spare: Vec<(Vec<u8>, Vec<IpFragRange>)>,
}

impl Reassembly {
    /// Takes one fragment. Returns the payload and its protocol when it was the last one missing.
    pub(super) fn add(
        &mut self,
        src: IpAddr,
        dst: IpAddr,
        fragment: &Fragment<'_>,
        now: Instant,
    ) -> Result<Option<(u8, Vec<u8>)>, FragmentError> {
        if fragment.protocol == IpNumber::TCP.0 {
            return Err(FragmentError::Invalid);
        }
        let key = (src, dst, fragment.identification, fragment.protocol);
        let begun = self.partials.iter().position(|partial| partial.key == key);
        let index = match begun {
            Some(index) if self.partials[index].is_fresh(now) => index,
            Some(index) => {
                self.partials.swap_remove(index);
                self.begin(key, now)?
            }
            None => self.begin(key, now)?,
        };
        let offset = IpFragOffset::try_new(fragment.offset).map_err(|_| FragmentError::Invalid)?;
        let buffer = &mut self.partials[index].buffer;
        if buffer.add(offset, fragment.more, fragment.payload).is_err() {
            self.partials.swap_remove(index);
            return Err(FragmentError::Invalid);
        }
        if !buffer.is_complete() {
            return Ok(None);
        }
        let (payload, _) = self.partials.swap_remove(index).buffer.take_bufs();
        Ok(Some((fragment.protocol, payload)))
    }

    fn begin(
        &mut self,
        key: (IpAddr, IpAddr, u32, u8),
        now: Instant,
    ) -> Result<usize, FragmentError> {
        if self.partials.len() >= MAX_REASSEMBLIES {
            self.partials.retain(|partial| partial.is_fresh(now));
        }
        if self.partials.len() >= MAX_REASSEMBLIES {
            return Err(FragmentError::Limit);
        }
        let (data, sections) = self.spare.pop().unwrap_or_default();
        let buffer = IpDefragBuf::new(IpNumber(key.3), data, sections);
        self.partials.push(Partial {
            key,
            begun: now,
            buffer,
        });
        Ok(self.partials.len() - 1)
    }

    /// Takes the buffer of a payload back that [`add`](Self::add) returned.
    pub(super) fn recycle(&mut self, payload: Vec<u8>) {
        if self.spare.len() < 4 {
            self.spare.push((payload, Vec::new()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn fragment(identification: u32, offset: u16, more: bool, payload: &[u8]) -> Fragment<'_> {
        Fragment {
            identification,
            offset,
            more,
            protocol: 17,
            payload,
        }
    }

    fn add(
        reassembly: &mut Reassembly,
        fragment: &Fragment<'_>,
        now: Instant,
    ) -> Result<Option<(u8, Vec<u8>)>, FragmentError> {
        let src = IpAddr::from(Ipv4Addr::new(100, 64, 0, 2));
        let dst = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1));
        reassembly.add(src, dst, fragment, now)
    }

    #[test]
    fn parts_in_any_order_make_the_whole() {
        let now = Instant::now();
        let mut reassembly = Reassembly::default();
        assert_eq!(
            add(&mut reassembly, &fragment(1, 2, false, b"tail"), now),
            Ok(None)
        );
        assert_eq!(
            add(&mut reassembly, &fragment(1, 0, true, b"firstone"), now),
            Ok(None)
        );
        let whole = add(&mut reassembly, &fragment(1, 1, true, b"secondhf"), now);
        assert_eq!(whole, Ok(Some((17, b"firstonesecondhftail".to_vec()))));
        assert!(reassembly.partials.is_empty());
    }

    #[test]
    fn an_old_part_does_not_join_a_new_datagram() {
        let now = Instant::now();
        let later = now + REASSEMBLY_TIMEOUT;
        let mut reassembly = Reassembly::default();
        let old_tail = fragment(1, 1, false, b"old");
        assert_eq!(add(&mut reassembly, &old_tail, now), Ok(None));
        let head = fragment(1, 0, true, b"new head");
        assert_eq!(add(&mut reassembly, &head, later), Ok(None));
        let whole = add(&mut reassembly, &fragment(1, 1, false, b"new"), later);
        assert_eq!(whole, Ok(Some((17, b"new headnew".to_vec()))));
        assert!(reassembly.partials.is_empty());
    }

    #[test]
    fn first_fragments_alone_are_bounded_and_make_room_again() {
        let now = Instant::now();
        let mut reassembly = Reassembly::default();
        let limit = u32::try_from(MAX_REASSEMBLIES).expect("small");
        for id in 0..limit {
            assert_eq!(
                add(&mut reassembly, &fragment(id, 0, true, b"firstone"), now),
                Ok(None)
            );
        }
        let one_more = fragment(limit, 0, true, b"firstone");
        assert_eq!(
            add(&mut reassembly, &one_more, now),
            Err(FragmentError::Limit)
        );
        assert_eq!(
            add(&mut reassembly, &one_more, now + REASSEMBLY_TIMEOUT),
            Ok(None)
        );
    }

    #[test]
    fn contradicting_and_tcp_fragments_are_refused() {
        let now = Instant::now();
        let mut reassembly = Reassembly::default();
        assert_eq!(
            add(&mut reassembly, &fragment(1, 8191, true, &[0; 80]), now),
            Err(FragmentError::Invalid)
        );
        assert_eq!(
            add(&mut reassembly, &fragment(2, 0, true, b"odd"), now),
            Err(FragmentError::Invalid)
        );
        let tcp = Fragment {
            protocol: 6,
            ..fragment(3, 0, true, b"firstone")
        };
        assert_eq!(add(&mut reassembly, &tcp, now), Err(FragmentError::Invalid));
        assert!(reassembly.partials.is_empty());
    }
}
