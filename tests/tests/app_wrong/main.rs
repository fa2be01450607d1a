//! Wrong input to enclave-app, from either side: an answer or an exit code that says what is wrong,
//! and the service goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod commands;
mod crypto;
mod fetch;
mod serve;
mod sidecar;

use netd_tests::{Lab, Nginx, Process, serve};
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Where sites are that answer wrongly, by the path that is asked for.
const SITE: &str = "192.0.2.2:7001";

/// Starts a service in the enclave with settings NAME=VALUE before its name.
fn start(lab: &Lab, line: &[&str]) -> Process {
    let mut service = lab.enclave.spawn("env", line);
    service.wait_log("listening", 20);
    service
}

/// Closed so that the other side is reset.
fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

/// A site whose answers are wrong.
fn wrong_site(lab: &Lab) -> SocketAddr {
    serve(&lab.internet, SITE.parse().unwrap(), |mut stream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default();
        let half = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf";
        let long = format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20));
        let answer: &[u8] = match path {
            "/half" | "/reset-midway" => half,
            "/nonsense" => b"\x16\x03\x01 nonsense\r\n\r\n",
            "/chunk" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "/two-lengths" => {
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
            }
            "/switch" => {
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
            }
            "/headers" => long.as_bytes(),
            _ => b"",
        };
        // Who has had enough of it closes.
        let _ = stream.write_all(answer);
        if path.starts_with("/reset") {
            reset(stream);
        }
    })
}

/// A site at port 8444 whose certificate's time is over.
fn expired_site(lab: &Lab, nginx: &Nginx) -> Process {
    let file = |name: &str| nginx.ca.replace("ca.pem", name);
    let (certificate, key) = (file("expired.pem"), file("server.key"));
    let line = ["s_server", "-accept", "192.0.2.2:8444", "-www"];
    let files = ["-cert", &certificate, "-key", &key];
    let mut site = lab.internet.spawn("openssl", &[&line[..], &files].concat());
    site.wait_log("ACCEPT", 20);
    site
}
