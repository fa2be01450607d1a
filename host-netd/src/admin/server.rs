//! The admin socket: who is let in, and what is answered.

use super::protocol::{Answer, End, Name, Request, Which};
use super::status::{line, status};
use crate::limits::{
    ADMIN_BATCH, ADMIN_CLIENTS, ADMIN_IDLE, ADMIN_PAUSE, ADMIN_REQUEST, ADMIN_STALLED,
};
use crate::listen::make_way;
use crate::record::{Course, Record, Records};
use crate::sparse::Sparse;
use anyhow::{Context, bail};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Uid;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, sleep_until, timeout};

/// Where the socket is unless set, if systemd names no folder.
pub(super) const FOLDER: &str = "/run/host-netd";
pub(super) const SOCKET: &str = "admin.sock";

/// The admin socket; removed when dropped.
#[derive(Debug)]
pub struct Admin {
    listener: UnixListener,
    path: PathBuf,
    /// Our own user: the sandbox knows no call that tells it.
    own: Uid,
}

impl Admin {
    /// Listens at `setting`; without one in the folder of the service, if there is one.
    ///
    /// # Errors
    /// `setting` is in use or not permitted.
    pub fn bind(setting: Option<&Path>) -> anyhow::Result<Option<Admin>> {
        if let Some(path) = setting {
            let admin = Admin::at(path).context("the admin socket (key 'admin')")?;
            return Ok(Some(admin));
        }
        let path = default_folder().join(SOCKET);
        match Admin::at(&path) {
            Ok(admin) => Ok(Some(admin)),
            Err(error) => {
                tracing::info!("no admin socket, so no status and no logs of enclaves: {error:#}");
                Ok(None)
            }
        }
    }

    fn at(path: &Path) -> anyhow::Result<Admin> {
        if path
            .parent()
            .is_some_and(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
        {
            bail!(
                "there is no folder for {}: make it, or name another path (key 'admin')",
                path.display()
            );
        }
        make_way(path)?;
        // No moment in which others could connect; there is no other thread yet.
        let before = umask(Mode::S_IXUSR | Mode::S_IRWXG | Mode::S_IRWXO);
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.with_context(|| {
            format!(
                "cannot listen at {}: the folder must be writable for this user",
                path.display()
            )
        })?;
        tracing::info!(path = %path.display(), "admin socket");
        Ok(Admin {
            listener,
            path: path.to_owned(),
            own: nix::unistd::geteuid(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers clients until the runtime ends.
    pub async fn serve(self, records: Arc<Records>) {
        let places = Arc::new(Semaphore::new(ADMIN_CLIENTS));
        let warning = Sparse::default();
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warning.warn(|left_out| {
                        tracing::warn!(%error, left_out, "accepting a client of the admin socket failed; it goes on");
                    });
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if let Err(refusal) = is_permitted(&stream, self.own) {
                refuse(&stream, refusal);
                continue;
            }
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                refuse(
                    &stream,
                    format!("{ADMIN_CLIENTS} clients are connected: end one of them"),
                );
                continue;
            };
            let records = Arc::clone(&records);
            tokio::spawn(async move {
                let _place = place;
                let ended = Client::new(stream, records).serve().await;
                tracing::debug!(?ended, "client of the admin socket gone");
            });
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        // It may have been removed by hand.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The folder that systemd makes for the service, or the one it would make.
fn default_folder() -> PathBuf {
    let folders = std::env::var_os("RUNTIME_DIRECTORY").unwrap_or_default();
    let first = std::env::split_paths(&folders).next();
    first
        .filter(|folder| folder.is_absolute())
        .unwrap_or_else(|| FOLDER.into())
}

/// Only root and our own user: both can do more to us than to ask.
fn is_permitted(stream: &UnixStream, own: Uid) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| error.to_string())?.uid();
    if peer == 0 || peer == own.as_raw() {
        return Ok(());
    }
    Err(format!(
        "user {peer} is not permitted: ask as root or as user {own}"
    ))
}

/// As far as the socket takes it at once.
fn refuse(stream: &UnixStream, text: String) {
    if let Ok(bytes) = encode(&Answer::error(text)) {
        let _ = stream.try_write(&bytes);
    }
}

fn encode(answer: &Answer) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(answer)?;
    bytes.push(b'\n');
    Ok(bytes)
}

struct Client {
    requests: BufReader<OwnedReadHalf>,
    answers: OwnedWriteHalf,
    records: Arc<Records>,
}

impl Client {
    fn new(stream: UnixStream, records: Arc<Records>) -> Client {
        let (read, answers) = stream.into_split();
        Client {
            requests: BufReader::with_capacity(ADMIN_REQUEST, read),
            answers,
            records,
        }
    }

    /// Until the client is gone, or one of its requests is none.
    async fn serve(mut self) -> io::Result<()> {
        loop {
            let request = match timeout(ADMIN_IDLE, next_line(&mut self.requests)).await {
                Err(_) => return Ok(()),
                Ok(line) => line?,
            };
            let request = match request {
                None => return Ok(()),
                Some(Line::TooLong) => {
                    Err(format!("the request is longer than {ADMIN_REQUEST} bytes"))
                }
                Some(Line::Whole(line)) => serde_json::from_slice(&line)
                    .map_err(|error| format!("that is no request: {error} (see docs/admin.md)")),
            };
            match request {
                Err(text) => return self.answer(Answer::error(text)).await,
                Ok(request) => self.handle(request).await?,
            }
        }
    }

    async fn handle(&mut self, request: Request) -> io::Result<()> {
        match request {
            Request::Status => {
                let status = status(&self.records).await;
                self.answer(Answer {
                    status: Some(status),
                    ..Answer::default()
                })
                .await
            }
            Request::Logs { of, follow, from } => match self.find(&of) {
                Ok(record) => self.logs(&record, follow, from).await,
                Err(text) => self.answer(Answer::error(text)).await,
            },
            Request::Wait { of } => match self.find(&of) {
                Ok(record) => self.wait(&record).await,
                Err(text) => self.answer(Answer::error(text)).await,
            },
        }
    }

    /// The newest run that is meant.
    fn find(&self, which: &Which) -> Result<Arc<Record>, String> {
        let all = self.records.all();
        let is_meant = |record: &&Arc<Record>| {
            let session = which.session.as_deref().unwrap_or_default();
            Name::from(record.peer) == which.cid && record.session.to_string().starts_with(session)
        };
        if let Some(record) = all.iter().find(is_meant) {
            return Ok(Arc::clone(record));
        }
        let mut known: Vec<_> = (all.iter())
            .map(|record| format!("{} (session {})", Name::from(record.peer), record.session))
            .collect();
        if known.is_empty() {
            known.push("none has connected yet".to_owned());
        }
        let session =
            (which.session.as_ref()).map_or(String::new(), |id| format!(" with a session {id}"));
        Err(format!(
            "no enclave {}{session} here; known: {}",
            which.cid,
            known.join(", ")
        ))
    }

    async fn logs(&mut self, record: &Record, follow: bool, from: u64) -> io::Result<()> {
        let mut next = from;
        let why = loop {
            let (grown, changed) = (record.grown(), record.changed());
            let either = async {
                tokio::select! { () = grown => {}, () = changed => {} }
            };
            // Before the lines: those of an ended run are all there.
            let course = record.course(Instant::now());
            let lines = record.lines(next, ADMIN_BATCH);
            if !lines.is_empty() {
                let mut bytes = Vec::new();
                for found in lines {
                    if found.number > next {
                        bytes.extend(encode(&Answer {
                            lost: Some(found.number - next),
                            ..Answer::default()
                        })?);
                    }
                    next = found.number + 1;
                    bytes.extend(encode(&Answer {
                        line: Some(line(&found)),
                        ..Answer::default()
                    })?);
                }
                self.write(&bytes).await?;
                sleep(ADMIN_PAUSE).await;
                continue;
            }
            let patience = match course {
                _ if !follow => break None,
                Course::Ended(why) => break Some(why),
                Course::Connected => None,
                Course::MayReturn(until) => Some(until),
            };
            if self.interrupted(either, patience).await? {
                break None;
            }
        };
        self.answer(Answer {
            end: Some(End { next, why }),
            ..Answer::default()
        })
        .await
    }

    async fn wait(&mut self, record: &Record) -> io::Result<()> {
        loop {
            let changed = record.changed();
            let course = record.course(Instant::now());
            if let Some(exit) = record.exit() {
                return self
                    .answer(Answer {
                        exit: Some(exit.into()),
                        ..Answer::default()
                    })
                    .await;
            }
            let patience = match course {
                Course::Connected => None,
                Course::MayReturn(until) => Some(until),
                Course::Ended(why) => {
                    return self
                        .answer(Answer {
                            gone: Some(why),
                            ..Answer::default()
                        })
                        .await;
                }
            };
            if self.interrupted(changed, patience).await? {
                return Ok(());
            }
        }
    }

    /// Waits for a change, or a time. True if the client has something else to ask.
    ///
    /// # Errors
    /// The client is gone.
    async fn interrupted(
        &mut self,
        changed: impl Future<Output = ()>,
        until: Option<Instant>,
    ) -> io::Result<bool> {
        let late = async {
            match until {
                Some(until) => sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => Ok(false),
            () = late => Ok(false),
            bytes = self.requests.fill_buf() => match bytes?.is_empty() {
                true => Err(io::ErrorKind::UnexpectedEof.into()),
                false => Ok(true),
            },
        }
    }

    async fn answer(&mut self, answer: Answer) -> io::Result<()> {
        self.write(&encode(&answer)?).await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(ADMIN_STALLED, self.answers.write_all(bytes)).await?
    }
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
}

/// The next line that is not empty; nothing at the end.
async fn next_line(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Line>> {
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut *from).take(ADMIN_REQUEST as u64 + 1);
        limited.read_until(b'\n', &mut line).await?;
        if line.len() > ADMIN_REQUEST {
            return Ok(Some(Line::TooLong));
        }
        if line.is_empty() {
            return Ok(None);
        }
        if !line.trim_ascii().is_empty() {
            return Ok(Some(Line::Whole(line)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_cut_out_and_bounded() {
        let long = [b"x".repeat(ADMIN_REQUEST - 1), b"\n".to_vec()].concat();
        let mut input = &[b"{}\n\n \r\nlast", &b"\n"[..], &long, b"no end"].concat()[..];
        let mut lines = Vec::new();
        while let Some(Line::Whole(line)) = next_line(&mut input).await.expect("in memory") {
            lines.push(line);
        }
        assert_eq!(lines, [b"{}\n", &b"last\n"[..], &long, b"no end"]);

        let mut input = &b"x".repeat(ADMIN_REQUEST + 1)[..];
        let line = next_line(&mut input).await.expect("in memory");
        assert!(matches!(line, Some(Line::TooLong)));
    }
}
