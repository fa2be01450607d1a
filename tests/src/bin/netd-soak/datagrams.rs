//! UDP echoes and name look-ups, as programs do them: with another try when nothing comes.

use crate::random::Random;
use netd_tests::{Machine, address};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Tries of a program that asks by UDP, and how long it waits for each.
const TRIES: u32 = 3;
/// See [`TRIES`].
pub(crate) const WAIT: Duration = Duration::from_secs(1);
/// Tries of a look-up over UDP.
const NAME_TRIES: u32 = 5;
/// How long a look-up over TCP waits.
const NAME_WAIT: Duration = Duration::from_secs(10);

/// Names there are.
const NAMES: u64 = 64;
/// What every name of the load leads to, by family.
pub(crate) const NAMED: [IpAddr; 2] = address::SERVER;

/// A socket that asks an echo server.
pub(crate) fn socket(machine: &Machine, to: SocketAddr) -> io::Result<UdpSocket> {
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    };
    let socket = machine.inside(|| UdpSocket::bind(any))?;
    // On its own network: connect() looks the route up there.
    machine.inside(|| socket.connect(to))?;
    Ok(socket)
}

/// Sends a datagram and waits for the same.
///
/// # Errors
/// Nothing came, or it was not the same.
pub(crate) fn echo(socket: &UdpSocket, random: &mut Random, size: usize) -> io::Result<()> {
    let mark = random.between(0, u64::MAX);
    let sent = datagram(mark, size);
    let mut got = vec![0; 65_535];
    let mut last = timed_out("no answer");
    for _ in 0..TRIES {
        let until = Instant::now() + WAIT;
        if let Err(error) = socket.send(&sent) {
            // An ICMP error of an earlier one, or no route: a program tries again.
            last = error;
            std::thread::sleep(WAIT);
            continue;
        }
        loop {
            let left = until.saturating_duration_since(Instant::now());
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match socket.recv(&mut got) {
                // An answer to an earlier one: late, but what was sent.
                Ok(n) if n >= 8 && got[..8] != mark.to_be_bytes() => {
                    let mark = u64::from_be_bytes(got[..8].try_into().expect("eight bytes"));
                    if got[..n] != datagram(mark, n)[..] {
                        return Err(wrong("an earlier datagram"));
                    }
                }
                Ok(n) if got[..n] == sent[..] => return Ok(()),
                Ok(_) => return Err(wrong("the datagram")),
                Err(error) => {
                    last = error;
                    break;
                }
            }
        }
    }
    Err(last)
}

/// So many bytes that follow from the first eight.
fn datagram(mark: u64, size: usize) -> Vec<u8> {
    let mut bytes = mark.to_be_bytes().to_vec();
    let following = (1..).map(|n: u64| mark.wrapping_add(n * 7).to_le_bytes()[0]);
    bytes.extend(following.take(size - 8));
    bytes
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("{what} differs"))
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, what.to_owned())
}

/// Looks one of the names up: from the server, or kept for the second that it may be.
///
/// # Errors
/// Nothing came, or it was not the right address.
pub(crate) fn look_up(
    machine: &Machine,
    gateway: SocketAddr,
    random: &mut Random,
    over_tcp: bool,
) -> io::Result<()> {
    let wants_v6 = random.between(0, 2) == 1;
    let id = u16::try_from(random.between(0, 65_536)).expect("16 bits");
    let query = question(id, random.between(0, NAMES), wants_v6);
    let reply = match over_tcp {
        true => ask_over_tcp(machine, gateway, &query)?,
        false => ask(&socket(machine, gateway)?, &query)?,
    };
    let expected = match NAMED[usize::from(wants_v6)] {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let code = reply.get(3).map_or(0xff, |byte| byte & 0xf);
    let holds_it = reply.windows(expected.len()).any(|part| part == expected);
    match (code, holds_it) {
        (0, true) => Ok(()),
        _ => Err(io::Error::other(format!(
            "response code {code} in {} bytes",
            reply.len()
        ))),
    }
}

fn ask(socket: &UdpSocket, query: &[u8]) -> io::Result<Vec<u8>> {
    socket.set_read_timeout(Some(WAIT))?;
    let mut reply = vec![0; 1500];
    let mut last = timed_out("no answer");
    for _ in 0..NAME_TRIES {
        let answer = socket.send(query).and_then(|_| socket.recv(&mut reply));
        match answer {
            Ok(n) if reply[..2] == query[..2] => return Ok(reply[..n].to_vec()),
            Ok(_) => return Err(wrong("the question's number")),
            Err(error) => {
                // An error may come at once, and before what it tells of has passed.
                if error.kind() != ErrorKind::WouldBlock {
                    std::thread::sleep(WAIT);
                }
                last = error;
            }
        }
    }
    Err(last)
}

fn ask_over_tcp(machine: &Machine, gateway: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream: TcpStream = netd_tests::connect(machine, gateway, 10)?;
    stream.set_read_timeout(Some(NAME_WAIT))?;
    let length = u16::try_from(query.len()).expect("short").to_be_bytes();
    stream.write_all(&[&length, query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

/// A query, RFC 1035.
fn question(id: u16, name: u64, wants_v6: bool) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in [&format!("n{name:x}"), "soak", "example"] {
        query.push(u8::try_from(label.len()).expect("short"));
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend([0, if wants_v6 { 28 } else { 1 }, 0, 1]);
    query
}
