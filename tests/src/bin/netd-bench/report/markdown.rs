//! The table, for people.

use super::Report;
use crate::measure::{METRICS, Metric};
use crate::subject::OURS;
use crate::targets::{TARGETS, Target};
use std::fmt::Write;

/// Whom ours is put in a ratio to.
const RATIOS: [&str; 3] = ["direct", "slirp4netns", "pasta"];

pub(super) fn render(report: &Report<'_>) -> String {
    let mut text = String::new();
    write_all(&mut text, report).expect("a String takes all");
    text
}

fn write_all(text: &mut String, report: &Report<'_>) -> std::fmt::Result {
    let Report { facts, results, .. } = report;
    writeln!(
        text,
        "Medians of {} repeats of {} s, all in one run, subjects in turns. {}, {} cores, {:.0} GiB, \
         Linux {}.\n",
        report.repeats, report.seconds, facts.cpu, facts.cores, facts.memory_gib, facts.kernel
    )?;
    let mut rows = vec![header(report)];
    rows.extend(METRICS.iter().filter_map(|metric| row(report, metric)));
    write_table(text, &rows)?;
    if results.disturbed > 0 {
        writeln!(
            text,
            "\nOther programs were busy during {} of {} runs: values may be too bad.",
            results.disturbed, results.runs
        )?;
    }
    if !results.gaps.is_empty() {
        writeln!(text, "\nNot measured:\n")?;
        for gap in &results.gaps {
            writeln!(text, "- {} over {}: {}", gap.measure, gap.subject, gap.why)?;
        }
    }
    if !report.checks.is_empty() {
        writeln!(text, "\nChecked, every byte compared:\n")?;
        for check in report.checks {
            let outcome = match &check.failure {
                None => "ok".to_owned(),
                Some(why) => format!("**FAILED**: {why}"),
            };
            writeln!(text, "- {}: {outcome}", check.what)?;
        }
    }
    writeln!(text, "\nMade by `{}` with:\n", facts.command_line)?;
    for (tool, version) in &facts.tools {
        writeln!(text, "- {tool}: {version}")?;
    }
    Ok(())
}

fn ratios<'r>(report: &'r Report<'_>) -> impl Iterator<Item = &'static str> + 'r {
    let is_there = |name: &str| report.subjects.iter().any(|subject| subject == name);
    let both = move |name: &&str| is_there(OURS) && is_there(name);
    RATIOS.into_iter().filter(both)
}

fn header(report: &Report<'_>) -> Vec<String> {
    let mut cells = vec!["measure".to_owned(), "unit".to_owned()];
    cells.extend(report.subjects.iter().cloned());
    cells.extend(ratios(report).map(|name| format!("ours / {name}")));
    cells.push("target".to_owned());
    cells
}

/// Nothing if no subject has a value.
fn row(report: &Report<'_>, metric: &Metric) -> Option<Vec<String>> {
    let results = report.results;
    let median = |subject: &str| results.median(metric.key, subject);
    if !report
        .subjects
        .iter()
        .any(|subject| median(subject).is_some())
    {
        return None;
    }
    let mut cells = vec![metric.title.to_owned(), metric.unit.to_owned()];
    let subjects = report.subjects.iter();
    cells.extend(subjects.map(|subject| median(subject).map_or("-".to_owned(), number)));
    let ours = median(OURS);
    cells.extend(ratios(report).map(|name| match (ours, median(name)) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => number(ours / theirs),
        _ => "-".to_owned(),
    }));
    let is_there = |name: &str| report.subjects.iter().any(|subject| subject == name);
    let is_meant = |target: &&Target| {
        target.metric == metric.key && target.subjects().into_iter().all(is_there)
    };
    let targets = TARGETS.iter().filter(is_meant);
    let verdict = |target: &Target| {
        let outcome = match target.is_reached(results) {
            Some(true) => "ok",
            Some(false) => "**short**",
            None => "?",
        };
        format!("{}: {outcome}", target.text())
    };
    cells.push(targets.map(verdict).collect::<Vec<_>>().join("; "));
    Some(cells)
}

/// Three digits that count.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 9999.5 => with_commas(&format!("{value:.0}")),
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.095 => format!("{value:.2}"),
        v if v >= 0.00095 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

/// Thousands apart.
fn with_commas(digits: &str) -> String {
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Aligned, so that it can be read as text too.
fn write_table(text: &mut String, rows: &[Vec<String>]) -> std::fmt::Result {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    // Numbers stand to the right; the first two and the last columns are words.
    let is_number = |column: usize| column >= 2 && column + 1 < columns;
    for (number, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            match is_number(column) {
                true => write!(text, "| {cell:>width$} ")?,
                false => write!(text, "| {cell:<width$} ")?,
            }
        }
        writeln!(text, "|")?;
        if number == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let end = if is_number(column) { ':' } else { '-' };
                write!(text, "| {}{end} ", "-".repeat(width.saturating_sub(1)))?;
            }
            writeln!(text, "|")?;
        }
    }
    Ok(())
}
