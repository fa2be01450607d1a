//! Seeds of the corpora: inputs that are right, from which a fuzzer makes wrong ones.

use super::operations;
use netd_proto::build::EchoHeader;
use netd_proto::control::{Goodbye, Reason};
use netd_proto::frame::{Kind, header};
use netd_proto::report::{Exit, LogLine, Source};
use netd_tests::fuzz::craft::{ACK, Ends, Offload, Segment, echo, frame, tcp, udp};
use netd_tests::fuzz::own_hello;

/// Target, name and content of each.
pub(crate) fn all() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    [
        frames(),
        handshakes(),
        packets(),
        policies(),
        configs(),
        messages(),
        operations::engine(),
        operations::guard(),
    ]
    .concat()
}

type Seeds = Vec<(&'static str, &'static str, Vec<u8>)>;

fn frames() -> Seeds {
    let framed = |kind, payload: &[u8]| [&header(kind, payload.len())[..], payload].concat();
    let (hello, _) = own_hello().open();
    let goodbye = Goodbye::new(Reason::Shutdown, "until then").encode();
    let ping = 7_u64.to_be_bytes();
    let link = [
        framed(Kind::Hello, &hello),
        framed(Kind::Ping, &ping),
        framed(Kind::Packet, &plain(udp(v4(), 64, b"question"))),
        framed(Kind::Pong, &ping),
        framed(Kind::Goodbye, &goodbye),
    ]
    .concat();
    let reports = [
        framed(Kind::Log, &LogLine::encode(Source::Stderr, 7, b"a line")),
        framed(Kind::Exit, &Exit::Signal(15).encode()),
    ]
    .concat();
    vec![
        ("frame", "reports", [&[8], &reports[..]].concat()),
        ("frame", "link-bytewise", [&[0], &link[..]].concat()),
        ("frame", "link-in-17", [&[16], &link[..]].concat()),
        ("frame", "unknown-kind", vec![3, 9, 0, 0, 1, 0]),
        ("frame", "too-long", vec![3, 2, 0xff, 0xff, 0xff, 0]),
        ("frame", "unfinished", vec![1, 1, 0, 0, 9, 1, 2]),
    ]
}

fn handshakes() -> Seeds {
    let (hello, _) = own_hello().open();
    let goodbye = Goodbye::new(Reason::Shutdown, "until then").encode();
    let mut other = hello.clone();
    other[5] ^= 0xff;
    // Magic, version, features and session have the same place in both; the lane follows.
    let welcome = &hello[..27];
    vec![
        ("handshake", "hello", [&[0], &hello[..]].concat()),
        ("handshake", "welcome", [&[1], welcome].concat()),
        ("handshake", "goodbye", [&[2], &goodbye[..]].concat()),
        ("handshake", "another-version", [&[0], &other[..]].concat()),
        ("handshake", "short", [&[0], &hello[..20]].concat()),
    ]
}

fn ends(src: &str, dst: &str) -> Ends {
    (
        src.parse().expect("an address"),
        dst.parse().expect("an address"),
    )
}

fn v4() -> Ends {
    ends("100.64.0.2:4000", "192.0.2.53:53")
}

fn plain(packet: Vec<u8>) -> Vec<u8> {
    frame(packet, Offload::None)
}

fn packets() -> Seeds {
    let segment = Segment {
        flags: ACK | 8,
        seq: 1,
        ack: 2,
        window: u16::MAX,
        options: Vec::new(),
    };
    let ping = EchoHeader {
        request: true,
        identifier: 1,
        sequence: 2,
    };
    let data = b"GET / HTTP";
    let (v4, v6) = (v4(), ends("[fd00:6e65:7464::2]:4000", "[2001:db8::1]:53"));
    let ips = |ends: Ends| (ends.0.ip(), ends.1.ip());
    vec![
        ("packet", "udp4", plain(udp(v4, 64, b"question"))),
        ("packet", "udp6", plain(udp(v6, 64, b"question"))),
        ("packet", "ping4", plain(echo(ips(v4), 64, ping, b"data"))),
        ("packet", "ping6", plain(echo(ips(v6), 64, ping, b"data"))),
        ("packet", "tcp4", plain(tcp(v4, 64, &segment, data))),
        ("packet", "tcp6", plain(tcp(v6, 64, &segment, data))),
        (
            "packet",
            "tcp4-segments",
            frame(tcp(v4, 64, &segment, data), Offload::Segments(5)),
        ),
        (
            "packet",
            "udp6-datagrams",
            frame(udp(v6, 64, data), Offload::Segments(5)),
        ),
    ]
}

fn policies() -> Seeds {
    let words: &[u8] = b"allow tcp kms.us-east-1.amazonaws.com:443\nallow udp *:123\n";
    let nets: &[u8] = b"deny 10.0.0.0/8\nallow [2001:db8::/32]:80-90\nallow icmp *\n";
    let names: &[u8] = b"allow *.lab.example\ndeny web.lab.example web.lab.example\n";
    vec![
        ("policy", "words", words.to_vec()),
        ("policy", "nets", nets.to_vec()),
        ("policy", "names", names.to_vec()),
    ]
}

/// The first byte says what the text is; see `netd_tests::fuzz::config`.
fn configs() -> Seeds {
    let enclave = "parent = 'vsock:3:1024'
publish = ['443', '53/udp']
rules = ['allow udp *:123', 'deny *']
[network]
interface = 'netd0'
mtu = 1500
queue_length = 4096
address = '100.64.0.2/30'
gateway = '100.64.0.1'
parent_loopback = '100.64.0.3'
address6 = 'fd00:6e65:7464::2/64'
gateway6 = 'fd00:6e65:7464::1'
parent_loopback6 = 'fd00:6e65:7464::3'
[dns]
resolv_conf = false
search = ['lab.example']
";
    let host = "listen = 'unix:/run/netd.sock'
cids = [16, 17]
publish = ['8443:443', '[2001:db8::1]:53/udp']
rules = ['allow tcp 100.64.0.3:2049']
resolv_conf = '/etc/resolv.conf'
capture = '/tmp/link.pcap'
max_flows = 100
ring_memory_mib = 64
";
    let words = "--listen\nvsock:any:1024\n--cid\n16\n--publish\n8443:443/tcp
--allow\ntcp 100.64.0.3:2049\n--deny\n10.0.0.0/8\n--capture\n/tmp/link.pcap";
    let publish =
        "8443:443\n192.0.2.1:53/udp\n[2001:db8::1]:80:8080\nunix:/run/netd.sock\nvsock:any:1";
    let rules =
        "allow tcp kms.us-east-1.amazonaws.com:443\ndeny 10.0.0.0/8\nallow [2001:db8::/32]:80-90";
    let resolv = "# a comment
nameserver 192.0.2.53
nameserver fe80::1%2
search lab.example example
options ndots:2 timeout:1 attempts:3 rotate
";
    let unusual = "mtu = 1280 # \u{e9}\u{20ac}\n[network]\nmtu = '\u{1f600}'\n\u{0}";
    [
        ("enclave", 0, enclave),
        ("enclave-unusual", 0, unusual),
        ("host", 1, host),
        ("host-unusual", 1, unusual),
        ("host-words", 2, words),
        ("publish", 3, publish),
        ("rules", 4, rules),
        ("resolv-conf", 5, resolv),
    ]
    .map(|(name, kind, text)| ("config", name, [&[kind], text.as_bytes()].concat()))
    .to_vec()
}

/// See `netd_tests::fuzz::dns`: a choice, the length of the query, the query, and a reply.
fn messages() -> Seeds {
    let name = |text: &str| {
        let mut name = Vec::new();
        for label in text.split('.') {
            name.push(u8::try_from(label.len()).expect("short"));
            name.extend(label.bytes());
        }
        name.push(0);
        name
    };
    let query = |text: &str, rtype: u8, opt: bool| {
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, opt.into()];
        query.extend(name(text));
        query.extend([0, rtype, 0, 1]);
        if opt {
            query.extend([0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0]);
        }
        query
    };
    let asked = |choice: u8, query: &[u8], reply: &[u8]| {
        let length = u16::try_from(query.len()).expect("short").to_be_bytes();
        [&[choice], &length[..], query, reply].concat()
    };
    // The identifier and the question are put in by the target.
    let head = |rcode: u8, records: [u8; 3]| {
        let [an, ns, ar] = records;
        vec![0, 0, 0x81, 0x80 | rcode, 0, 1, 0, an, 0, ns, 0, ar]
    };
    let a = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1];
    let alias = [
        &[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 30, 0, 6, 3, b'w', b'w', b'w'][..],
        &[
            0xc0, 16, 0xc0, 41, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1,
        ],
    ]
    .concat();
    let soa = [
        &[0xc0, 12, 0, 6, 0, 1, 0, 0, 0, 60, 0, 24, 0xc0, 12, 0xc0, 12][..],
        &[0; 16],
        &[0, 0, 0, 9],
    ]
    .concat();
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 6, 0, 15, 0, 2, 0, 22];
    let long: Vec<u8> = a.iter().copied().cycle().take(a.len() * 60).collect();
    let plain = query("www.lab.example", 1, false);
    let edns = query("www.lab.example", 1, true);
    let told = [
        &plain[..2],
        &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0],
        &plain[12..],
        &a,
    ]
    .concat();
    vec![
        (
            "dns",
            "address",
            asked(0, &plain, &[&head(0, [1, 0, 0])[..], &a].concat()),
        ),
        (
            "dns",
            "alias",
            asked(0, &edns, &[&head(0, [2, 0, 0])[..], &alias].concat()),
        ),
        (
            "dns",
            "absent",
            asked(0, &edns, &[&head(3, [0, 1, 0])[..], &soa].concat()),
        ),
        (
            "dns",
            "kept",
            [&asked(4, &plain, &[0, 30])[..], &head(0, [1, 0, 0]), &a].concat(),
        ),
        (
            "dns",
            "searched",
            asked(
                2,
                &query("db", 1, true),
                &[&head(0, [1, 0, 0])[..], &a].concat(),
            ),
        ),
        (
            "dns",
            "too-long-for-udp",
            asked(0, &plain, &[&head(0, [60, 0, 0])[..], &long].concat()),
        ),
        (
            "dns",
            "extended-error",
            asked(1, &edns, &[&head(2, [0, 0, 1])[..], &opt].concat()),
        ),
        (
            "dns",
            "loopback",
            asked(0, &query("localhost", 28, false), &[]),
        ),
        (
            "dns",
            "transfer",
            asked(1, &query("lab.example", 252, false), &[]),
        ),
        ("dns", "told-to-the-enclave", [&[0x80], &told[..]].concat()),
    ]
}
