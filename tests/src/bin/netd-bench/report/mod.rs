//! What a run leaves behind.

mod markdown;
mod svg;

use crate::check::Check;
use crate::machine_facts::Facts;
use crate::results::Results;
use crate::targets::TARGETS;
use std::fs;
use std::path::Path;

/// All that a report tells.
pub(crate) struct Report<'r> {
    pub(crate) facts: &'r Facts,
    /// In the order of the columns.
    pub(crate) subjects: &'r [String],
    pub(crate) results: &'r Results,
    /// Of `--check`.
    pub(crate) checks: &'r [Check],
    pub(crate) seconds: u64,
    pub(crate) repeats: usize,
}

impl Report<'_> {
    /// The table and what belongs to it.
    pub(crate) fn markdown(&self) -> String {
        markdown::render(self)
    }

    /// Writes all its forms into a folder.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("report.md"), self.markdown())?;
        fs::write(dir.join("report.svg"), svg::render(self))?;
        let targets = TARGETS.iter().map(|target| {
            serde_json::json!({
                "metric": target.metric,
                "target": target.text(),
                "reached": target.is_reached(self.results),
            })
        });
        let json = serde_json::json!({
            "machine": self.facts,
            "seconds": self.seconds,
            "repeats": self.repeats,
            "subjects": self.subjects,
            "metrics": crate::measure::METRICS,
            "targets": targets.collect::<Vec<_>>(),
            "samples": self.results.samples,
            "runs": self.results.runs,
            "disturbed_runs": self.results.disturbed,
            "gaps": self.results.gaps,
            "checks": self.checks,
        });
        let json = serde_json::to_string_pretty(&json)?;
        fs::write(dir.join("report.json"), json + "\n")?;
        Ok(())
    }
}
