//! Command line and configuration file, parsed once into valid values.

use crate::limits::{
    MAX_FLOWS, MAX_RING_MEMORY_MIB, MIN_RING_MEMORY_MIB, RESERVED_FILES, RING_MEMORY_MIB,
};
use crate::listen::AllowedCids;
use crate::publish::Publish;
use anyhow::{Context, bail};
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use netd_proto::address::{Cid, DEFAULT_PORT, LinkAddress};
use netd_proto::policy::{Host, Policy, Rule};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The parent's end of the enclave network.
///
/// Ends the enclave's TCP, UDP, ICMP echo and DNS, and joins them to ordinary sockets of this
/// host. Needs no privilege. The log goes to stderr; NETD_LOG sets its level (info). SIGUSR1
/// writes the counters to the log.
#[derive(Debug, Parser)]
#[command(name = "host-netd", version)]
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
        help = "Accept only the enclave with this CID; may be repeated [default: every CID above 3]"
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
    /// Write every packet that crosses the link to a pcap file
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
}

/// The configuration file. Every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<String>,
    cids: Option<Vec<u32>>,
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    rules: Vec<String>,
    resolv_conf: Option<PathBuf>,
    capture: Option<PathBuf>,
    max_flows: Option<usize>,
    ring_memory_mib: Option<usize>,
}

/// Everything an operator may set.
#[derive(Debug)]
pub struct Config {
    /// Where links are accepted.
    pub listen: LinkAddress,
    /// Which vsock peers may connect.
    pub cids: AllowedCids,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// Which destinations enclaves reach.
    pub policy: Policy,
    /// Where the name servers are told.
    pub resolv_conf: PathBuf,
    /// Where packets are recorded.
    pub capture: Option<PathBuf>,
    /// Flows of one enclave, before the limit of open files is looked at.
    pub max_flows: usize,
    /// Memory of one enclave's rings.
    pub ring_memory_mib: usize,
}

impl Config {
    /// Reads the command line and the file it names. Ends the process for `--help` and
    /// `--version`.
    ///
    /// # Errors
    /// An option, file, key or value is wrong; the message is one line that names it and what is
    /// allowed.
    pub fn from_command_line() -> anyhow::Result<Config> {
        let matches = Args::command().try_get_matches().map_err(|error| {
            if !error.use_stderr() {
                error.exit();
            }
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            anyhow::anyhow!("{} (see --help)", line.trim_start_matches("error: "))
        })?;
        let args = Args::from_arg_matches(&matches)?;
        let file = match &args.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let rules = rules_in_order(&matches, &args)?;
        Config::merge(args, rules, file)
    }

    fn merge(args: Args, mut rules: Vec<Rule>, file: File) -> anyhow::Result<Config> {
        // Also what the command line overrides has to be right.
        let listen = file.listen.map(|text| parse_key("listen", &text));
        let listen = args
            .listen
            .or(listen.transpose()?)
            .unwrap_or(LinkAddress::Vsock(Cid::ANY, DEFAULT_PORT));
        let cids = if args.cid.is_empty() {
            file.cids
        } else {
            Some(args.cid)
        };
        let cids = match cids {
            Some(cids) if cids.is_empty() => bail!(
                "key 'cids' is empty: no enclave could connect; leave it out to accept every CID above 3"
            ),
            Some(cids) => AllowedCids::Only(cids.into_iter().map(Cid).collect()),
            None => AllowedCids::Enclaves,
        };
        let mut publish = args.publish;
        for text in &file.publish {
            publish.push(parse_key("publish", text)?);
        }
        for text in &file.rules {
            rules.push(parse_key("rules", text)?);
        }
        rules.iter_mut().for_each(name_the_loopback);
        let max_flows = file.max_flows.unwrap_or(MAX_FLOWS);
        if !(1..=MAX_FLOWS).contains(&max_flows) {
            bail!("key 'max_flows' is {max_flows}: it must be from 1 to {MAX_FLOWS}");
        }
        let ring_memory_mib = file.ring_memory_mib.unwrap_or(RING_MEMORY_MIB);
        if !(MIN_RING_MEMORY_MIB..=MAX_RING_MEMORY_MIB).contains(&ring_memory_mib) {
            bail!(
                "key 'ring_memory_mib' is {ring_memory_mib}: it must be from \
                 {MIN_RING_MEMORY_MIB} to {MAX_RING_MEMORY_MIB}"
            );
        }
        Ok(Config {
            listen,
            cids,
            publish,
            policy: Policy::new(rules),
            resolv_conf: file
                .resolv_conf
                .unwrap_or_else(|| "/etc/resolv.conf".into()),
            capture: args.capture.or(file.capture),
            max_flows,
            ring_memory_mib,
        })
    }
}

impl File {
    fn read(path: &Path) -> anyhow::Result<File> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
        toml::from_str(&text).map_err(|error| {
            let line = error
                .span()
                .map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            anyhow::anyhow!(
                "{}, line {line}: {}",
                path.display(),
                error.message().replace('\n', " ")
            )
        })
    }
}

fn parse_key<T>(key: &str, text: &str) -> anyhow::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    text.parse().with_context(|| format!("key '{key}'"))
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

/// Raises the soft limit of open files to the hard one and returns how many flows it leaves room
/// for, at most `wanted`.
///
/// # Errors
/// The limit cannot be read, or is too low for any flow.
pub fn flows_within_file_limit(wanted: usize) -> anyhow::Result<usize> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    let files = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    let flows = usize::try_from(files.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX);
    if flows == 0 {
        bail!(
            "the limit of open files is {files}: raise it above {RESERVED_FILES} (ulimit -n, LimitNOFILE=)"
        );
    }
    if flows < wanted {
        tracing::warn!(
            files,
            flows,
            wanted,
            "the limit of open files bounds the flows: raise it (ulimit -n, LimitNOFILE=)"
        );
    }
    Ok(flows.min(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str], file: &str) -> anyhow::Result<Config> {
        let arguments = std::iter::once("host-netd").chain(arguments.iter().copied());
        let matches = Args::command().try_get_matches_from(arguments)?;
        let args = Args::from_arg_matches(&matches)?;
        let rules = rules_in_order(&matches, &args)?;
        Config::merge(args, rules, toml::from_str(file)?)
    }

    #[test]
    fn nothing_needs_to_be_set() {
        let config = parse(&[], "").expect("valid");
        assert_eq!(config.listen.to_string(), "vsock:any:1024");
        assert_eq!(config.cids, AllowedCids::Enclaves);
        assert!(config.policy.rules().is_empty() && config.publish.is_empty());
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
            (&[][..], "ring_memory_mib = 1", "ring_memory_mib"),
        ] {
            let error = format!("{:#}", parse(arguments, file).expect_err(what));
            assert!(error.contains(what), "{error}");
        }
    }
}
