//! A host that takes every link and all that an enclave tells over it, and sends nothing but
//! pongs.

use netd_proto::frame::{Decoder, Kind, header};
use netd_proto::handshake::{AwaitHello, Features, Hello};
use netd_proto::report::{Exit, LogLine, Source};
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::wait::until;

/// What came over one link.
#[derive(Clone, Debug)]
pub struct Told {
    /// How the enclave introduced itself.
    pub hello: Hello,
    /// Lines in their order.
    pub lines: Vec<LogLine>,
    /// How the program ended, and how many lines came before.
    pub exit: Option<(Exit, usize)>,
    /// Whether it said goodbye.
    pub goodbye: bool,
}

/// The host.
#[derive(Debug)]
pub struct FakeHost {
    shared: Arc<Shared>,
    path: PathBuf,
}

#[derive(Debug)]
struct Shared {
    features: Features,
    links: Mutex<Vec<Told>>,
    streams: Mutex<Vec<UnixStream>>,
    reads: AtomicBool,
}

impl FakeHost {
    /// Listens, with these abilities.
    pub fn listen(path: &Path, features: Features) -> FakeHost {
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).expect("the folder is there");
        // The carrier is nobody in particular.
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        let shared = Arc::new(Shared {
            features,
            links: Mutex::default(),
            streams: Mutex::default(),
            reads: AtomicBool::new(true),
        });
        let ours = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let ours = Arc::clone(&ours);
                thread::spawn(move || ours.serve(stream));
            }
        });
        FakeHost {
            shared,
            path: path.to_owned(),
        }
    }

    /// What came over each link so far.
    pub fn links(&self) -> Vec<Told> {
        self.shared.links.lock().unwrap().clone()
    }

    /// Cuts the link there is.
    pub fn cut(&self) {
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// From now on nothing is read, or all is.
    pub fn read(&self, reads: bool) {
        self.shared.reads.store(reads, Ordering::Relaxed);
    }

    /// Waits until the last link brought a line with this text, and tells that link's.
    ///
    /// # Panics
    /// When it does not within `seconds`.
    pub fn wait_line(&self, text: &str, seconds: u64) -> Told {
        until(seconds, &format!("a line {text:?} comes"), || {
            self.links()
                .pop()
                .filter(|told| told.lines.iter().any(|line| line.text.contains(text)))
        })
    }

    /// Waits until it was told how the program ended.
    ///
    /// # Panics
    /// When it is not within `seconds`.
    pub fn wait_exit(&self, seconds: u64) -> Told {
        until(seconds, "the host is told how the program ended", || {
            self.links().pop().filter(|told| told.exit.is_some())
        })
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        self.cut();
    }
}

impl Told {
    /// The texts of one source.
    pub fn texts(&self, source: Source) -> Vec<&str> {
        let of = self.lines.iter().filter(|line| line.source == source);
        of.map(|line| line.text.as_str()).collect()
    }

    /// The numbers of its lines.
    pub fn numbers(&self) -> Vec<u64> {
        self.lines.iter().map(|line| line.number).collect()
    }
}

impl Shared {
    fn serve(&self, mut stream: UnixStream) {
        let mut decoder = Decoder::new();
        let offer = loop {
            if let Some(frame) = decoder.next().expect("frames") {
                break AwaitHello.receive(frame).expect("a hello");
            }
            match stream.read(decoder.space()) {
                Ok(n) if n > 0 => decoder.advance(n),
                _ => return,
            }
        };
        let told = Told {
            hello: offer.hello,
            lines: Vec::new(),
            exit: None,
            goodbye: false,
        };
        let index = {
            let mut links = self.links.lock().unwrap();
            links.push(told);
            links.len() - 1
        };
        let (welcome, _) = offer.accept(self.features);
        if send(&mut stream, Kind::Welcome, &welcome).is_err() {
            return;
        }
        self.streams
            .lock()
            .unwrap()
            .push(stream.try_clone().unwrap());
        loop {
            while let Some(frame) = decoder.next().expect("frames") {
                let mut links = self.links.lock().unwrap();
                let told = &mut links[index];
                match frame.kind {
                    Kind::Ping => {
                        let _ = send(&mut stream, Kind::Pong, frame.payload);
                    }
                    Kind::Log => told
                        .lines
                        .push(LogLine::decode(frame.payload).expect("a line")),
                    Kind::Exit => {
                        let exit = Exit::decode(frame.payload).expect("an exit");
                        assert_eq!(told.exit, None, "told twice");
                        told.exit = Some((exit, told.lines.len()));
                    }
                    Kind::Goodbye => {
                        told.goodbye = true;
                        let _ = stream.shutdown(Shutdown::Both);
                        return;
                    }
                    _ => {}
                }
            }
            while !self.reads.load(Ordering::Relaxed) {
                thread::sleep(crate::wait::LOOK_EVERY);
            }
            match stream.read(decoder.space()) {
                Ok(n) if n > 0 => decoder.advance(n),
                _ => return,
            }
        }
    }
}

fn send(stream: &mut UnixStream, kind: Kind, payload: &[u8]) -> std::io::Result<()> {
    stream.write_all(&[&header(kind, payload.len())[..], payload].concat())
}
