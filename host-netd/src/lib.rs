//! The parent's end of the enclave network.
//!
//! * [`engine`]: packets to flows and back, without I/O.
//! * [`io`]: the data loop, one epoll loop on one thread for each enclave; sockets and the link.
//! * [`listen`]: where links are accepted, and from whom.
//! * [`session`]: shakes hands, starts and replaces data loops.
//! * [`tenant`]: whose rules and published ports hold for an enclave.
//! * [`record`]: what is known of each enclave, also after it is gone.
//! * [`admin`]: answers an operator's questions, and asks them.
//! * [`publish`]: ports of the parent that lead into an enclave.
//! * [`dns`]: the resolver behind the gateway.
//! * [`budget`]: what all sessions share, in fair parts.
//! * [`config`]: command line and configuration file, parsed once.
//! * [`sandbox`]: what is given up before the first link is accepted.
//! * [`capture`]: what crosses the link, to a pcap file.
//!
//! Bytes flow link -> engine -> host socket and back inside the data loop. Everything that may
//! take long (name look-ups, connects, accepts) runs in tokio and hands results over by a bounded
//! channel with a wake-up.

pub mod admin;
pub mod budget;
pub mod capture;
pub mod config;
pub mod dns;
pub mod engine;
pub mod io;
pub mod limits;
pub mod listen;
pub mod local;
pub mod publish;
pub mod record;
pub mod sandbox;
pub mod session;
mod sparse;
pub mod tenant;
