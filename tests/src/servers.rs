//! Real servers.

use crate::lab::{Lab, servers_dir};
use crate::machine::Machine;
use crate::process::Process;
use crate::wait::until;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

/// How long a server may take to open its port, in seconds.
const START: u64 = 20;

/// A server that accepts connections.
#[derive(Debug)]
pub struct Server {
    /// Its process.
    pub process: Process,
}

/// nginx with TLS 1.3 and HTTP/2 on 443 and plain HTTP on 80 of the server's addresses.
#[derive(Debug)]
pub struct Nginx {
    /// Its process.
    pub process: Process,
    /// The certificate of the CA that signed for it.
    pub ca: String,
    /// What it serves.
    pub www: PathBuf,
    dir: PathBuf,
}

impl Nginx {
    /// Its access log.
    pub fn access_log(&self) -> String {
        fs::read_to_string(self.dir.join("nginx-access.log")).unwrap_or_default()
    }
}

impl Lab {
    /// Starts nginx in the internet.
    pub fn nginx(&self) -> Nginx {
        let dir = self.internet.dir().join("nginx");
        let www = dir.join("www");
        fs::create_dir_all(&www).unwrap();
        let names = ["web.lab.example", "www.lab.example", "v4only.lab.example"];
        let names = [&names[..], &["v6only.lab.example"]].concat();
        let folder = dir.to_str().unwrap();
        let script = servers_dir().join("make-pki");
        self.internet
            .run(script.to_str().unwrap(), &[&[folder], &names[..]].concat())
            .ok();
        let conf = fill(self, "nginx.conf", &dir);
        let process = self.internet.spawn("nginx", &["-e", "stderr", "-c", &conf]);
        let ca = dir.join("ca.pem").to_str().unwrap().to_owned();
        let server = self.internet.accepting(process, "192.0.2.2:443");
        Nginx {
            process: server.process,
            ca,
            www,
            dir,
        }
    }

    /// Starts an NFSv4 server on the parent's loopback; what it exports as `/volume` is the folder.
    pub fn ganesha(&self) -> (Server, PathBuf) {
        let dir = self.parent.dir().join("ganesha");
        let export = dir.join("export");
        fs::create_dir_all(&export).unwrap();
        fs::create_dir_all(dir.join("recovery")).unwrap();
        let conf = fill(self, "ganesha.conf", &dir);
        let pid = dir.join("pid");
        let line = [
            "-F",
            "-f",
            &conf,
            "-p",
            pid.to_str().unwrap(),
            "-L",
            "/dev/stderr",
        ];
        let process = self.parent.spawn("ganesha.nfsd", &line);
        (self.parent.accepting(process, "127.0.0.1:2049"), export)
    }

    /// Starts unbound with the zone `lab.example` in the internet.
    pub fn unbound(&self) -> Server {
        let dir = self.internet.dir().join("unbound");
        fs::create_dir_all(&dir).unwrap();
        fs::copy(
            servers_dir().join("lab.example.zone"),
            dir.join("lab.example.zone"),
        )
        .unwrap();
        let conf = fill(self, "unbound.conf", &dir);
        let process = self.internet.spawn("unbound", &["-d", "-c", &conf]);
        self.internet.accepting(process, "192.0.2.53:53")
    }

    /// Starts an iperf3 server in the internet.
    pub fn iperf3(&self) -> Server {
        let process = self.internet.spawn("iperf3", &["-s", "--forceflush"]);
        self.internet.accepting(process, "192.0.2.2:5201")
    }
}

impl Machine {
    /// Starts a node HTTP server that tells whom it sees.
    pub fn node(&self, port: u16) -> Server {
        let script = servers_dir().join("hello.js");
        let mut process = self.spawn("node", &[script.to_str().unwrap(), &port.to_string()]);
        process.wait_log("listening", START);
        Server { process }
    }

    /// Waits until a server that was started in this machine accepts connections.
    pub(crate) fn accepting(&self, mut process: Process, at: &str) -> Server {
        let at: SocketAddr = at.parse().unwrap();
        until(
            START,
            &format!("a server accepts connections on {at}"),
            || {
                if let Some(status) = process.ended() {
                    panic!("the server for {at} ended with {status}: {}", process.log());
                }
                let connect = || TcpStream::connect_timeout(&at, Duration::from_secs(1));
                self.inside(connect).ok()
            },
        );
        Server { process }
    }
}

/// Fills in a configuration and tells its path.
pub(crate) fn fill(lab: &Lab, name: &str, dir: &std::path::Path) -> String {
    let text = fs::read_to_string(servers_dir().join(name)).unwrap();
    lab.config(&text.replace("@DIR@", dir.to_str().unwrap()))
}
