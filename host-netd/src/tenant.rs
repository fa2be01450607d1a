//! Which rules and published ports hold for which enclave.
//!
//! An enclave with a table in the configuration is a tenant of its own: its rules, its published
//! ports and its place are for its CID and no other. All enclaves without a table together are one
//! more tenant, whose published ports lead to the one of them that came last.

use crate::listen::Peer;
use crate::publish::{Publish, Published};
use netd_proto::address::Cid;
use netd_proto::policy::Policy;
use std::fmt;
use std::sync::Arc;

/// What an operator sets for one enclave, or for all that have no table of their own.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Which destinations it reaches.
    pub policy: Policy,
    /// Ports of the parent that lead to it.
    pub publish: Vec<Publish>,
}

/// An enclave with a table, or all enclaves without.
#[derive(Debug)]
pub struct Tenant {
    cid: Option<Cid>,
    policy: Policy,
    published: Published,
}

impl Tenant {
    fn bind(cid: Option<Cid>, terms: &Terms) -> anyhow::Result<Arc<Tenant>> {
        let tenant = Tenant {
            cid,
            policy: terms.policy.clone(),
            published: Published::bind(&terms.publish)?,
        };
        for port in &terms.publish {
            tracing::info!(%port, leads_to = %tenant, "published");
        }
        Ok(Arc::new(tenant))
    }

    /// Whether it is the enclave of a table, for which a place is kept.
    pub(crate) fn has_table(&self) -> bool {
        self.cid.is_some()
    }

    /// The operator's rules.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Ports of the parent that lead there.
    pub(crate) fn published(&self) -> &Published {
        &self.published
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cid {
            Some(cid) => write!(f, "CID {cid}"),
            None => f.write_str("the enclave that came last"),
        }
    }
}

/// All tenants. There are few: they are looked through when a link comes.
#[derive(Debug)]
pub struct Tenants {
    with_table: Vec<Arc<Tenant>>,
    others: Arc<Tenant>,
}

impl Tenants {
    /// Binds the published ports of all, those without a table first.
    ///
    /// # Errors
    /// As [`Published::bind`].
    pub fn bind<'a>(
        others: &Terms,
        with_table: impl Iterator<Item = (Cid, &'a Terms)>,
    ) -> anyhow::Result<Tenants> {
        let others = Tenant::bind(None, others)?;
        let with_table = with_table
            .map(|(cid, terms)| Tenant::bind(Some(cid), terms))
            .collect::<anyhow::Result<_>>()?;
        Ok(Tenants { with_table, others })
    }

    /// The one that a peer belongs to.
    pub(crate) fn of(&self, peer: Peer) -> &Arc<Tenant> {
        let own = match peer {
            Peer::Enclave(cid) => self.with_table.iter().find(|t| t.cid == Some(cid)),
            Peer::Unix => None,
        };
        own.unwrap_or(&self.others)
    }

    /// Every one.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.with_table.iter().chain([&self.others])
    }

    /// How many files their published ports are.
    pub fn files(&self) -> usize {
        self.all().map(|tenant| tenant.published.files()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_belongs_to_its_table_or_to_those_without() {
        let terms = |rule: &str| Terms {
            policy: Policy::new(vec![rule.parse().expect("valid")]),
            publish: vec![],
        };
        let (first, second) = (terms("deny 192.0.2.16"), terms("deny 192.0.2.17"));
        let with_table = [(Cid(16), &first), (Cid(17), &second)];
        let tenants =
            Tenants::bind(&terms("deny 192.0.2.0"), with_table.into_iter()).expect("no ports");

        let rule_of = |peer| tenants.of(peer).policy().rules()[0].to_string();

        assert_eq!(rule_of(Peer::Enclave(Cid(16))), "deny 192.0.2.16/32");
        assert_eq!(rule_of(Peer::Enclave(Cid(17))), "deny 192.0.2.17/32");
        for other in [Peer::Unix, Peer::Enclave(Cid(18))] {
            assert_eq!(rule_of(other), "deny 192.0.2.0/32");
        }
    }
}
