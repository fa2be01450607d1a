//! Where a run was made, and with what.

use serde::Serialize;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The machine and the tools.
#[derive(Debug, Serialize)]
pub(crate) struct Facts {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    /// Each tool's first words about itself.
    pub(crate) tools: Vec<(String, String)>,
    pub(crate) command_line: String,
}

impl Facts {
    /// Asks the kernel and the tools.
    pub(crate) fn gather(command_line: String, binaries: &Path) -> Facts {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let kilobytes = field(&read("/proc/meminfo"), "MemTotal");
        let kilobytes: f64 = kilobytes.trim_end_matches(" kB").parse().unwrap_or(0.0);
        let tools = [
            ("iperf3", "--version"),
            ("slirp4netns", "--version"),
            ("socat", "-V"),
            ("curl", "--version"),
            ("nginx", "-v"),
        ];
        let mut tools: Vec<_> = tools
            .iter()
            .map(|(tool, option)| ((*tool).to_owned(), version(tool, option)))
            .collect();
        for daemon in ["host-netd", "enclave-netd"] {
            let path = binaries.join(daemon).display().to_string();
            tools.push((daemon.to_owned(), version(&path, "--version")));
        }
        tools.push(("pasta".to_owned(), pasta_version()));
        Facts {
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kilobytes / (1024.0 * 1024.0),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            tools,
            command_line,
        }
    }
}

/// The line of a tool's output that has a digit in it.
fn version(tool: &str, option: &str) -> String {
    let Ok(output) = Command::new(tool).arg(option).output() else {
        return "not installed".to_owned();
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    let line = lines.find(|line| line.contains(|c: char| c.is_ascii_digit()));
    let line = line.unwrap_or("unknown").trim();
    let line = line.split_once(" (").map_or(line, |(before, _)| before);
    line.to_owned()
}

/// Debian's build does not know its own version; its package does.
fn pasta_version() -> String {
    let own = version("pasta", "--version");
    if !own.contains("unknown version") && own.starts_with("pasta") {
        return own;
    }
    let query = ["-W", "-f", "passt ${Version}", "passt"];
    match Command::new("dpkg-query").args(query).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        _ => own,
    }
}
