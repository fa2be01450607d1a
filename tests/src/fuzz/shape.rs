//! How an input shapes the fields of a packet: mostly what a kernel would write, now and then
//! anything.

use super::Input;
use super::craft::{ACK, FIN, Offload, RST, SYN};

/// A distance: none, a small one, or any.
pub(super) fn distance(input: &mut Input<'_>) -> u32 {
    match input.byte() & 7 {
        0..=4 => 0,
        5 | 6 => i32::from(input.byte().cast_signed()).cast_unsigned(),
        _ => input.long(),
    }
}

/// A number of bytes below 65,536.
pub(super) fn length(input: &mut Input<'_>) -> usize {
    match input.byte() & 7 {
        0 | 1 => 0,
        2 | 3 => usize::from(input.byte()),
        4 => 1448,
        5 => 1460,
        _ => usize::from(input.word()),
    }
}

pub(super) fn hop_limit(input: &mut Input<'_>) -> u8 {
    match input.byte() {
        0xff => 255,
        other if other & 7 == 7 => other >> 3,
        _ => 64,
    }
}

pub(super) fn flags(input: &mut Input<'_>) -> u8 {
    const PSH: u8 = 8;
    let common = [ACK, ACK | PSH, SYN, ACK | FIN, RST, RST | ACK, SYN | ACK];
    match input.byte() & 7 {
        7 => input.byte(),
        index => common[usize::from(index)],
    }
}

pub(super) fn window(input: &mut Input<'_>) -> u16 {
    match input.byte() & 3 {
        0 | 1 => u16::MAX,
        2 => 0,
        _ => input.word(),
    }
}

/// TCP options.
pub(super) fn options(input: &mut Input<'_>, flags: u8) -> Vec<u8> {
    let kind = input.byte() & 7;
    match kind {
        0..=3 if flags & SYN != 0 => vec![2, 4, 5, 180, 3, 3, 7, 4, 2, 1, 1, 1],
        0..=3 => Vec::new(),
        4 => {
            let [a, b] = input.word().to_be_bytes();
            vec![2, 4, a, b]
        }
        5 => vec![3, 3, input.byte(), 0],
        6 => [&[1, 1, 8, 10], input.take(8)].concat(),
        _ => {
            let n = input.below(41);
            input.take(n).to_vec()
        }
    }
}

pub(super) fn offload(input: &mut Input<'_>) -> Offload {
    match input.byte() & 7 {
        0..=2 => Offload::Checksum,
        3 | 4 => Offload::None,
        5 => Offload::Segments(1460),
        6 => Offload::Segments(input.byte().into()),
        _ => Offload::Segments(input.word()),
    }
}
