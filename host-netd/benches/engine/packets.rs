//! The enclave's packets, made once and patched.

use etherparse::{PacketBuilder, TcpOptionElement};
use netd_proto::build;
use netd_proto::offload::VnetHeader;
use std::net::SocketAddr;

/// Payload of a full segment at the MTU of 1500.
pub(crate) const MSS: usize = 1460;

/// Payload of the super-segments that Linux makes of such segments: as many as fit 64 KiB.
pub(crate) const SUPER_SEGMENT: usize = 44 * MSS;

/// IPv4 and TCP headers without options.
pub(crate) const HEADERS: usize = 40;

pub(crate) const ENCLAVE: [u8; 4] = [100, 64, 0, 2];
pub(crate) const SERVER: [u8; 4] = [192, 0, 2, 1];
pub(crate) const SERVER_PORT: u16 = 443;

/// The port of the enclave's `index`th socket.
pub(crate) fn port(index: usize) -> u16 {
    10_000 + u16::try_from(index).expect("fewer flows than ports")
}

/// What the enclave's kernel adds to data.
#[derive(Clone, Copy)]
pub(crate) enum Mark {
    Syn,
    Ack,
    Fin,
}

/// A TCP packet frame: virtio-net header and IPv4 packet, as the tun device hands it over, with
/// the checksum left to the receiver.
pub(crate) struct Segment {
    frame: Vec<u8>,
}

const SOURCE_PORT: usize = VnetHeader::LEN + 20;
const SEQUENCE: usize = SOURCE_PORT + 4;
const ACKNOWLEDGEMENT: usize = SOURCE_PORT + 8;

impl Segment {
    pub(crate) fn new(mark: Mark, payload: usize) -> Segment {
        let tcp = PacketBuilder::ipv4(ENCLAVE, SERVER, 64).tcp(port(0), SERVER_PORT, 0, 60_000);
        let tcp = match mark {
            Mark::Syn => {
                let options = [
                    TcpOptionElement::MaximumSegmentSize(1460),
                    TcpOptionElement::WindowScale(7),
                ];
                tcp.syn().options(&options).expect("they fit")
            }
            Mark::Ack => tcp.ack(0),
            Mark::Fin => tcp.ack(0).fin(),
        };
        let mut packet = Vec::new();
        tcp.write(&mut packet, &vec![0xA5; payload])
            .expect("memory");
        let gso_size = (payload > MSS).then_some(1460);
        let tcp_header = u16::from(packet[32] >> 4) * 4;
        let vnet = VnetHeader::tcp(false, 20, tcp_header, gso_size);
        Segment {
            frame: framed(vnet, &packet),
        }
    }

    /// The frame, as a segment of another connection.
    pub(crate) fn patched(&mut self, port: u16, seq: u32, ack: u32) -> &[u8] {
        self.frame[SOURCE_PORT..SOURCE_PORT + 2].copy_from_slice(&port.to_be_bytes());
        self.frame[SEQUENCE..SEQUENCE + 4].copy_from_slice(&seq.to_be_bytes());
        self.frame[ACKNOWLEDGEMENT..ACKNOWLEDGEMENT + 4].copy_from_slice(&ack.to_be_bytes());
        &self.frame
    }

    pub(crate) fn frame(&self) -> &[u8] {
        &self.frame
    }
}

/// A UDP packet frame.
pub(crate) struct Datagram {
    frame: Vec<u8>,
}

impl Datagram {
    pub(crate) fn new(payload: usize) -> Datagram {
        let (src, dst) = (SocketAddr::from((ENCLAVE, port(0))), server());
        let mut packet = vec![0xA5; build::udp_headroom(false) + payload];
        let (_, vnet) = build::udp(&mut packet, src, dst, 64, payload);
        Datagram {
            frame: framed(vnet, &packet),
        }
    }

    /// The frame, as a datagram of another socket.
    pub(crate) fn patched(&mut self, port: u16) -> &[u8] {
        self.frame[SOURCE_PORT..SOURCE_PORT + 2].copy_from_slice(&port.to_be_bytes());
        &self.frame
    }
}

pub(crate) fn server() -> SocketAddr {
    SocketAddr::from((SERVER, SERVER_PORT))
}

fn framed(vnet: VnetHeader, packet: &[u8]) -> Vec<u8> {
    [&vnet.encode(), packet].concat()
}
