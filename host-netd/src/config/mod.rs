//! Command line and configuration file, parsed once into valid values.

mod enclave;
mod file;
mod open_files;

pub use enclave::Enclave;
pub use open_files::Files;

use crate::admin::client::Question;
use crate::budget::Limits;
use crate::listen::AllowedCids;
use crate::publish::Publish;
use crate::sandbox::Mode;
use crate::tenant::Terms;
use anyhow::{Context, bail};
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use file::{File, parse_key};
use netd_proto::address::{Cid, LinkAddress};
use netd_proto::policy::{Host, Policy, Rule};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// The parent's end of the enclave network.
///
/// Ends the enclave's TCP, UDP, ICMP echo and DNS, and joins them to ordinary sockets of this
/// host. Needs no privilege. The log goes to stderr; NETD_LOG sets its level (info). SIGUSR1
/// writes the counters to the log. With a command it asks the host-netd that runs already.
#[derive(Debug, Parser)]
#[command(name = "host-netd", version, args_conflicts_with_subcommands = true)]
struct Args {
    /// Configuration file (TOML); what the command line says comes first
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(
        long,
        value_name = "ADDRESS",
        help = "Where enclaves connect: vsock:any:PORT or unix:PATH [default: vsock:any:1024]"
    )]
    listen: Option<LinkAddress>,
    #[arg(
        long,
        value_name = "CID",
        help = "Accept only the enclave with this CID; may be repeated [default: those of the [[enclave]] tables; without tables, every CID above 3]"
    )]
    cid: Vec<u32>,
    #[arg(
        long,
        value_name = "PORT",
        help = "Publish a port: [ADDR:]PORT[:ENCLAVE_PORT][/tcp|/udp]; may be repeated"
    )]
    publish: Vec<Publish>,
    /// Permit a destination, such as 'tcp 100.64.0.3:2049'; the first matching rule decides
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    /// Forbid a destination, such as '10.0.0.0/8'; the first matching rule decides
    #[arg(long, value_name = "RULE")]
    deny: Vec<String>,
    /// Write every packet that crosses the links to a pcapng file
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    #[arg(
        long,
        value_name = "PATH",
        global = true,
        help = "Where an operator may ask: a unix socket [default: /run/host-netd/admin.sock]"
    )]
    admin: Option<PathBuf>,
    #[command(subcommand)]
    question: Option<Question>,
}

/// What a command line says.
#[derive(Debug)]
pub enum Task {
    /// Serve enclaves.
    Serve(Box<Config>),
    /// Ask the host-netd at this admin socket, or the usual one.
    Ask(Question, Option<PathBuf>),
}

/// Everything an operator may set.
#[derive(Debug)]
pub struct Config {
    /// Where links are accepted, but for the sockets of single enclaves; nowhere, when each has its
    /// own.
    pub listen: Option<LinkAddress>,
    /// Which vsock peers may connect there.
    pub cids: AllowedCids,
    /// What holds for enclaves without a table.
    pub others: Terms,
    /// Enclaves with a table.
    pub enclaves: Vec<Enclave>,
    /// Where the name servers are told.
    pub resolv_conf: PathBuf,
    /// Where packets are recorded.
    pub capture: Option<PathBuf>,
    /// Where an operator may ask.
    pub admin: Option<PathBuf>,
    /// What may be used, before the limit of open files is looked at.
    pub limits: Limits,
    /// What happens where the kernel offers no sandbox.
    pub sandbox: Mode,
}

impl Config {
    /// Reads the command line and the file it names. Ends the process for `--help` and
    /// `--version`.
    ///
    /// # Errors
    /// An option, file, key or value is wrong; the message is one line that names it and what is
    /// allowed.
    pub fn from_command_line() -> anyhow::Result<Task> {
        let matches = Args::command().try_get_matches();
        if let Err(error) = &matches
            && !error.use_stderr()
        {
            error.exit();
        }
        Config::read(matches, File::read)
    }

    /// Reads a command line, the program's name first, and the `text` of the file that `--config`
    /// names.
    ///
    /// # Errors
    /// As [`Config::from_command_line`]; `--help`, `--version` and questions are errors here.
    pub fn parse<I>(words: I, text: &str) -> anyhow::Result<Config>
    where
        I: IntoIterator<Item: Into<OsString> + Clone>,
    {
        let matches = Args::command().try_get_matches_from(words);
        match Config::read(matches, |path| File::parse(path, text))? {
            Task::Serve(config) => Ok(*config),
            Task::Ask(..) => bail!("a question is no configuration"),
        }
    }

    fn read(
        matches: Result<ArgMatches, clap::Error>,
        read: impl FnOnce(&Path) -> anyhow::Result<File>,
    ) -> anyhow::Result<Task> {
        let matches = matches.map_err(|error| {
            let text = error.to_string();
            // A line that ends with a colon is about the next.
            let message: Vec<_> = (text.lines().take(2))
                .scan(true, |goes_on, line| {
                    std::mem::replace(goes_on, line.ends_with(':')).then(|| line.trim())
                })
                .collect();
            let message = message.join(" ");
            anyhow::anyhow!("{} (see --help)", message.trim_start_matches("error: "))
        })?;
        let mut args = Args::from_arg_matches(&matches)?;
        if let Some(question) = args.question.take() {
            return Ok(Task::Ask(question, args.admin));
        }
        let file = match &args.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let mut rules = rules_in_order(&matches, &args)?;
        rules.iter_mut().for_each(name_the_loopback);
        let config = Config::merge(args, &rules, file)?;
        Ok(Task::Serve(Box::new(config)))
    }

    /// `first` are the rules of the command line.
    fn merge(args: Args, first: &[Rule], file: File) -> anyhow::Result<Config> {
        let limits = file.limits()?;
        // Also what the command line overrides has to be right.
        let listen = file.listen.map(|text| parse_key("listen", &text));
        let listen = args.listen.or(listen.transpose()?);
        let cids = if args.cid.is_empty() {
            file.cids
        } else {
            Some(args.cid)
        };
        if cids.as_ref().is_some_and(Vec::is_empty) {
            bail!(
                "key 'cids' is empty: no enclave could connect; leave it out to accept every CID above 3"
            );
        }
        let cids = cids.map(|cids| cids.into_iter().map(Cid).collect());
        let mut publish = args.publish;
        for text in &file.publish {
            publish.push(parse_key("publish", text)?);
        }
        let mut last = Vec::new();
        for text in &file.rules {
            last.push(parse_key("rules", text)?);
        }
        last.iter_mut().for_each(name_the_loopback);
        let enclaves = enclave::read(file.enclave, first, &last)?;
        let (listen, cids) = enclave::common_listener(&enclaves, listen, cids)?;
        let sandbox = file.sandbox.map(|text| parse_key("sandbox", &text));
        let config = Config {
            listen,
            cids,
            others: Terms {
                policy: Policy::new([first, &last].concat()),
                publish,
            },
            enclaves,
            resolv_conf: file
                .resolv_conf
                .unwrap_or_else(|| "/etc/resolv.conf".into()),
            capture: args.capture.or(file.capture),
            admin: args.admin.or(file.admin),
            limits,
            sandbox: sandbox.transpose()?.unwrap_or_default(),
        };
        enclave::agree(&config)?;
        Ok(config)
    }
}

/// `--allow` and `--deny` make one list, in the order in which they were given.
fn rules_in_order(matches: &ArgMatches, args: &Args) -> anyhow::Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for (verb, texts) in [("allow", &args.allow), ("deny", &args.deny)] {
        let indices = matches.indices_of(verb).into_iter().flatten();
        for (index, text) in indices.zip(texts) {
            let rule = format!("{verb} {text}").parse::<Rule>();
            rules.push((index, rule.with_context(|| format!("--{verb} '{text}'"))?));
        }
    }
    rules.sort_by_key(|(index, _)| *index);
    Ok(rules.into_iter().map(|(_, rule)| rule).collect())
}

/// Operators write the address that enclaves use for the parent's loopback; the policy decides on
/// the address that is really reached.
fn name_the_loopback(rule: &mut Rule) {
    const STANDS_FOR: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 3);
    const STANDS_FOR6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x6e65, 0x7464, 0, 0, 0, 0, 3);
    if let Host::Net(address, 32 | 128) = &mut rule.host {
        match address {
            IpAddr::V4(v4) if *v4 == STANDS_FOR => *address = Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(v6) if *v6 == STANDS_FOR6 => *address = Ipv6Addr::LOCALHOST.into(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str], file: &str) -> anyhow::Result<Config> {
        let words = ["host-netd", "--config", "netd.toml"]
            .iter()
            .chain(arguments);
        Config::parse(words, file)
    }

    #[test]
    fn nothing_needs_to_be_set() {
        let config = parse(&[], "").expect("valid");
        let listen = config.listen.expect("the default");
        assert_eq!(listen.to_string(), "vsock:any:1024");
        assert_eq!(config.cids, AllowedCids::Enclaves);
        assert!(config.others.policy.rules().is_empty() && config.others.publish.is_empty());
        assert_eq!(config.sandbox, Mode::Auto);
    }

    #[test]
    fn the_example_is_right() {
        let text = include_str!("../../../scripts/deploy/host-netd.toml");
        let config = parse(&[], text).expect("valid");
        assert!(!config.enclaves.is_empty());
    }

    #[test]
    fn rules_keep_the_order_of_the_command_line_and_come_before_the_files() {
        let config = parse(
            &[
                "--deny",
                "10.0.0.0/8",
                "--allow",
                "tcp 100.64.0.3:2049",
                "--deny",
                "*",
            ],
            "rules = ['allow udp *:123']",
        )
        .expect("valid");
        let rules: Vec<_> = config
            .others
            .policy
            .rules()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            rules,
            [
                "deny 10.0.0.0/8",
                "allow tcp 127.0.0.1/32:2049",
                "deny *",
                "allow udp *:123"
            ]
        );
    }

    #[test]
    fn wrong_values_are_named() {
        for (arguments, file, what) in [
            (&["--listen", "tcp:1"][..], "", "vsock:CID:PORT"),
            (&["--allow", "nonsense here"][..], "", "--allow"),
            (&["--publish", "x"][..], "", "ENCLAVE_PORT"),
            (&[][..], "listen = 'x'", "listen"),
            (&["--listen", "unix:y"][..], "listen = 'x'", "listen"),
            (&[][..], "rules = ['x']", "rules"),
            (&[][..], "colour = 'red'", "colour"),
            (&[][..], "cids = []", "cids"),
            (&[][..], "max_flows = 0", "max_flows"),
            (&[][..], "max_enclaves = 17", "from 1 to 16"),
            (&[][..], "max_dials = 0", "max_dials"),
            (
                &[][..],
                "max_dials_per_destination = 0",
                "max_dials_per_destination",
            ),
            (&[][..], "max_udp_mappings = 99999", "max_udp_mappings"),
            (&[][..], "max_dns_queries = 257", "max_dns_queries"),
            (&[][..], "max_half_open = 0", "max_half_open"),
            (&[][..], "ring_memory_mib = 1", "ring_memory_mib"),
            (&[][..], "sandbox = 'on'", "sandbox"),
        ] {
            let error = format!("{:#}", parse(arguments, file).expect_err(what));
            assert!(error.contains(what), "{error}");
        }
    }
}
