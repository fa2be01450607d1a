//! What the AWS services here share: the SDK's settings, which key is meant, and what failed when a
//! call failed.

mod failure;
mod key;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};

use crate::error::Failure;
use crate::limits::aws as limits;

pub use failure::failure;
pub use key::KeyArn;

/// Region, credentials and endpoints by the SDK's default chain; this region, if one is given.
///
/// # Errors
/// Without a region.
pub async fn settings(region: Option<String>) -> Result<SdkConfig, Failure> {
    let timeouts = TimeoutConfig::builder()
        .operation_attempt_timeout(limits::ATTEMPT)
        .operation_timeout(limits::CALL)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts);
    if let Some(region) = region {
        loader = loader.region(Region::new(region));
    }
    let settings = loader.load().await;
    if settings.region().is_none() {
        return Err(Failure::usage(
            "no region: set AWS_REGION, or give --region",
        ));
    }
    Ok(settings)
}
