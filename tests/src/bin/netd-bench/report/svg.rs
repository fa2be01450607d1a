//! The picture: one panel a unit, one group of bars a metric, one colour a subject.
//!
//! Written by hand: bars, lines and words are all there is. Every bar carries its value, because
//! the subjects differ by more than an axis shows.

use super::Report;
use super::markdown::number;
use std::fmt::Write;

/// A panel: its title, and its groups' metrics and labels.
struct Panel {
    title: &'static str,
    groups: &'static [(&'static str, &'static str)],
}

const PANELS: &[Panel] = &[
    Panel {
        title: "TCP throughput, Gbit/s (more is better)",
        groups: &[
            ("tcp1_up", "1 up"),
            ("tcp1_down", "1 down"),
            ("tcp8_up", "8 up"),
            ("tcp8_down", "8 down"),
            ("tcp64_up", "64 up"),
            ("tcp64_down", "64 down"),
            ("bidir_up", "both: up"),
            ("bidir_down", "both: down"),
        ],
    },
    Panel {
        title: "TCP, 1 stream over a long or lossy way, Gbit/s (more is better)",
        groups: &[
            ("delay_up", "20 ms, up"),
            ("delay_down", "20 ms, down"),
            ("loss_up", "0.1 % loss, up"),
            ("loss_down", "0.1 % loss, down"),
        ],
    },
    Panel {
        title: "Round trip, p50, µs (less is better)",
        groups: &[
            ("rr_p50", "idle"),
            ("rr_bulk_p50", "beside 4+4 streams"),
            ("flows15000_among", "among 15,000 flows"),
        ],
    },
    Panel {
        title: "Connect-request-close, 1/s (more is better)",
        groups: &[("crr_1", "one after another"), ("crr_8", "8 at once")],
    },
    Panel {
        title: "UDP delivered of 200,000/s, 1/s (more is better)",
        groups: &[
            ("udp64_up", "64 B up"),
            ("udp64_down", "64 B down"),
            ("udp1400_up", "1,400 B up"),
            ("udp1400_down", "1,400 B down"),
        ],
    },
    Panel {
        title: "HTTPS download, MB/s (more is better)",
        groups: &[("https", "curl from nginx")],
    },
    Panel {
        title: "CPU of the tunnel, s/Gbit (less is better)",
        groups: &[("cpu_up", "1 stream up"), ("cpu_down", "1 stream down")],
    },
    Panel {
        title: "Resident memory of an idle flow, KiB (less is better)",
        groups: &[
            ("flows1000_rss", "1,000 flows"),
            ("flows5000_rss", "5,000 flows"),
            ("flows15000_rss", "15,000 flows"),
        ],
    },
];

/// Told apart with weak colour vision too; the second is ours.
const COLOURS: [&str; 8] = [
    "#8c8c8c", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442",
];
const WIDTH: f64 = 960.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
/// A panel with its title and its labels, and the bars in it.
const PANEL: f64 = 240.0;
const BARS: f64 = 150.0;
const TOP: f64 = 70.0;
/// No bar is wider.
const WIDEST: f64 = 46.0;
const TICKS: u8 = 4;

pub(super) fn render(report: &Report<'_>) -> String {
    let mut picture = Picture {
        text: String::new(),
        report,
    };
    picture.all().expect("a String takes all");
    picture.text
}

struct Picture<'r> {
    text: String,
    report: &'r Report<'r>,
}

impl Picture<'_> {
    fn all(&mut self) -> std::fmt::Result {
        let has_values = |panel: &&Panel| {
            let mut groups = panel.groups.iter();
            groups.any(|(metric, _)| self.values(metric).iter().any(Option::is_some))
        };
        let panels: Vec<&Panel> = PANELS.iter().filter(has_values).collect();
        let height = TOP + PANEL * panels.len() as f64;
        writeln!(
            self.text,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="100%" height="100%" fill="#fff"/>"##
        )?;
        let facts = self.report.facts;
        let title = format!(
            "Medians of {} repeats of {} s; {}, {} cores, Linux {}",
            self.report.repeats, self.report.seconds, facts.cpu, facts.cores, facts.kernel
        );
        self.word(LEFT, 24.0, "start", &title)?;
        self.legend()?;
        for (number, panel) in panels.into_iter().enumerate() {
            self.panel(panel, TOP + PANEL * number as f64)?;
        }
        writeln!(self.text, "</svg>")
    }

    /// The medians of a metric, in the order of the subjects.
    fn values(&self, metric: &str) -> Vec<Option<f64>> {
        let subjects = self.report.subjects.iter();
        let median = |subject: &String| self.report.results.median(metric, subject);
        subjects.map(median).collect()
    }

    fn legend(&mut self) -> std::fmt::Result {
        let mut x = LEFT;
        for (subject, colour) in self.report.subjects.iter().zip(COLOURS.iter().cycle()) {
            writeln!(
                self.text,
                r#"<rect x="{x}" y="38" width="12" height="12" fill="{colour}"/>"#
            )?;
            self.word(x + 18.0, 48.0, "start", subject)?;
            x += 40.0 + 7.5 * subject.len() as f64;
        }
        Ok(())
    }

    fn panel(&mut self, panel: &Panel, top: f64) -> std::fmt::Result {
        let groups: Vec<_> = panel
            .groups
            .iter()
            .map(|(metric, label)| (self.values(metric), *label))
            .filter(|(values, _)| values.iter().any(Option::is_some))
            .collect();
        let all = groups.iter().flat_map(|(values, _)| values).flatten();
        let most = ceiling(all.copied().fold(0.0, f64::max));
        let (first, floor) = (top + 36.0, top + 36.0 + BARS);
        writeln!(
            self.text,
            r#"<text x="{LEFT}" y="{}" font-size="14" font-weight="bold">{}</text>"#,
            top + 18.0,
            escaped(panel.title)
        )?;
        for tick in 0..=TICKS {
            let part = f64::from(tick) / f64::from(TICKS);
            let y = floor - BARS * part;
            writeln!(
                self.text,
                r##"<line x1="{LEFT}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="#ddd"/>"##,
                WIDTH - RIGHT
            )?;
            self.word(LEFT - 6.0, y + 4.0, "end", &number(most * part))?;
        }
        let each = (WIDTH - LEFT - RIGHT) / groups.len() as f64;
        for (place, (values, label)) in groups.iter().enumerate() {
            let middle = LEFT + each * (place as f64 + 0.5);
            let bar = (each * 0.86 / values.len() as f64).min(WIDEST);
            let mut x = middle - bar * values.len() as f64 / 2.0;
            for (value, colour) in values.iter().zip(COLOURS.iter().cycle()) {
                self.bar(x, bar, first, floor, *value, most, colour)?;
                x += bar;
            }
            self.word(middle, floor + 18.0, "middle", label)?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "a place, a size and a value")]
    fn bar(
        &mut self,
        x: f64,
        width: f64,
        first: f64,
        floor: f64,
        value: Option<f64>,
        most: f64,
        colour: &str,
    ) -> std::fmt::Result {
        let middle = x + width / 2.0;
        let Some(value) = value else {
            return self.small(middle, floor - 3.0, "–");
        };
        let height = (floor - first) * value / most;
        let y = floor - height;
        writeln!(
            self.text,
            r#"<rect x="{:.1}" y="{y:.1}" width="{:.1}" height="{height:.1}" fill="{colour}"/>"#,
            x + 1.0,
            width - 2.0
        )?;
        self.small(middle, y - 3.0, &number(value))
    }

    fn word(&mut self, x: f64, y: f64, anchor: &str, word: &str) -> std::fmt::Result {
        let word = escaped(word);
        writeln!(
            self.text,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{word}</text>"#
        )
    }

    fn small(&mut self, x: f64, y: f64, word: &str) -> std::fmt::Result {
        writeln!(
            self.text,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="middle" font-size="9">{word}</text>"#
        )
    }
}

/// The end of an axis: the next of 1, 2, 4 or 8 times a power of ten, at which ticks are round.
fn ceiling(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(most.log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0];
    let step = steps.into_iter().find(|step| step * power >= most);
    step.unwrap_or(10.0) * power
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
