//! Who may use which key: read once, from a file of the image.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::aws::KeyArn;
use crate::error::{Failure, What};
pub(super) use crate::kms::Context;

/// All tenants by their identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tenants(BTreeMap<String, Tenant>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tenant {
    keys: Vec<KeyArn>,
    context: Context,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    tenants: BTreeMap<String, RawTenant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTenant {
    keys: Vec<String>,
    encryption_context: Option<Context>,
}

impl Tenants {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(path: &Path) -> Result<Tenants, Failure> {
        let place = path.display();
        std::fs::read_to_string(path)
            .map_err(|error| error.to_string())
            .and_then(|text| Tenants::parse(&text))
            .map_err(|error| Failure::usage(format!("{place}: {error}")))
    }

    fn parse(text: &str) -> Result<Tenants, String> {
        let raw: Raw = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if raw.tenants.is_empty() {
            return Err("tenants is empty: nobody could use the service".to_owned());
        }
        let tenants = raw.tenants.into_iter().map(|(id, tenant)| {
            if tenant.keys.is_empty() {
                return Err(format!("tenant {id:?} has no keys"));
            }
            let keys = tenant.keys.iter().map(|key| key.parse());
            let keys = keys
                .collect::<Result<_, _>>()
                .map_err(|error: String| format!("tenant {id:?}: {error}"))?;
            // Bound by default: otherwise what one tenant encrypted opens for another that shares
            // its key.
            let bound = || Context::from([("tenant_id".to_owned(), id.clone())]);
            let context = tenant.encryption_context.unwrap_or_else(bound);
            Ok((id, Tenant { keys, context }))
        });
        tenants.collect::<Result<_, _>>().map(Tenants)
    }

    /// The regions of all keys.
    pub(super) fn regions(&self) -> BTreeSet<String> {
        let keys = self.0.values().flat_map(|tenant| &tenant.keys);
        keys.map(|key| key.region().to_owned()).collect()
    }

    /// The key and the context for a tenant's request. Without a key the tenant's only one is meant.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn key<'a>(
        &'a self,
        tenant: Option<&str>,
        key: Option<&str>,
    ) -> Result<(&'a KeyArn, &'a Context), Failure> {
        let id = tenant.ok_or_else(|| Failure::usage("tenant_id is missing"))?;
        let tenant = (self.0.get(id))
            .ok_or_else(|| Failure::new(What::Permission, format!("there is no tenant {id:?}")))?;
        let found = match (key, tenant.keys.as_slice()) {
            (None, [only]) => only,
            (None, _) => {
                let why = "kms_key_arn is missing, and this tenant has several keys";
                return Err(Failure::usage(why));
            }
            (Some(key), keys) => keys.iter().find(|own| own.as_str() == key).ok_or_else(|| {
                let why = format!("tenant {id:?} may not use the key {key:?}");
                Failure::new(What::Permission, why)
            })?,
        };
        Ok((found, &tenant.context))
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
    use super::*;

    pub(in super::super) const ONE: &str = "arn:aws:kms:eu-west-1:111122223333:key/one";
    pub(in super::super) const TWO: &str = "arn:aws:kms:eu-west-1:111122223333:key/two";

    pub(in super::super) fn tenants() -> Tenants {
        let text = format!(
            r#"{{"tenants": {{
                "acme": {{"keys": ["{ONE}"]}},
                "both": {{"keys": ["{ONE}", "{TWO}"], "encryption_context": {{"purpose": "x"}}}}
            }}}}"#
        );
        Tenants::parse(&text).unwrap()
    }

    #[test]
    fn tenants_have_their_own_keys() {
        let tenants = tenants();
        let (key, context) = tenants.key(Some("acme"), None).unwrap();
        assert_eq!(key.as_str(), ONE);
        assert_eq!(
            *context,
            Context::from([("tenant_id".into(), "acme".into())])
        );
        let (key, context) = tenants.key(Some("both"), Some(TWO)).unwrap();
        assert_eq!(key.as_str(), TWO);
        assert_eq!(*context, Context::from([("purpose".into(), "x".into())]));

        let what = |tenant, key| tenants.key(tenant, key).unwrap_err().what;
        assert_eq!(what(Some("acme"), Some(TWO)), What::Permission);
        assert_eq!(what(Some("other"), Some(ONE)), What::Permission);
        assert_eq!(what(None, Some(ONE)), What::Usage);
        assert_eq!(what(Some("both"), None), What::Usage);
    }

    #[test]
    fn what_is_wrong_in_the_file_is_named() {
        for (text, named) in [
            ("{}", "missing field `tenants`"),
            (r#"{"tenants": {}}"#, "empty"),
            (r#"{"tenants": {"a": {"keys": []}}}"#, "\"a\" has no keys"),
            (
                r#"{"tenants": {"a": {"keys": ["alias/x"]}}}"#,
                "\"alias/x\" is no key ARN",
            ),
            (
                r#"{"tenants": {"a": {"keys": ["arn:aws:kms:eu-west-1:111122223333:alias/x"]}}}"#,
                "is no key ARN",
            ),
            (r#"{"tenants": {"a": {"keys": ["x"], "kyes": []}}}"#, "kyes"),
        ] {
            let error = Tenants::parse(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
