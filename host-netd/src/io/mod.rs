//! Sockets and the data loop.

mod data;
mod datagram;
mod dial;
mod errors;
mod flow;
mod handle;
mod link;
mod options;
mod report;
mod work;

pub use data::DataLoop;
pub use handle::{Command, Handle, Services};
pub use link::LinkStream;
pub use options::{ping_sockets_permitted, set_raw, udp_socket};
