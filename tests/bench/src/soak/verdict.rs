//! What a soak has to show, and whether it did.

use std::time::Duration;

use anyhow::Result;

use super::{
    ledger::{Ledger, Line},
    publish::{Published, topic},
    read::{Found, READER, SLOW},
    watch::Sample,
};
use crate::{metrics::counter, mqtt::Sequences};

/// Share of the time, and longest time, that does not count: caches fill.
const WARMUP: f64 = 0.25;
const LONGEST_WARMUP: Duration = Duration::from_secs(60);

/// What memory may gain from the first third to the last: a tenth, and some blocks that the allocator keeps.
const MEMORY_GAIN: f64 = 1.1;
const MEMORY_SLACK: u64 = 16 << 20;

/// Most that the directory takes while little waits: journals of about 200 MB, tables, and a compaction that holds old
/// and new ones.
const DISK: u64 = 512 << 20;

/// What the directory may gain from the first third to the last: a journal, which comes and goes as a whole.
const DISK_GAIN: u64 = 128 << 20;

/// Everything that is judged.
#[derive(Debug)]
pub(super) struct Evidence {
    pub(super) published: Published,
    pub(super) found: Found,
    pub(super) samples: Vec<Sample>,
    /// What the broker told under `/metrics` when all was quiet.
    pub(super) metrics: String,
    pub(super) ledger: Ledger,
}

/// One thing that a soak has to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) what: String,
    /// What has to be, and what was found.
    pub(super) promised: String,
    pub(super) found: String,
    pub(super) holds: bool,
}

impl Check {
    fn new(what: impl Into<String>, promised: impl ToString, found: impl ToString, holds: bool) -> Self {
        Self {
            what: what.into(),
            promised: promised.to_string(),
            found: found.to_string(),
            holds,
        }
    }

    fn equal<T: PartialEq + ToString>(what: impl Into<String>, promised: T, found: T) -> Self {
        let holds = promised == found;
        Self::new(what, promised, found, holds)
    }
}

/// Judges everything.
pub(super) fn checks(evidence: &Evidence) -> Result<Vec<Check>> {
    let mut checks = vec![memory(&evidence.samples)];
    checks.extend(disk(&evidence.samples));
    checks.extend(messages(evidence));
    checks.extend(counters(evidence)?);
    checks.extend(paths(evidence));
    checks.push(retained(evidence));
    Ok(checks)
}

/// The samples of the first and of the last third of the time after warming up.
fn thirds(samples: &[Sample]) -> [&[Sample]; 2] {
    let whole = samples.last().map_or(Duration::ZERO, |last| last.at);
    let warm = whole.mul_f64(WARMUP).min(LONGEST_WARMUP);
    let third = (whole - warm) / 3;
    let place = |time: Duration| samples.partition_point(|sample| sample.at < time);
    [
        &samples[place(warm)..place(warm + third)],
        &samples[place(whole - third)..],
    ]
}

fn memory(samples: &[Sample]) -> Check {
    let what = "memory of the last third, median; at most that of the first third, a tenth and 16 MiB";
    let median = |samples: &[Sample]| {
        let mut memory: Vec<u64> = samples.iter().map(|sample| sample.memory).collect();
        memory.sort_unstable();
        memory.get(memory.len() / 2).copied()
    };
    match thirds(samples).map(median) {
        [Some(first), Some(last)] => {
            let most = (first as f64 * MEMORY_GAIN) as u64 + MEMORY_SLACK;
            Check::new(what, format!("at most {}", mib(most)), mib(last), last <= most)
        }
        _ => Check::new(what, "samples", "none", false),
    }
}

fn disk(samples: &[Sample]) -> [Check; 2] {
    let [first, last] = thirds(samples).map(|samples| samples.iter().map(|sample| sample.disk).max());
    let most = samples.iter().map(|sample| sample.disk).max().unwrap_or(0);
    let (first, last) = (first.unwrap_or(0), last.unwrap_or(u64::MAX));
    let bound = first + DISK_GAIN;
    [
        Check::new(
            "the store's directory",
            format!("at most {}", mib(DISK)),
            mib(most),
            most <= DISK,
        ),
        Check::new(
            "the store's directory in the last third; at most that of the first third and 128 MiB",
            format!("at most {}", mib(bound)),
            mib(last),
            last <= bound,
        ),
    ]
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// What came of what was acknowledged.
fn messages(evidence: &Evidence) -> Vec<Check> {
    let Evidence { published, found, .. } = evidence;
    let sum = |group: &str, counts: &[u64], sequences: &Sequences| -> u64 {
        // Of each publisher alone: too many of one do not make up for too few of another.
        let come = |(client, count): (usize, &u64)| sequences.last(&topic(group, client)).min(*count);
        counts.iter().enumerate().map(come).sum()
    };
    let [quick, slow] = found.zero;
    vec![
        Check::equal(
            "messages at QoS 1 that were acknowledged, and came",
            published.one.iter().sum(),
            sum("one", &published.one, &found.one),
        ),
        Check::equal(
            "messages at QoS 2 that were acknowledged, and came",
            published.two.iter().sum(),
            sum("two", &published.two, &found.two),
        ),
        Check::equal("messages at QoS 2 that came twice", 0, found.two.repeated),
        Check::new(
            "messages to each of two readers at QoS 0",
            format!("at most {}", published.zero),
            quick.max(slow),
            quick.max(slow) <= published.zero,
        ),
        // A load that did not happen shows nothing.
        Check::new(
            "each kind of load was there",
            "some of each",
            format!(
                "{} at QoS 0, {} slow, {} sessions, {} times away, {} fleeting",
                published.zero, found.slow, found.sessions, found.away, found.fleeting
            ),
            [
                published.zero,
                published.slow,
                published.retained,
                quick,
                slow,
                found.slow,
                found.sessions,
                found.away,
                found.fleeting,
                found.retained,
            ]
            .iter()
            .chain(&published.one)
            .chain(&published.two)
            .all(|count| *count > 0),
        ),
    ]
}

/// What the broker itself counted.
fn counters(evidence: &Evidence) -> Result<Vec<Check>> {
    let Evidence { published, found, .. } = evidence;
    let count = |name: &str| counter(&evidence.metrics, &format!("foreshore_{name}_total"));
    let missed = (2 * published.zero).saturating_sub(found.zero.iter().sum());
    let dropped = count("broker_messages_dropped")?;
    Ok(vec![
        Check::equal(
            "messages that the broker received",
            published.sum(),
            count("broker_messages_received")?,
        ),
        Check::equal("publishes that it refused", 0, count("broker_publishes_refused")?),
        Check::equal(
            "connections that it refused",
            0,
            count("broker_connections_refused")?,
        ),
        Check::equal(
            "faults of its own",
            0,
            count("broker_connection_panics")? + count("task_panics")?,
        ),
        Check::new(
            "messages at QoS 0 that did not arrive are counted as dropped",
            format!("at least {missed}"),
            dropped,
            dropped >= missed,
        ),
    ])
}

/// The ledger of every path.
fn paths(evidence: &Evidence) -> Vec<Check> {
    let Evidence {
        published,
        found,
        ledger,
        ..
    } = evidence;
    let [reader, slow] = [READER, SLOW].map(|client| format!("session/{client}"));
    let mut checks: Vec<Check> = ledger
        .lines
        .iter()
        .chain([&ledger.of_ended])
        .map(|line| {
            let told = format!("{line:?}");
            Check::new(
                format!("ledger of {}", line.path),
                "received = delivered + waiting + dead-lettered + dropped, and what waits is there",
                told,
                line.balances(),
            )
        })
        .collect();
    let names: Vec<&str> = ledger.lines.iter().map(|line| line.path.as_str()).collect();
    let whole = published.for_the_reader();
    checks.push(Check::equal(
        "paths that are left",
        format!("{reader}, {slow}"),
        names.join(", "),
    ));
    checks.push(Check::equal("sessions that ended", found.sessions, ledger.ended));
    checks.push(Check::equal(
        format!("{reader}: received, delivered, otherwise left"),
        format!("{whole}, {whole}, 0"),
        told(ledger.line(&reader), |line| {
            let other = line.waiting + line.dead_lettered + line.dropped;
            format!("{}, {}, {other}", line.received, line.delivered)
        }),
    ));
    checks.push(Check::equal(
        format!("{slow}: received"),
        published.slow.to_string(),
        told(ledger.line(&slow), |line| line.received.to_string()),
    ));
    checks.push(Check::new(
        "the store was closed in order",
        "yes",
        ledger.clean,
        ledger.clean,
    ));
    checks
}

fn told(line: Option<&Line>, text: impl Fn(&Line) -> String) -> String {
    line.map_or_else(|| "no such path".to_owned(), text)
}

fn retained(evidence: &Evidence) -> Check {
    let mut expected: Vec<(String, u64)> = evidence
        .published
        .left
        .iter()
        .enumerate()
        .filter_map(|(place, number)| Some((topic("retained", place), (*number)?)))
        .collect();
    expected.sort();
    let mut found = evidence.ledger.retained.clone();
    found.sort();
    let wrong = expected.iter().find(|message| !found.contains(message));
    let wrong = wrong.or_else(|| found.iter().find(|message| !expected.contains(message)));
    Check::new(
        "the last retained message of each topic, and no other",
        format!("{} messages", expected.len()),
        match wrong {
            None => format!("{} messages", found.len()),
            Some((topic, number)) => format!("{} messages, not alike: {topic} {number}", found.len()),
        },
        wrong.is_none(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something that makes a soak wrong.
    type Fault = fn(&mut Evidence);

    /// A soak in which everything is as it should be.
    fn fine() -> Evidence {
        let mut found = Found {
            zero: [7, 5],
            sessions: 3,
            fleeting: 1,
            retained: 2,
            slow: 3,
            away: 1,
            ..Found::default()
        };
        for number in 1..=2 {
            found.one.take(b"soak/one/0", number).unwrap();
            found.two.take(b"soak/two/0", number).unwrap();
        }
        let line = |path: &str, received: u64, delivered: u64, dropped: u64| Line {
            path: path.to_owned(),
            received,
            delivered,
            dropped,
            ..Line::default()
        };
        let second = |second: u64| Sample {
            at: Duration::from_secs(second),
            memory: 50 << 20,
            disk: 100 << 20,
        };
        Evidence {
            published: Published {
                one: vec![2],
                two: vec![2],
                zero: 7,
                slow: 5,
                retained: 2,
                left: vec![None, Some(1), Some(2)],
            },
            found,
            samples: (0..120).map(second).collect(),
            metrics: "foreshore_broker_messages_received_total 18\nforeshore_broker_publishes_refused_total 0\n\
                      foreshore_broker_connections_refused_total 0\nforeshore_broker_connection_panics_total 0\n\
                      foreshore_task_panics_total 0\nforeshore_broker_messages_dropped_total 2\n"
                .to_owned(),
            ledger: Ledger {
                lines: vec![line("session/soak-reader", 4, 4, 0), line("session/soak-slow", 5, 3, 2)],
                ended: 3,
                of_ended: line("session (ended)", 2, 1, 1),
                retained: vec![("soak/retained/2".to_owned(), 2), ("soak/retained/1".to_owned(), 1)],
                clean: true,
            },
        }
    }

    fn failed(evidence: &Evidence) -> Vec<String> {
        let checks = checks(evidence).unwrap().into_iter();
        checks
            .filter(|check| !check.holds)
            .map(|check| check.what)
            .collect()
    }

    #[test]
    fn what_is_as_it_should_be_passes() {
        assert_eq!(failed(&fine()), Vec::<String>::new());
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        let cases: [(Fault, &str); 15] = [
            (|soak| soak.samples.clear(), "memory of the last third"),
            (
                |soak| {
                    soak.samples[95..]
                        .iter_mut()
                        .for_each(|sample| sample.memory = 80 << 20)
                },
                "memory of the last third",
            ),
            (|soak| soak.samples[60].disk = 600 << 20, "the store's directory"),
            (
                |soak| soak.samples[100].disk = 300 << 20,
                "the store's directory in the last third",
            ),
            (
                |soak| soak.published.one[0] += 1,
                "messages at QoS 1 that were acknowledged",
            ),
            (
                |soak| soak.published.two[0] += 1,
                "messages at QoS 2 that were acknowledged",
            ),
            (
                |soak| soak.found.two.repeated = 1,
                "messages at QoS 2 that came twice",
            ),
            (|soak| soak.found.zero[0] += 1, "messages to each of two readers"),
            (|soak| soak.found.away = 0, "each kind of load"),
            (
                |soak| soak.metrics = soak.metrics.replace("refused_total 0", "refused_total 1"),
                "publishes that it refused",
            ),
            (
                |soak| soak.metrics = soak.metrics.replace("panics_total 0", "panics_total 1"),
                "faults of its own",
            ),
            (
                |soak| soak.found.zero[1] -= 1,
                "messages at QoS 0 that did not arrive",
            ),
            (
                |soak| soak.ledger.lines[1].dropped -= 1,
                "ledger of session/soak-slow",
            ),
            (|soak| soak.ledger.ended -= 1, "sessions that ended"),
            (|soak| soak.ledger.retained[0].1 -= 1, "the last retained message"),
        ];
        for (break_it, what) in cases {
            let mut soak = fine();
            break_it(&mut soak);
            let failed = failed(&soak);
            assert!(
                failed.iter().any(|failed| failed.starts_with(what)),
                "{what}: {failed:?}"
            );
        }
    }

    #[test]
    fn an_entry_that_is_not_where_it_waits_is_found() {
        let mut soak = fine();
        let reader = &mut soak.ledger.lines[0];
        (reader.delivered, reader.waiting, reader.present) = (3, 1, 0);
        let failed = failed(&soak);
        assert!(
            failed.contains(&"ledger of session/soak-reader".to_owned()),
            "{failed:?}"
        );
        assert!(
            failed.iter().any(|what| what.contains("otherwise left")),
            "{failed:?}"
        );
    }
}
