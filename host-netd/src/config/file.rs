//! The configuration file as it is written: TOML, every key known.

use super::enclave::Table;
use crate::budget::Limits;
use crate::limits::{
    DEFAULT_ENCLAVES, MAX_DIALS, MAX_DIALS_PER_DESTINATION, MAX_DNS_QUERIES, MAX_ENCLAVES,
    MAX_FLOWS, MAX_HALF_OPEN, MAX_RING_MEMORY_MIB, MAX_UDP_MAPPINGS, MIN_RING_MEMORY_MIB, OVERALL,
    RING_MEMORY_MIB,
};
use anyhow::{Context, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The configuration file. Every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) listen: Option<String>,
    pub(super) cids: Option<Vec<u32>>,
    #[serde(default)]
    pub(super) publish: Vec<String>,
    #[serde(default)]
    pub(super) rules: Vec<String>,
    pub(super) resolv_conf: Option<PathBuf>,
    pub(super) capture: Option<PathBuf>,
    pub(super) admin: Option<PathBuf>,
    pub(super) max_enclaves: Option<usize>,
    pub(super) max_flows: Option<usize>,
    pub(super) max_dials: Option<usize>,
    pub(super) max_dials_per_destination: Option<usize>,
    pub(super) max_udp_mappings: Option<usize>,
    pub(super) max_dns_queries: Option<usize>,
    pub(super) max_half_open: Option<usize>,
    pub(super) ring_memory_mib: Option<usize>,
    pub(super) sandbox: Option<String>,
    #[serde(default)]
    pub(super) enclave: Vec<Table>,
}

impl File {
    pub(super) fn limits(&self) -> anyhow::Result<Limits> {
        let within = |key: &str, value: Option<usize>, default, least, most| {
            let value = value.unwrap_or(default);
            if !(least..=most).contains(&value) {
                bail!("key '{key}' is {value}: it must be from {least} to {most}");
            }
            Ok(value)
        };
        let most = |key: &str, value, default| within(key, value, default, 1, default);
        let flows = most("max_flows", self.max_flows, MAX_FLOWS)?;
        let (dials, to_one) = (self.max_dials, self.max_dials_per_destination);
        let ring_memory = within(
            "ring_memory_mib",
            self.ring_memory_mib,
            RING_MEMORY_MIB,
            MIN_RING_MEMORY_MIB,
            MAX_RING_MEMORY_MIB,
        )?;
        Ok(Limits {
            enclaves: within(
                "max_enclaves",
                self.max_enclaves,
                DEFAULT_ENCLAVES,
                1,
                MAX_ENCLAVES,
            )?,
            flows,
            all_flows: OVERALL * flows,
            dials: within("max_dials", dials, MAX_DIALS, 1, MAX_FLOWS)?,
            dials_per_destination: within(
                "max_dials_per_destination",
                to_one,
                MAX_DIALS_PER_DESTINATION,
                1,
                MAX_FLOWS,
            )?,
            mappings: within(
                "max_udp_mappings",
                self.max_udp_mappings,
                MAX_UDP_MAPPINGS,
                1,
                MAX_FLOWS,
            )?,
            dns_queries: most("max_dns_queries", self.max_dns_queries, MAX_DNS_QUERIES)?,
            half_open: within(
                "max_half_open",
                self.max_half_open,
                MAX_HALF_OPEN,
                1,
                MAX_FLOWS,
            )?,
            ring_memory: ring_memory * 1024 * 1024,
        })
    }

    pub(super) fn read(path: &Path) -> anyhow::Result<File> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
        File::parse(path, &text)
    }

    pub(super) fn parse(path: &Path, text: &str) -> anyhow::Result<File> {
        toml::from_str(text).map_err(|error| {
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

pub(super) fn parse_key<T>(key: &str, text: &str) -> anyhow::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    text.parse().with_context(|| format!("key '{key}'"))
}
