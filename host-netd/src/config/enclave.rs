//! `[[enclave]]` tables, and how they agree with each other and with the rest.

use super::file::parse_key;
use super::{Config, name_the_loopback};
use crate::listen::AllowedCids;
use crate::tenant::Terms;
use anyhow::{Context, bail};
use netd_proto::address::{Cid, DEFAULT_PORT, LinkAddress};
use netd_proto::policy::{Policy, Rule};
use serde::Deserialize;
use std::path::PathBuf;

/// A table as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    cid: u32,
    listen: Option<String>,
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    rules: Vec<String>,
}

/// What an operator sets for one enclave.
#[derive(Debug)]
pub struct Enclave {
    /// Its number.
    pub cid: Cid,
    /// A unix socket that only this enclave is let to.
    pub listen: Option<PathBuf>,
    /// Its rules, those for all among them; and its published ports.
    pub terms: Terms,
}

impl Table {
    /// `first` are the rules that come before its own, `last` those that come after.
    fn read(self, first: &[Rule], last: &[Rule]) -> anyhow::Result<Enclave> {
        let listen = match self.listen.map(|text| parse_key("listen", &text)) {
            None => None,
            Some(address) => match address? {
                LinkAddress::Unix(path) => Some(path),
                LinkAddress::Vsock(..) => bail!(
                    "key 'listen': only a unix socket can belong to one enclave; vsock tells enclaves apart by itself: leave it out"
                ),
            },
        };
        let publish = self.publish.iter().map(|text| parse_key("publish", text));
        let own = self.rules.iter().map(|text| parse_key("rules", text));
        let mut own: Vec<Rule> = own.collect::<anyhow::Result<_>>()?;
        own.iter_mut().for_each(name_the_loopback);
        Ok(Enclave {
            cid: Cid(self.cid),
            listen,
            terms: Terms {
                policy: Policy::new([first, &own, last].concat()),
                publish: publish.collect::<anyhow::Result<_>>()?,
            },
        })
    }
}

/// Reads all tables: each by itself is right, and no two are about the same enclave or socket.
pub(super) fn read(
    tables: Vec<Table>,
    first: &[Rule],
    last: &[Rule],
) -> anyhow::Result<Vec<Enclave>> {
    let mut enclaves: Vec<Enclave> = Vec::new();
    for table in tables {
        let cid = table.cid;
        let enclave = table.read(first, last).with_context(|| name(Cid(cid)))?;
        if enclaves.iter().any(|other| other.cid == enclave.cid) {
            bail!(
                "two {} tables: give each enclave one table",
                name(enclave.cid)
            );
        }
        if let Some(path) = &enclave.listen
            && let Some(other) = enclaves.iter().find(|e| e.listen.as_ref() == Some(path))
        {
            bail!(
                "{} and {} listen at the same socket, unix:{}: give each enclave its own",
                name(other.cid),
                name(enclave.cid),
                path.display()
            );
        }
        enclaves.push(enclave);
    }
    Ok(enclaves)
}

/// The common listener, if there is to be one, and whom it lets in. `listen` is what was asked for,
/// `cids` whom.
pub(super) fn common_listener(
    enclaves: &[Enclave],
    listen: Option<LinkAddress>,
    cids: Option<Vec<Cid>>,
) -> anyhow::Result<(Option<LinkAddress>, AllowedCids)> {
    for enclave in enclaves {
        has_one_way_in(enclave, listen.as_ref(), cids.as_deref())
            .with_context(|| name(enclave.cid))?;
    }
    let without_socket = enclaves.iter().filter(|enclave| enclave.listen.is_none());
    let without_socket: Vec<Cid> = without_socket.map(|enclave| enclave.cid).collect();
    let is_needed = enclaves.is_empty() || !without_socket.is_empty() || cids.is_some();
    if !is_needed && matches!(listen, Some(LinkAddress::Vsock(..))) {
        bail!(
            "nobody could connect to the common 'listen', for every [[enclave]] table has its own: leave it out, or name other enclaves in 'cids'"
        );
    }
    let allowed = match cids {
        Some(cids) => AllowedCids::Only(cids),
        None if enclaves.is_empty() => AllowedCids::Enclaves,
        None => AllowedCids::Only(without_socket),
    };
    let default = LinkAddress::Vsock(Cid::ANY, DEFAULT_PORT);
    Ok((listen.or(is_needed.then_some(default)), allowed))
}

/// An enclave that could not connect is a mistake; one that could by two ways might be two enclaves.
fn has_one_way_in(
    enclave: &Enclave,
    common: Option<&LinkAddress>,
    cids: Option<&[Cid]>,
) -> anyhow::Result<()> {
    let is_listed = cids.is_some_and(|cids| cids.contains(&enclave.cid));
    if enclave.cid == Cid::ANY {
        bail!("this number stands for any CID: write the enclave's own");
    }
    match (&enclave.listen, common) {
        (Some(_), _) if is_listed => bail!(
            "it has a 'listen' of its own and is in 'cids' too: take one of them away, for a vsock peer with this CID may be another enclave"
        ),
        (Some(path), Some(LinkAddress::Unix(common))) if path == common => bail!(
            "it listens at unix:{}, as all do: give it a socket of its own",
            path.display()
        ),
        (Some(_), _) => {}
        (None, Some(LinkAddress::Unix(_))) => bail!(
            "it could never connect, for the common 'listen' is a unix socket, which tells no CID: give this table a 'listen' too"
        ),
        (None, _) if cids.is_some() && !is_listed => {
            bail!("it could never connect: add its CID to 'cids' or leave 'cids' out")
        }
        (None, _) if enclave.cid <= Cid::PARENT && !is_listed => bail!(
            "enclaves have CIDs above 3: to mean this one, name it in 'cids' or give this table a 'listen'"
        ),
        (None, _) => {}
    }
    Ok(())
}

/// Whether what is for one enclave and what is for all fit together.
pub(super) fn agree(config: &Config) -> anyhow::Result<()> {
    ports_are_free(config)?;
    let (tables, places) = (config.enclaves.len(), config.limits.enclaves);
    let others = others_may_connect(config);
    if tables + usize::from(others && tables > 0) > places {
        bail!(
            "key 'max_enclaves' is {places}: raise it, for each of the {tables} [[enclave]] tables keeps a place{}",
            match others {
                true => ", and enclaves without a table need one",
                false => "",
            }
        );
    }
    if !others && let Some(port) = config.others.publish.first() {
        bail!(
            "{port} is published for enclaves without a table, and none may connect: put it into an [[enclave]] table, or name such an enclave in 'cids'"
        );
    }
    Ok(())
}

/// Whether an enclave without a table can connect.
fn others_may_connect(config: &Config) -> bool {
    let has_table = |cid: &Cid| config.enclaves.iter().any(|enclave| enclave.cid == *cid);
    match (&config.listen, &config.cids) {
        (None, _) => false,
        (Some(LinkAddress::Unix(_)), _) | (_, AllowedCids::Enclaves) => true,
        (_, AllowedCids::Only(cids)) => !cids.iter().all(has_table),
    }
}

/// No two ports are published where only one socket can be bound.
fn ports_are_free(config: &Config) -> anyhow::Result<()> {
    let of_others = (config.others.publish.iter()).map(|port| (None, port));
    let of_tables = config.enclaves.iter().flat_map(|enclave| {
        let ports = enclave.terms.publish.iter();
        ports.map(|port| (Some(enclave.cid), port))
    });
    let all: Vec<_> = of_others.chain(of_tables).collect();
    let whose = |cid: Option<Cid>| cid.map_or("for enclaves without a table".into(), name);
    for (index, (cid, port)) in all.iter().enumerate() {
        if let Some((other, at)) = all[..index].iter().find(|(_, at)| port.collides_with(at)) {
            bail!(
                "{port} ({}) and {at} ({}) publish the same port of this host: choose another for one of them",
                whose(*cid),
                whose(*other)
            );
        }
    }
    Ok(())
}

/// How messages call a table.
fn name(cid: Cid) -> String {
    format!("[[enclave]] cid = {}", cid.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str], file: &str) -> anyhow::Result<Config> {
        let words = ["host-netd", "--config", "netd.toml"];
        Config::parse(words.iter().chain(arguments), file)
    }

    fn listens(file: &str) -> (Option<String>, AllowedCids) {
        let config = parse(&[], file).expect(file);
        (config.listen.map(|at| at.to_string()), config.cids)
    }

    #[test]
    fn rules_are_those_of_the_command_line_of_the_table_and_of_all_in_this_order() {
        let config = parse(
            &["--deny", "10.0.0.0/8"],
            "rules = ['deny *']
            [[enclave]]
            cid = 16
            rules = ['allow tcp 100.64.0.3:2049']
            [[enclave]]
            cid = 17",
        )
        .expect("valid");
        let rules = |terms: &Terms| {
            let rules = terms.policy.rules().iter().map(ToString::to_string);
            rules.collect::<Vec<_>>()
        };
        let of_all = ["deny 10.0.0.0/8", "deny *"];
        assert_eq!(
            rules(&config.enclaves[0].terms),
            [of_all[0], "allow tcp 127.0.0.1/32:2049", of_all[1]]
        );
        assert_eq!(rules(&config.enclaves[1].terms), of_all);
        assert_eq!(rules(&config.others), of_all);
    }

    #[test]
    fn with_tables_only_their_enclaves_connect_unless_others_are_named() {
        let only = |cids: &[u32]| AllowedCids::Only(cids.iter().copied().map(Cid).collect());
        let default = || Some("vsock:any:1024".to_owned());
        let tables = "[[enclave]]\ncid = 16\n[[enclave]]\ncid = 17\n";
        assert_eq!(listens(tables), (default(), only(&[16, 17])));

        let others = format!("cids = [16, 17, 18]\n{tables}");
        assert_eq!(listens(&others), (default(), only(&[16, 17, 18])));

        // A CID with a socket of its own has no other way in.
        let own = format!("{tables}[[enclave]]\ncid = 18\nlisten = 'unix:/run/18'");
        assert_eq!(listens(&own), (default(), only(&[16, 17])));
    }

    #[test]
    fn where_each_enclave_has_a_socket_there_is_no_common_one_unless_asked_for() {
        let tables = "[[enclave]]\ncid = 3\nlisten = 'unix:/run/3'";
        assert_eq!(listens(tables).0, None);
        let unix = format!("listen = 'unix:/run/all'\n{tables}");
        assert_eq!(listens(&unix).0.as_deref(), Some("unix:/run/all"));
        let others = format!("cids = [18]\n{tables}");
        let only = AllowedCids::Only(vec![Cid(18)]);
        assert_eq!(listens(&others), (Some("vsock:any:1024".into()), only));
    }

    #[test]
    fn tables_that_contradict_each_other_or_the_rest_are_named() {
        const T16: &str = "[[enclave]]\ncid = 16";
        let two =
            |first: &str, second: &str| format!("{T16}\n{first}\n[[enclave]]\ncid = 17\n{second}");
        let many: String = (20..25)
            .map(|n| format!("[[enclave]]\ncid = {n}\n"))
            .collect();
        let cases: Vec<(String, &[&str])> = vec![
            ("[[enclave]]".into(), &["cid", "line 1"]),
            (format!("{T16}\ncolour = 1"), &["colour", "line 3"]),
            ("[[enclave]]\ncid = -1".into(), &["line 2"]),
            ("[[enclave]]\ncid = 4294967295".into(), &["any CID"]),
            ("[[enclave]]\ncid = 3".into(), &["cid = 3", "above 3"]),
            (format!("{T16}\n{T16}"), &["two", "cid = 16"]),
            (two("rules = ['x']", ""), &["cid = 16", "rules", "'x'"]),
            (two("", "publish = ['x']"), &["cid = 17", "publish", "'x'"]),
            (two("listen = 'vsock:any:1'", ""), &["cid = 16", "listen"]),
            (
                two("listen = 'unix:/a'", "listen = 'unix:/a'"),
                &["cid = 16", "cid = 17", "unix:/a"],
            ),
            (
                format!("listen = 'unix:/a'\n{T16}\nlisten = 'unix:/a'"),
                &["cid = 16", "unix:/a"],
            ),
            (
                format!("listen = 'unix:/a'\n{T16}"),
                &["cid = 16", "could never connect"],
            ),
            (format!("cids = [17]\n{T16}"), &["cid = 16", "'cids'"]),
            (
                format!("cids = [16]\n{T16}\nlisten = 'unix:/a'"),
                &["cid = 16", "'cids'"],
            ),
            (
                format!("listen = 'vsock:any:9'\n{T16}\nlisten = 'unix:/a'"),
                &["listen", "nobody"],
            ),
            (
                two("publish = ['8443:443']", "publish = ['192.0.2.1:8443:80']"),
                &["cid = 16", "cid = 17", "8443:443", "192.0.2.1:8443:80"],
            ),
            (
                format!("cids = [16, 17]\npublish = ['80']\n{T16}\npublish = ['80:81']"),
                &["cid = 16", "without a table", "80:81"],
            ),
            (
                format!("{T16}\npublish = ['80', '80:81']"),
                &["cid = 16", "80:80", "80:81"],
            ),
            (format!("publish = ['80']\n{T16}"), &["80:80", "'cids'"]),
            (many, &["max_enclaves", "5 [[enclave]] tables"]),
            (
                format!("max_enclaves = 1\ncids = [16, 17]\n{T16}"),
                &["max_enclaves", "without a table"],
            ),
        ];
        for (file, words) in cases {
            let error = parse(&[], &file).expect_err(&file);
            let error = format!("{error:#}");
            for word in words {
                assert!(error.contains(word), "{word:?} of {file:?}: {error}");
            }
        }
    }

    #[test]
    fn two_enclaves_may_have_the_same_port_inside() {
        let text = "[[enclave]]
            cid = 16
            publish = ['8053:53/udp', '8443:443']
            [[enclave]]
            cid = 17
            publish = ['8054:53/udp', '8444:443', '8443/udp']";
        parse(&[], text).expect("valid");
    }
}
