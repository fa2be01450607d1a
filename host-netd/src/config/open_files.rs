//! How the limit of open files is shared out.

use crate::budget::Limits;
use crate::limits::{DNS_FILES, RESERVED_FILES, SESSION_FILES};
use anyhow::{Context, bail};

/// What the limit of open files leaves room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Files {
    /// Flows of all enclaves together.
    pub flows: usize,
    /// Queries to name servers.
    pub dns: usize,
}

impl Files {
    /// Raises the soft limit of open files to the hard one, and shares it out. `published` are the
    /// sockets of published ports.
    ///
    /// # Errors
    /// The limit cannot be read, or is too low for any flow.
    pub fn of_process(limits: &Limits, published: usize) -> anyhow::Result<Files> {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (soft, hard) =
            getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
        let files = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard,
            Err(_) => soft,
        };
        Files::within(
            usize::try_from(files).unwrap_or(usize::MAX),
            limits,
            published,
        )
    }

    fn within(files: usize, limits: &Limits, published: usize) -> anyhow::Result<Files> {
        let reserved = RESERVED_FILES + SESSION_FILES * limits.enclaves + published;
        // Room for one flow of each enclave.
        let least = reserved + 2 * DNS_FILES * limits.enclaves;
        if files < least {
            bail!(
                "the limit of open files is {files}: raise it to {least} at least (ulimit -n, LimitNOFILE=)"
            );
        }
        let left = files - reserved;
        let dns = left / DNS_FILES;
        let flows = (left - dns).min(limits.all_flows);
        if flows < limits.flows {
            tracing::warn!(
                files,
                flows,
                wanted = limits.flows,
                "the limit of open files bounds the flows: raise it (ulimit -n, LimitNOFILE=)"
            );
        }
        Ok(Files { flows, dns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::OVERALL;

    #[test]
    fn files_are_shared_out_and_flows_of_all_enclaves_stay_below_the_limit() {
        let limits = Limits {
            flows: 1000,
            all_flows: OVERALL * 1000,
            ..Limits::DEFAULT
        };
        let plenty = Files::within(1 << 20, &limits, 2).expect("enough");
        assert_eq!(plenty.flows, OVERALL * 1000);

        let scarce = Files::within(300, &limits, 2).expect("enough");
        assert!(scarce.flows > 100 && scarce.dns > 10, "{scarce:?}");
        let used = scarce.flows + scarce.dns + RESERVED_FILES + 4 * SESSION_FILES + 2;
        assert_eq!(used, 300);

        let error = Files::within(100, &limits, 2).expect_err("too few");
        assert!(error.to_string().contains("LimitNOFILE"), "{error}");
    }
}
