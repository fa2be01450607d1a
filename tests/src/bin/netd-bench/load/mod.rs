//! The loads: small programs that run in the machines. Each prints one line of JSON when done.

mod connects;
mod datagrams;
mod flows;
mod latency;
mod relay;
mod serve;

pub(crate) use connects::Connects;
pub(crate) use datagrams::{Datagrams, READY as WAITING};
pub(crate) use flows::Flows;
pub(crate) use latency::Latency;
pub(crate) use relay::{READY as RELAYING, Relayed};
pub(crate) use serve::READY as SERVING;

use clap::Subcommand;
use datagrams::Other;
use serde::Serialize;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Ports of the servers in the internet machine.
pub(crate) mod port {
    /// iperf3, and a second one for loads in two directions.
    pub(crate) const IPERF: u16 = 5201;
    /// The second iperf3.
    pub(crate) const IPERF_SECOND: u16 = 5202;
    /// One thread a connection answers each message.
    pub(crate) const ECHO: u16 = 7000;
    /// One event loop answers each message of all connections.
    pub(crate) const IDLE: [u16; 4] = [7100, 7101, 7102, 7103];
    /// Answers one request and closes.
    pub(crate) const CLOSE: [u16; 8] = [7200, 7201, 7202, 7203, 7204, 7205, 7206, 7207];
    /// Datagrams.
    pub(crate) const DATAGRAMS: u16 = 7300;
    /// iperf3 behind the relay.
    pub(crate) const FAR_IPERF: u16 = 5301;
    /// nginx with TLS.
    pub(crate) const HTTPS: u16 = 443;
}

/// Bytes of a request and of its answer.
pub(crate) const MESSAGE: usize = 64;
/// A server that has not answered for so long has failed.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);

/// One load.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Load {
    /// The servers.
    Serve {
        /// The address to serve on.
        address: IpAddr,
    },
    /// Requests and answers over one connection.
    Latency {
        /// The server.
        server: SocketAddr,
        /// For how long.
        seconds: f64,
    },
    /// Connect, request, answer, end of stream.
    Connects {
        /// The server; its ports are taken in turns.
        server: IpAddr,
        /// For how long.
        seconds: f64,
        /// Loops at once.
        loops: usize,
    },
    /// Flows that are open and idle, until it is ended.
    Flows {
        /// The server; its ports are taken in turns.
        server: IpAddr,
        /// How many.
        flows: usize,
    },
    /// Sends datagrams.
    Send {
        /// The other one, or the own address if the other one calls.
        address: SocketAddr,
        /// Bytes of one.
        payload: usize,
        /// Datagrams a second.
        rate: f64,
        /// For how long.
        seconds: f64,
        /// The other one waits to be called.
        #[arg(long)]
        call: bool,
    },
    /// Counts datagrams.
    Receive {
        /// The other one, or the own address if the other one calls.
        address: SocketAddr,
        /// The other one waits to be called.
        #[arg(long)]
        call: bool,
    },
    /// A wire with delay and loss, until it is ended.
    Relay {
        /// One interface.
        left: String,
        /// The other.
        right: String,
        /// Each way, in milliseconds.
        delay: f64,
        /// The part of 1 that is lost, each way.
        loss: f64,
    },
}

/// Runs one load to its end.
pub(crate) fn run(load: &Load) -> anyhow::Result<()> {
    match *load {
        Load::Serve { address } => serve::run(address),
        Load::Latency { server, seconds } => latency::run(server, seconds),
        Load::Connects {
            server,
            seconds,
            loops,
        } => connects::run(server, seconds, loops),
        Load::Flows { server, flows } => flows::run(server, flows),
        Load::Send {
            address,
            payload,
            rate,
            seconds,
            call,
        } => datagrams::send(Other::new(call, address), payload, rate, seconds),
        Load::Receive { address, call } => datagrams::receive(Other::new(call, address)),
        Load::Relay {
            ref left,
            ref right,
            delay,
            loss,
        } => relay::run([left, right], Duration::from_secs_f64(delay / 1e3), loss),
    }
}

/// Tells a result to the one who started this load.
fn tell(result: &impl Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, result)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}
