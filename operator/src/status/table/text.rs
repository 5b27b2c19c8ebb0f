//! A [`StatusTable`] for people.

use std::fmt::{self, Write as _};

use foreshore_crds::conditions::status as truth;
use jiff::Timestamp;

use super::{ObjectRow, PartRow, RoleRow, StatusTable, Summary};

impl fmt::Display for StatusTable {
    /// A line for each object, what is wrong with it below, then what is wrong with manifests and with roles.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            time,
            summary,
            objects,
            problems,
            roles,
            paths: _,
        } = self;
        let header = [
            "KIND",
            "NAMESPACE/NAME",
            "READY",
            "HEALTHY",
            "REASON",
            "RATE",
            "AGE",
        ]
        .map(ToOwned::to_owned);
        let rows: Vec<_> = objects.iter().map(|row| cells(row, *time)).collect();
        let mut widths = header.clone().map(|cell| cell.chars().count());
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        write_line(formatter, &header, &widths)?;
        for (row, cells) in objects.iter().zip(&rows) {
            write_line(formatter, cells, &widths)?;
            write_details(formatter, row)?;
        }
        if !problems.is_empty() {
            writeln!(formatter, "\nPROBLEMS")?;
            for problem in problems {
                writeln!(formatter, "  {problem}")?;
            }
        }
        let failing: Vec<_> = roles.iter().filter(|role| role.error.is_some()).collect();
        if !failing.is_empty() {
            writeln!(formatter, "\nROLES THAT FAIL")?;
            for RoleRow {
                role,
                restarts,
                error,
                ..
            } in failing
            {
                let error = error.as_deref().unwrap_or_default();
                writeln!(formatter, "  {role}: ended {restarts} times: {error}")?;
            }
        }
        let Summary {
            objects,
            ready,
            healthy,
            unhealthy,
            stalled,
            problems,
        } = summary;
        write!(
            formatter,
            "\n{objects} objects: {ready} ready, {healthy} healthy, {unhealthy} unhealthy, "
        )?;
        writeln!(formatter, "{stalled} stalled; {problems} problems in manifests")
    }
}

fn cells(row: &ObjectRow, now: Timestamp) -> [String; 7] {
    [
        row.kind.to_string(),
        format!("{}/{}", row.namespace, row.name),
        row.ready.clone(),
        row.healthy.clone().unwrap_or_else(|| "-".to_owned()),
        row.reason.clone(),
        rate(&row.parts),
        age(now, row.created),
    ]
}

/// The counter that grows fastest says what an object does.
fn rate(parts: &[PartRow]) -> String {
    let mut sums: std::collections::BTreeMap<&str, f64> = std::collections::BTreeMap::new();
    for (name, rate) in parts.iter().flat_map(|part| &part.rates) {
        *sums.entry(name).or_default() += rate;
    }
    let fastest = sums.into_iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
    match fastest {
        Some((name, rate)) if rate > 0.0 => format!("{rate:.1} {name}/s"),
        _ => "-".to_owned(),
    }
}

fn write_line(formatter: &mut fmt::Formatter<'_>, cells: &[String; 7], widths: &[usize; 7]) -> fmt::Result {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        write!(line, "{cell:<width$}  ")?;
    }
    writeln!(formatter, "{}", line.trim_end())
}

/// What is wrong with an object, the evidence and the next step.
fn write_details(formatter: &mut fmt::Formatter<'_>, row: &ObjectRow) -> fmt::Result {
    let well = row.ready == truth::TRUE && row.healthy.as_deref() != Some(truth::FALSE);
    if well {
        return Ok(());
    }
    let details = [
        (
            "",
            Some(row.message.as_str()).filter(|message| !message.is_empty()),
        ),
        ("evidence: ", row.evidence.as_deref()),
        ("next: ", row.next),
    ];
    for (label, text) in details {
        if let Some(text) = text {
            writeln!(formatter, "    {label}{}", text.replace('\n', " "))?;
        }
    }
    Ok(())
}

/// As kubectl shows it: the two largest units.
fn age(now: Timestamp, since: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}
