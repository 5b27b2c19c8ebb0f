//! The ledger for people: the sum, and the paths that need a look.

use std::fmt;

use foreshore_record::{DropReason, PathLedger};

/// What became of every record, below a status table. Nothing where no broker runs.
pub(crate) struct LedgerText<'a>(pub(crate) &'a [PathLedger]);

impl fmt::Display for LedgerText<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(paths) = self;
        if paths.is_empty() {
            return Ok(());
        }
        let sum = |count: fn(&PathLedger) -> u64| paths.iter().map(count).sum::<u64>();
        let unbalanced = paths.iter().filter(|path| !path.balances()).count();
        write!(
            formatter,
            "ledger of {} paths: {} received, {} delivered, {} waiting, {} filtered, {} dead, {} dropped; ",
            paths.len(),
            sum(|path| path.received),
            sum(|path| path.delivered),
            sum(|path| path.waiting),
            sum(meant),
            sum(|path| path.dead_lettered),
            sum(|path| path.dropped_total() - meant(path)),
        )?;
        match unbalanced {
            0 => writeln!(formatter, "it balances")?,
            some => writeln!(formatter, "{some} paths DO NOT BALANCE")?,
        }
        for path in paths.iter().filter(|path| needs_a_look(path)) {
            let dropped = path.dropped.iter().filter(|(reason, _)| !is_meant(reason));
            let dropped: Vec<_> = dropped
                .map(|(reason, count)| format!("{count} dropped by {reason}"))
                .collect();
            let mut notes = dropped;
            if path.dead_lettered > 0 {
                notes.push(format!("{} set aside as dead", path.dead_lettered));
            }
            if path.gaps > 0 {
                notes.push(format!("{} interruptions at the source", path.gaps));
            }
            if !path.balances() {
                notes.push(format!("{path:?} does not balance"));
            }
            writeln!(formatter, "    {}: {}", path.path, notes.join(", "))?;
        }
        Ok(())
    }
}

/// Whether a dataflow was declared to leave out what was dropped for a reason.
fn is_meant(reason: &str) -> bool {
    [DropReason::FILTERED, DropReason::ROUTED_ELSEWHERE]
        .iter()
        .any(|meant| meant.as_str() == reason)
}

/// Records that a dataflow was declared to leave out.
fn meant(path: &PathLedger) -> u64 {
    let dropped = path.dropped.iter().filter(|(reason, _)| is_meant(reason));
    dropped.map(|(_, count)| count).sum()
}

/// Whether something of a path was lost, or may have been.
fn needs_a_look(path: &PathLedger) -> bool {
    !path.balances() || path.dead_lettered > 0 || path.dropped_total() > meant(path) || path.gaps > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_needs_a_look_is_told_apart() {
        let well = PathLedger {
            path: "dataflow/plant/all->cloud".to_owned(),
            received: 10,
            delivered: 5,
            waiting: 3,
            dropped: [("filtered".to_owned(), 2)].into(),
            ..PathLedger::default()
        };
        let lossy = PathLedger {
            path: "dataflow/plant/some->cloud".to_owned(),
            received: 5,
            delivered: 2,
            dead_lettered: 1,
            dropped: [("expired".to_owned(), 2)].into(),
            ..PathLedger::default()
        };
        assert_eq!(
            LedgerText(&[well, lossy]).to_string(),
            "ledger of 2 paths: 15 received, 7 delivered, 3 waiting, 2 filtered, 1 dead, 2 dropped; it balances\n    \
             dataflow/plant/some->cloud: 2 dropped by expired, 1 set aside as dead\n"
        );
        assert_eq!(LedgerText(&[]).to_string(), "");
    }
}
