//! Seeds of the targets that read their input as a list of operations: what each byte means stands
//! in `netd_tests::fuzz`. Zero is the usual choice everywhere.

type Seeds = Vec<(&'static str, &'static str, Vec<u8>)>;

// Which flags `shape::flags` makes of a byte.
const ACK: u8 = 0;
const DATA: u8 = 1;
const SYN: u8 = 2;
const FIN: u8 = 3;
const RST: u8 = 4;
const SYN_ACK: u8 = 6;

/// Operations on the engine.
pub(crate) fn engine() -> Seeds {
    let all = [0x0f, 0, 2];
    let none = [0x00, 0, 2];
    let seed =
        |name, begin: &[u8], steps: &[&[u8]]| ("engine", name, [begin, &steps.concat()].concat());
    let connected = [9, 0];
    let take = [15, 1, 0];
    let give = [13, 4, 0, 0];
    let finish = [17, 0, 0];
    let abort = [17, 3, 0];
    let later = |step: u8| [21, step];
    let open = |peer: u8| {
        [
            &segment(peer, SYN, 0)[..],
            &connected,
            &segment(peer, ACK, 0),
        ]
        .concat()
    };
    vec![
        seed(
            "connection4",
            &all,
            &[
                &open(0),
                &segment(0, DATA, 100),
                &take,
                &give,
                &segment(0, ACK, 0),
                &segment(0, FIN, 0),
                &take,
                &finish,
                &segment(0, ACK, 0),
                &later(4),
            ],
        ),
        seed(
            "connection6-without-offloads",
            &none,
            &[
                &without_offload(segment(1, SYN, 0)),
                &connected,
                &without_offload(segment(1, ACK, 0)),
                &give,
                &finish,
                &without_offload(segment(1, DATA, 200)),
                &take,
                &without_offload(segment(1, FIN, 0)),
                &later(5),
            ],
        ),
        seed("refused", &all, &[&segment(0, SYN, 0), &[11, 0, 0]]),
        seed("unreachable", &all, &[&segment(1, SYN, 0), &[11, 0, 2, 1]]),
        seed(
            "given-up",
            &all,
            &[
                &segment(2, SYN, 0),
                &segment(2, SYN, 0),
                &segment(2, RST, 0),
            ],
        ),
        seed("reset-by-the-host", &all, &[&open(3), &give, &abort]),
        seed(
            "reset-by-the-enclave",
            &all,
            &[&open(0), &give, &segment(0, RST, 0)],
        ),
        seed(
            "dns-over-tcp",
            &all,
            &[&open(4), &segment(4, DATA, 50), &take, &give],
        ),
        seed(
            "inbound",
            &all,
            &[
                &[12, 0, 0],
                &segment(6, SYN_ACK, 0),
                &segment(6, DATA, 9),
                &take,
                &give,
                &finish,
            ],
        ),
        seed(
            "inbound-ignored",
            &all,
            &[&[12, 1, 0], &later(5), &later(5)],
        ),
        seed(
            "loopback-client",
            &all,
            &[&[12, 2, 0], &[12, 2, 7], &[12, 4, 0]],
        ),
        seed(
            "full-link",
            &all,
            &[
                &[20, 0],
                &open(0),
                &[13, 6, 0xff, 0xff, 0xff, 0],
                &[20, 2, 0xff, 0xff],
                &[20, 1],
            ],
        ),
        seed("idle", &all, &[&open(0), &later(7), &later(7), &later(8)]),
        seed(
            "datagrams",
            &all,
            &[
                &datagram(0, 8),
                &receive(4, 100),
                &datagram(1, 8),
                &receive(2, 200),
                &later(6),
            ],
        ),
        seed(
            "datagram-error",
            &all,
            &[&datagram(0, 8), &[19, 0, 2, 0, 0, 0, 0, 0, 0, 2, 8]],
        ),
        seed("echo", &all, &[&echo(0), &receive(0, 64), &later(5)]),
        seed(
            "datagram-in-parts",
            &all,
            &[&[
                6, 0, 0, 0, 6, 8, 0, 0, 3, 63, 1, 0, 4, 0, 0, 4, 0, 0, 4, 0, 0, 4, 0,
            ]],
        ),
        seed(
            "queries",
            &all,
            &[&datagram(2, 40), &[22, 0, 4, 0, 2, 90, 0, 0, 60]],
        ),
        seed(
            "denied",
            &[0x3f, 0, 2],
            &[&datagram(5, 8), &datagram(7, 8), &datagram(10, 8)],
        ),
        seed("published-datagrams", &[0x4f, 0, 2], &[&receive(1, 90)]),
        seed(
            "no-more-flows",
            &[0x0f, 1, 2],
            &[&open(0), &segment(1, SYN, 0), &datagram(0, 8)],
        ),
    ]
}

/// Peer, flags and payload of a segment that fits.
fn segment(peer: u8, flags: u8, payload: u8) -> Vec<u8> {
    let length = if payload == 0 { 0 } else { 2 };
    let mut step = vec![0, peer, flags, 0, 0, 0, 0, 0, length];
    if payload > 0 {
        step.push(payload);
    }
    step.extend([0, 0]);
    step
}

fn without_offload(mut segment: Vec<u8>) -> Vec<u8> {
    let at = segment.len() - 2;
    segment[at] = 3;
    segment
}

/// A datagram to a destination of the engine's list.
fn datagram(to: u8, payload: u8) -> Vec<u8> {
    vec![6, to, 0, 0, 2, payload, 0, 0, 0, 0]
}

fn echo(to: u8) -> Vec<u8> {
    vec![6, to, 0, 0, 2, 56, 3, 0, 1, 0, 0, 0]
}

/// Some datagrams more than one, all of a length, arrive for the first flow.
fn receive(more: u8, payload: u8) -> Vec<u8> {
    let mut step = vec![18, 0, more];
    for _ in 0..=more {
        step.extend([2, payload, 0, 0, 0]);
    }
    step
}

/// Operations on the guard: the configuration, the features, then packets.
pub(crate) fn guard() -> Seeds {
    let seed = |name, config: u8, steps: &[&[u8]]| {
        ("guard", name, [&[config, 15][..], &steps.concat()].concat())
    };
    // Family and addresses, ports, hop limit, a length; then what kind.
    let out4 = |kind: &[u8]| [&[0, 0, 0, 0, 0, 0, 0, 0, 2, 9][..], kind].concat();
    let out6 = |kind: &[u8]| [&[0, 1, 0, 0, 0, 0, 0, 2, 9][..], kind].concat();
    let enters = |mut packet: Vec<u8>, port: u8| {
        packet[0] = 2;
        let at = packet.len().min(5);
        packet[at] = port;
        [packet, vec![0, 0]].concat()
    };
    let (syn, answer, udp, ping) = (&[0, 0, 0][..], &[0, 1, 0][..], &[5][..], &[9, 1][..]);
    vec![
        seed("connection4", 0, &[&out4(syn), &enters(out4(answer), 0)]),
        seed("connection6", 0, &[&out6(syn), &enters(out6(answer), 0)]),
        seed(
            "published",
            0,
            &[&enters(out4(syn), 1), &enters(out4(syn), 3)],
        ),
        seed(
            "datagrams",
            0,
            &[
                &out4(udp),
                &enters(out4(udp), 0),
                &[10, 200],
                &enters(out4(udp), 0),
            ],
        ),
        seed("ping", 0, &[&out4(ping), &enters(out4(&[9, 0]), 0)]),
        seed(
            "error",
            0,
            &[&enters(out4(&[11, 3, 3]), 0), &enters(out6(&[11, 1, 4]), 0)],
        ),
        seed(
            "fragment",
            0,
            &[&out4(&[13, 0, 1]), &enters(out4(&[13, 0, 1]), 0)],
        ),
        seed("closed", 1, &[&out4(syn), &out6(syn), &out4(udp)]),
        seed(
            "named",
            2,
            &[
                &out4(syn),
                &[8, 0, 1, 1, 0, 0, 0, 0, 0, 60, 0, 0],
                &out4(syn),
            ],
        ),
        seed(
            "other-features",
            0,
            &[
                &[11, 0],
                &enters(out4(udp), 2),
                &[11, 15],
                &enters(out4(udp), 2),
            ],
        ),
    ]
}
