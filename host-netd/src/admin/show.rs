//! The status as a table.

use super::protocol::{Enclave, Status};
use std::fmt::Write;

const HEAD: [&str; 9] = [
    "CID", "STATE", "UPTIME", "LINK", "FLOWS", "OPENED", "FROM", "TO", "EXIT",
];

/// A row for each enclave, and below it what has no fixed length; each line cut to `width`.
pub(super) fn table(status: &Status, width: usize) -> String {
    if status.enclaves.is_empty() {
        return cut("no enclave has connected yet", width);
    }
    let rows: Vec<_> = status.enclaves.iter().map(row).collect();
    let mut widths = HEAD.map(str::len);
    for row in &rows {
        for (most, cell) in widths.iter_mut().zip(row) {
            *most = (*most).max(cell.chars().count());
        }
    }
    let line = |cells: &[&str]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        cut(&line, width)
    };
    let mut table = line(&HEAD);
    for (enclave, row) in status.enclaves.iter().zip(&rows) {
        table += &line(&row.each_ref().map(String::as_str));
        for below in below(enclave) {
            table += &cut(&format!("    {below}"), width);
        }
    }
    table
}

fn row(enclave: &Enclave) -> [String; 9] {
    let figures = &enclave.figures;
    let exit = enclave.exit.as_ref().map(|exit| exit.status.to_string());
    [
        enclave.cid.to_string(),
        if enclave.connected {
            "connected"
        } else {
            "gone"
        }
        .to_owned(),
        duration(enclave.uptime),
        enclave.link.features.clone(),
        figures.flows.to_string(),
        figures.flows_opened.to_string(),
        bytes(figures.from_enclave.bytes),
        bytes(figures.to_enclave.bytes),
        exit.unwrap_or_else(|| "-".to_owned()),
    ]
}

fn below(enclave: &Enclave) -> Vec<String> {
    let mut lines = vec![];
    let figures = &enclave.figures;
    if figures.late {
        let seconds = figures.age_ms.div_ceil(1000);
        lines.push(format!(
            "figures are {seconds} s old: the session's thread does not answer"
        ));
    }
    if let Some(gone) = &enclave.gone {
        lines.push(format!(
            "gone:  {} {} (session {})",
            gone.at, gone.why, enclave.session
        ));
    }
    if let Some(exit) = &enclave.exit {
        lines.push(format!("exit:  {}", exit.text));
    }
    if !figures.drops.is_empty() {
        let drops: Vec<_> = figures
            .drops
            .iter()
            .map(|(name, n)| format!("{name}={n}"))
            .collect();
        lines.push(format!("drops: {}", drops.join(" ")));
    }
    if let Some(last) = &enclave.log.last {
        let (time, source, text) = (&last.time, &last.source, &last.text);
        lines.push(format!("log:   {time} {source} {text}"));
    }
    if enclave.log.lost > 0 {
        lines.push(format!("log:   {} lines were lost", enclave.log.lost));
    }
    lines
}

/// One line of at most `width` columns, and its end. What it holds was written by others: nothing in
/// it moves a terminal's cursor.
fn cut(line: &str, width: usize) -> String {
    let shown = line
        .trim_end()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    shown.take(width).chain(['\n']).collect()
}

fn duration(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m{rest}s"),
        (0, ..) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog2() / 10).min(4);
    // A tenth is enough to see, and integers do not round up to 1024.0.
    let tenths = (u128::from(bytes) * 10) >> (10 * power);
    format!(
        "{}.{} {}",
        tenths / 10,
        tenths % 10,
        units[power as usize - 1]
    )
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{Exit, Figures, Gone, Line, Link, Log, Name};
    use super::*;

    fn enclave(cid: Name) -> Enclave {
        Enclave {
            cid,
            session: "01020304".into(),
            connected: true,
            since: "2026-01-02T03:04:05.678Z".into(),
            uptime: 3725,
            gone: None,
            link: Link {
                features: "checksum+log".into(),
                ..Link::default()
            },
            figures: Figures {
                flows: 3,
                flows_opened: 1234,
                ..Figures::default()
            },
            log: Log::default(),
            exit: None,
        }
    }

    #[test]
    fn columns_are_aligned_and_details_follow_their_row() {
        let mut live = enclave(Name::Cid(16));
        live.figures.drops.insert("link_full".into(), 2);
        live.figures.late = true;
        live.figures.age_ms = 2500;
        let mut gone = enclave(Name::Unix);
        gone.connected = false;
        gone.gone = Some(Gone {
            at: "T".into(),
            why: "the enclave closed the link".into(),
        });
        gone.exit = Some(Exit {
            status: 7,
            text: "exit status 7".into(),
        });
        gone.log.last = Some(Line {
            source: "stdout".into(),
            time: "T".into(),
            text: "bye\tall".into(),
            ..Line::default()
        });
        let status = Status {
            version: String::new(),
            enclaves: vec![live, gone],
        };

        let expected = "\
CID   STATE      UPTIME  LINK          FLOWS  OPENED  FROM  TO   EXIT
16    connected  1h2m    checksum+log  3      1234    0 B   0 B  -
    figures are 3 s old: the session's thread does not answer
    drops: link_full=2
unix  gone       1h2m    checksum+log  3      1234    0 B   0 B  7
    gone:  T the enclave closed the link (session 01020304)
    exit:  exit status 7
    log:   T stdout bye all
";
        assert_eq!(table(&status, usize::MAX), expected);
        for line in table(&status, 30).lines() {
            assert!(line.chars().count() <= 30, "{line}");
        }
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 30, u64::MAX].map(bytes);
        assert_eq!(
            shown,
            [
                "0 B",
                "1023 B",
                "1.0 KiB",
                "1.5 KiB",
                "1023.9 KiB",
                "1.0 GiB",
                "16777215.9 TiB"
            ]
        );
        let shown = [59, 60, 3599, 3600, 86_399, 86_400].map(duration);
        assert_eq!(shown, ["59s", "1m0s", "59m59s", "1h0m", "23h59m", "1d0h"]);
    }
}
