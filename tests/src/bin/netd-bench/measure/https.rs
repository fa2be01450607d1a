//! A download over HTTPS: nginx, TLS 1.3, curl, both ends' cryptography included.

use super::Values;
use crate::bed::Bed;
use crate::load::port;
use crate::subject::Subject;
use anyhow::{Context, bail};

/// curl's exit status when its time is over.
const TIME_IS_OVER: i32 = 28;
/// How much longer curl may take, in seconds.
const GRACE: u64 = 20;

/// Megabytes a second, over some seconds.
pub(super) fn download(bed: &Bed, subject: &Subject<'_>, seconds: u64) -> anyhow::Result<Values> {
    let name = Bed::HTTPS_NAME;
    let url = format!("https://{name}/big");
    let resolve = format!("{name}:{}:{}", port::HTTPS, subject.server());
    let time = seconds.to_string();
    let fixed = [
        "--silent",
        "--show-error",
        "--fail",
        "--output",
        "/dev/null",
    ];
    let format = ["--write-out", "%{speed_download}"];
    let place = ["--cacert", &bed.nginx.ca, "--resolve", &resolve];
    let rest = ["--max-time", &time, &url];
    let arguments = [&fixed[..], &format, &place, &rest].concat();
    let done = subject
        .machine()
        .run_within(seconds + GRACE, "curl", &arguments)
        .context("curl does not end")?;
    let speed: f64 = done.stdout.trim().parse().unwrap_or(0.0);
    if !(done.status.success() || done.status.code() == Some(TIME_IS_OVER)) || speed == 0.0 {
        bail!("{}", done.stderr.trim());
    }
    Ok(vec![("https", speed / 1e6)])
}
