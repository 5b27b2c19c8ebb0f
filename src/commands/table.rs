//! Tables and numbers for people.

use std::fmt::Write as _;

/// Puts rows below their headings, each column as wide as it has to be. What came from a network can't control the
/// terminal.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| harmless(cell)).collect())
        .collect();
    let headings: Vec<String> = headings.iter().map(|&heading| heading.to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&headings]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut text = String::new();
    for row in [&headings].into_iter().chain(&rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a text does not fail.
            let _written = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A text without characters that a terminal obeys.
pub(crate) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A number of bytes.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value < 99.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A number of seconds, in the two units that tell most.
pub(crate) fn seconds(count: u64) -> String {
    let (minutes, hours, days) = (count / 60, count / 3600, count / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{count} s"),
        (0, 0, _) => format!("{minutes} min {} s", count % 60),
        (0, ..) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_have_to_be() {
        let rows = [["a", "1"], ["longer", "2"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["NAME", "N"], &rows), "NAME    N\na       1\nlonger  2\n");
    }

    #[test]
    fn a_name_can_not_control_the_terminal() {
        let rows = [vec!["\u{1b}[2Jü\n".to_owned()]];
        assert_eq!(table(&["X"], &rows), "X\n\\u{1b}[2Jü\\n\n");
    }

    #[test]
    fn numbers_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (123_456, "123 kB"),
            (999_999, "1.0 MB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (count, text) in [
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3661, "1 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(seconds(count), text);
        }
    }
}
