//! What the program says about its work: on standard error, as `ENCLAVE_APP_LOG` asks.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// Libraries that log requests and answers as they are, secrets with them: of these errors alone,
/// whatever is asked for.
const TALKATIVE: [&str; 4] = ["aws_", "h2", "hyper", "rustls"];

/// Starts to log. Once in a process.
pub fn start() {
    let chosen =
        EnvFilter::try_from_env("ENCLAVE_APP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let discreet = filter_fn(|what| is_discreet(what.target(), *what.level()));
    tracing_subscriber::registry()
        .with(chosen)
        .with(discreet)
        .with(
            fmt::layer()
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr),
        )
        .init();
}

fn is_discreet(target: &str, level: Level) -> bool {
    level == Level::ERROR || !TALKATIVE.iter().any(|name| target.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_log_answers_are_silent_below_errors() {
        let orchestrator = "aws_smithy_runtime::client::orchestrator";
        assert!(!is_discreet(orchestrator, Level::WARN));
        assert!(!is_discreet("hyper_util::client", Level::TRACE));
        assert!(is_discreet(orchestrator, Level::ERROR));
        assert!(is_discreet("enclave_app::kms", Level::TRACE));
    }
}
