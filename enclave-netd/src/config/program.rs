//! The tables of `enclave-netd init`: what to run, as whom, and where its log goes.

use super::ConfigError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What is run once the network is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// At least the program.
    pub(crate) command: Vec<String>,
    pub(crate) user: User,
    pub(crate) directory: PathBuf,
    /// Beside `PATH` and `HOME`, or instead of them.
    pub(crate) environment: BTreeMap<String, String>,
}

/// Who runs it. Names are looked up when it is started, in the program's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum User {
    Name(String),
    Ids { uid: u32, gid: Option<u32> },
}

/// Where lines of the log go.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogSettings {
    /// To the parent.
    pub(crate) forward: bool,
    /// What the program writes, to the console as well.
    pub(crate) console: bool,
}

impl Default for LogSettings {
    fn default() -> Self {
        LogSettings {
            forward: true,
            console: true,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawProgram {
    command: Vec<String>,
    user: RawUser,
    directory: String,
    environment: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a user's name, UID or \"UID:GID\"")]
enum RawUser {
    Number(i64),
    Text(String),
}

impl Default for RawProgram {
    fn default() -> Self {
        RawProgram {
            command: Vec::new(),
            user: RawUser::Text("root".into()),
            directory: "/".into(),
            environment: BTreeMap::new(),
        }
    }
}

impl TryFrom<RawProgram> for Program {
    type Error = ConfigError;

    fn try_from(raw: RawProgram) -> Result<Self, Self::Error> {
        match raw.command.first().map(String::as_str) {
            None => return Err(ConfigError::NoProgram),
            Some("") => {
                let allowed = "the first word is the program";
                return Err(ConfigError::value("program.command", raw.command, allowed));
            }
            Some(_) => {}
        }
        if let Some(word) = raw.command.iter().find(|word| word.contains('\0')) {
            return Err(ConfigError::value("program.command", word, NO_NUL));
        }
        if !raw.directory.starts_with('/') || raw.directory.contains('\0') {
            let allowed = "an absolute path in the program's root";
            return Err(ConfigError::value(
                "program.directory",
                raw.directory,
                allowed,
            ));
        }
        for (name, value) in &raw.environment {
            let key = format!("program.environment.{name}");
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(ConfigError::value(&key, name, "a name has no '=' in it"));
            }
            if value.contains('\0') {
                return Err(ConfigError::value(&key, value, NO_NUL));
            }
        }
        Ok(Program {
            command: raw.command,
            user: user(raw.user)?,
            directory: raw.directory.into(),
            environment: raw.environment,
        })
    }
}

const NO_NUL: &str = "no program can be given a NUL character";

fn user(raw: RawUser) -> Result<User, ConfigError> {
    let text = match raw {
        RawUser::Number(number) => number.to_string(),
        RawUser::Text(text) => text,
    };
    let wrong = || {
        let allowed = "a name in the root's /etc/passwd, UID or UID:GID";
        ConfigError::value("program.user", &text, allowed)
    };
    // The last number means "none" to the kernel.
    let id = |text: &str| match text.parse() {
        Ok(u32::MAX) | Err(_) => Err(wrong()),
        Ok(id) => Ok(id),
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok(User::Ids {
            uid: id(uid)?,
            gid: Some(id(gid)?),
        }),
        None if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => Ok(User::Ids {
            uid: id(&text)?,
            gid: None,
        }),
        None if text.is_empty() || text.contains(|c: char| c.is_control()) => Err(wrong()),
        None => Ok(User::Name(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn program(text: &str) -> Program {
        let config = Config::parse(&format!("[program]\ncommand = [\"x\"]\n{text}"));
        config.expect(text).program().expect("there").clone()
    }

    fn error(text: &str) -> String {
        Config::parse(text).expect_err(text).to_string()
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let program = program("");
        assert_eq!(program.command, ["x"]);
        assert_eq!(program.user, User::Name("root".into()));
        assert_eq!(program.directory, PathBuf::from("/"));
        assert!(program.environment.is_empty());
        let config = Config::parse("[log]\nconsole = false").expect("valid");
        let log = LogSettings {
            forward: true,
            console: false,
        };
        assert_eq!(config.log, Some(log));
        assert!(config.program().is_err());
    }

    #[test]
    fn users_are_names_or_numbers() {
        let ids = |uid, gid| User::Ids { uid, gid };
        for (text, user) in [
            ("'app'", User::Name("app".into())),
            ("'1000'", ids(1000, None)),
            ("1000", ids(1000, None)),
            ("'1000:27'", ids(1000, Some(27))),
        ] {
            assert_eq!(program(&format!("user = {text}")).user, user, "{text}");
        }
        for wrong in ["''", "'1000:'", "'app:app'", "-1", "'4294967295'", "'12x'"] {
            let text = error(&format!("[program]\ncommand = ['x']\nuser = {wrong}"));
            assert!(
                text.starts_with("program.user = ") && text.contains("UID:GID"),
                "{wrong}: {text}"
            );
        }
    }

    #[test]
    fn an_error_names_the_key_and_what_is_allowed() {
        for (text, expected) in [
            ("[program]\n", "program.command is missing"),
            ("[program]\ncommand = []", "program.command is missing"),
            (
                "[program]\ncommand = ['']",
                "program.command = [\"\"]: the first",
            ),
            (
                "[program]\ncommand = ['x']\ndirectory = 'srv'",
                "program.directory = \"srv\": an absolute path",
            ),
            (
                "[program]\ncommand = ['x']\nenvironment = { 'A=B' = 'x' }",
                "program.environment.A=B = \"A=B\": a name has no '='",
            ),
            (
                "[program]\ncommand = ['x']\nenvironment = { PORT = 443 }",
                "line 3: 'environment = { PORT = 443 }': invalid type: integer `443`, expected a string",
            ),
            (
                "[program]\ncommand = ['x']\nname = 'x'",
                "unknown field `name`",
            ),
            ("[log]\nforwards = true", "unknown field `forwards`"),
        ] {
            let error = error(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn without_init_the_tables_are_refused() {
        for (text, table) in [
            ("[program]\ncommand = ['x']", "[program]"),
            ("[log]", "[log]"),
        ] {
            let config = Config::parse(text).expect("valid");
            let error = config.without_program().expect_err(text).to_string();
            assert!(
                error.contains(table) && error.contains("enclave-netd init"),
                "{error}"
            );
        }
    }
}
