//! The admin socket and its clients: status, logs, wait. The sandbox is on throughout.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod ends;
mod logs;
mod socket;
mod status;

use netd_tests::{Daemons, Done, Lab, Process, until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const MIB: usize = 1024 * 1024;

/// What the socket says at most, with a line of the greatest length.
const ANSWER: Duration = Duration::from_secs(20);

fn socket(lab: &Lab) -> PathBuf {
    lab.link().with_file_name("admin.sock")
}

fn host(lab: &Lab) -> Process {
    lab.start_host(&["--admin", socket(lab).to_str().unwrap()])
}

/// Both daemons as they come, with an admin socket.
fn up(lab: &Lab) -> Daemons {
    lab.up_with(&["--admin", socket(lab).to_str().unwrap()], "")
}

/// `host-netd` with a question.
fn ask(lab: &Lab, question: &[&str]) -> Done {
    let socket = socket(lab);
    let arguments = [question, &["--admin", socket.to_str().unwrap()]].concat();
    lab.parent.run(&lab.binary("host-netd"), &arguments)
}

/// The same, while the test goes on.
fn asking(lab: &Lab, question: &[&str]) -> Process {
    let socket = socket(lab);
    let arguments = [question, &["--admin", socket.to_str().unwrap()]].concat();
    lab.parent.spawn(&lab.binary("host-netd"), &arguments)
}

/// What `status --json` tells of each enclave.
fn enclaves(lab: &Lab) -> Vec<Value> {
    let text = ask(lab, &["status", "--json"]).ok();
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    status["enclaves"].as_array().unwrap().clone()
}

/// The enclave that came last, once this holds of it.
fn newest_when(lab: &Lab, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    until(20, what, || {
        let newest = enclaves(lab).into_iter().next()?;
        eprintln!("{newest}");
        holds(&newest).then_some(newest)
    })
}

/// A client that speaks for itself.
struct Client(BufReader<UnixStream>);

impl Client {
    fn new(lab: &Lab) -> Client {
        let stream = UnixStream::connect(socket(lab)).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        Client(BufReader::new(stream))
    }

    fn send(&mut self, text: &str) {
        // One that was refused is told why, though it cannot say anything.
        let _ = self.0.get_mut().write_all(text.as_bytes());
    }

    /// The next answer; nothing at the end.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }

    /// The next answer, which is an error.
    fn error(&mut self) -> String {
        let answer = self.next().expect("an answer");
        answer["error"].as_str().expect("an error").to_owned()
    }
}

/// Lines that `logs` shows, without their times.
fn shown(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{line}");
        rest.to_owned()
    });
    lines.collect()
}
