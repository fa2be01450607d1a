//! `host-netd status`, `logs` and `wait`: clients of the admin socket.

use super::protocol::{Answer, Line, Name, Request, Which};
use super::server::{FOLDER, SOCKET};
use super::show;
use super::time::written;
use anyhow::{Context, bail};
use clap::Subcommand;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

/// Width of lines where nothing tells another: what does not end up on a terminal is not cut.
const NO_WIDTH: usize = usize::MAX;

/// The source of lines that are none of the enclave's.
const OWN: &str = "--";

/// What a running host-netd is asked.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Question {
    /// Show the enclaves that are connected and those that were
    Status {
        /// Everything that is known, as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the log of an enclave: its program's output and enclave-netd's own lines
    Logs {
        /// The enclave's CID; 'unix' for one that came by the unix socket
        #[arg(value_name = "CID")]
        cid: Name,
        /// Go on until the enclave has ended
        #[arg(long, short)]
        follow: bool,
        /// Of this session (see status) instead of the newest
        #[arg(long, value_name = "ID")]
        session: Option<String>,
    },
    /// Wait for the end of an enclave's program, and exit with its status
    #[command(
        after_help = "Exit status: that of the program; 128 and the number of the signal that ended it; \
        127 or 126 if it could not be started; 1 if the enclave went without telling."
    )]
    Wait {
        /// The enclave's CID; 'unix' for one that came by the unix socket
        #[arg(value_name = "CID")]
        cid: Name,
        /// Of this session (see status) instead of the newest
        #[arg(long, value_name = "ID")]
        session: Option<String>,
    },
}

/// Asks the host-netd at this admin socket, or the usual one, and shows what it answers.
///
/// # Errors
/// There is none, it may not be asked, or it knows no such enclave.
pub fn ask(question: Question, admin: Option<&Path>) -> anyhow::Result<ExitCode> {
    let usual = || Path::new(FOLDER).join(SOCKET);
    let path = admin.map_or_else(usual, PathBuf::from);
    let mut answers = Answers::to(&question, &path)?;
    let shown = match question {
        Question::Status { json } => show_status(&mut answers, json),
        Question::Logs { .. } => show_logs(&mut answers),
        Question::Wait { .. } => wait(&mut answers),
    };
    match shown {
        // Whoever reads has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        other => other,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    (error.downcast_ref::<io::Error>()).is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

impl Question {
    fn request(&self) -> Request {
        let of = |cid: Name, session: &Option<String>| Which {
            cid,
            session: session.clone(),
        };
        match self {
            Question::Status { .. } => Request::Status,
            Question::Logs {
                cid,
                follow,
                session,
            } => Request::Logs {
                of: of(*cid, session),
                follow: *follow,
                from: 0,
            },
            Question::Wait { cid, session } => Request::Wait {
                of: of(*cid, session),
            },
        }
    }
}

struct Answers {
    stream: BufReader<UnixStream>,
    line: String,
}

impl Answers {
    fn to(question: &Question, path: &Path) -> anyhow::Result<Answers> {
        let mut stream = connect(path)?;
        let mut request = serde_json::to_vec(&question.request())?;
        request.push(b'\n');
        match stream.write_all(&request) {
            // It may have been refused before; then there is an answer to read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            other => other.context("host-netd does not take the request")?,
        }
        Ok(Answers {
            stream: BufReader::new(stream),
            line: String::new(),
        })
    }

    /// The next answer.
    fn next(&mut self) -> anyhow::Result<Answer> {
        self.line.clear();
        let read = self.stream.read_line(&mut self.line);
        match read {
            Ok(0) => {
                bail!("host-netd closed the admin socket before it had told all: has it ended?")
            }
            Ok(_) => {}
            Err(error) => return Err(error).context("the admin socket broke")?,
        }
        let answer: Answer = serde_json::from_str(&self.line)
            .context("that is no answer of a host-netd: is this its admin socket?")?;
        match answer.error {
            Some(error) => bail!("{error}"),
            None => Ok(answer),
        }
    }
}

fn connect(path: &Path) -> anyhow::Result<UnixStream> {
    let shown = path.display();
    UnixStream::connect(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!(
            "there is no admin socket at {shown}: is host-netd running, and does it listen there (its key \
             'admin')? --admin names another path"
        ),
        ErrorKind::ConnectionRefused => anyhow::anyhow!(
            "nobody listens at {shown}: host-netd has ended; start it again"
        ),
        ErrorKind::PermissionDenied => anyhow::anyhow!(
            "the admin socket {shown} is closed to this user: ask as root or as the user of host-netd"
        ),
        _ => anyhow::Error::new(error).context(format!("cannot connect to the admin socket {shown}")),
    })
}

fn show_status(answers: &mut Answers, json: bool) -> anyhow::Result<ExitCode> {
    let status = answers
        .next()?
        .status
        .context("host-netd tells no status")?;
    let text = match json {
        // As it came: a client of an older release leaves nothing out.
        true => {
            let answer: serde_json::Value = serde_json::from_str(&answers.line)?;
            format!("{}\n", serde_json::to_string_pretty(&answer["status"])?)
        }
        false => show::table(&status, width()),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn show_logs(answers: &mut Answers) -> anyhow::Result<ExitCode> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    loop {
        let answer = answers.next()?;
        if let Some(Line {
            source, time, text, ..
        }) = answer.line
        {
            writeln!(stdout, "{time} {source:<6} {text}")?;
        }
        if let Some(lost) = answer.lost {
            let text = format!("{lost} lines are missing here");
            writeln!(stdout, "{} {OWN:<6} {text}", written(SystemTime::now()))?;
        }
        if let Some(end) = answer.end {
            if let Some(why) = end.why {
                let text = format!("the enclave has ended: {why}");
                writeln!(stdout, "{} {OWN:<6} {text}", written(SystemTime::now()))?;
            }
            stdout.flush()?;
            return Ok(ExitCode::SUCCESS);
        }
        // A line at a time for whoever waits for it, all at once otherwise.
        if answers.stream.buffer().is_empty() {
            stdout.flush()?;
        }
    }
}

fn wait(answers: &mut Answers) -> anyhow::Result<ExitCode> {
    loop {
        let answer = answers.next()?;
        if let Some(exit) = answer.exit {
            return Ok(ExitCode::from(exit.status));
        }
        if let Some(why) = answer.gone {
            bail!("the enclave went without telling how its program ended: {why}");
        }
    }
}

/// Columns of the terminal, if that is where it goes.
fn width() -> usize {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return NO_WIDTH;
    }
    match rustix::termios::tcgetwinsize(&stdout) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => NO_WIDTH,
    }
}
