//! Sockets and the data loop.

mod data;
mod datagram;
mod errors;
mod flow;
mod link;
mod options;

pub use data::{Command, DataLoop, Handle, Services};
pub use link::LinkStream;
pub use options::{ping_sockets_permitted, set_raw, udp_socket};
