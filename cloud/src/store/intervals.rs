//! Which entries of a path are done: a set of ids for each epoch of the edge's store, kept as intervals that neither
//! overlap nor touch. Entries leave their queue nearly in order, so a set is a handful of rows however many ids it
//! holds.

use foreshore_record::Interval;
use rusqlite::{Connection, OptionalExtension, params};

use super::StoreError;

/// The part of a set that a batch is about: intervals that overlap or touch those that it settles.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Done(Vec<Interval>);

impl Done {
    /// Reads what the set holds around `interval`, and a neighbour on each side if it touches.
    pub(super) fn around(connection: &Connection, path: i64, interval: Interval) -> Result<Self, StoreError> {
        let Interval {
            store_epoch,
            first,
            last,
        } = interval;
        let (epoch, first, last) = (store_epoch.cast_signed(), first.cast_signed(), last.cast_signed());
        let row = |row: &rusqlite::Row<'_>| {
            Ok(Interval {
                store_epoch,
                first: row.get::<_, i64>(0)?.cast_unsigned(),
                last: row.get::<_, i64>(1)?.cast_unsigned(),
            })
        };
        let before = connection
            .prepare_cached(
                "SELECT first, last FROM intervals WHERE path = ?1 AND store_epoch = ?2 AND first < ?3
                 ORDER BY first DESC LIMIT 1",
            )?
            .query_row(params![path, epoch, first], row)
            .optional()?
            .filter(|before| before.last.cast_signed() >= first - 1);
        let mut statement = connection.prepare_cached(
            "SELECT first, last FROM intervals WHERE path = ?1 AND store_epoch = ?2 AND first BETWEEN ?3 AND ?4
             ORDER BY first",
        )?;
        let within = statement.query_map(params![path, epoch, first, last.saturating_add(1)], row)?;
        let mut done: Vec<Interval> = before.into_iter().collect();
        for interval in within {
            done.push(interval?);
        }
        Ok(Self(done))
    }

    /// Whether the entry is done.
    pub(super) fn contains(&self, store_epoch: u64, id: u64) -> bool {
        let place = self.0.partition_point(|interval| interval.first <= id);
        place
            .checked_sub(1)
            .is_some_and(|place| self.0[place].contains(store_epoch, id))
    }

    /// Adds an interval to the set that this was read [around](Self::around), and returns the interval that holds it
    /// from now on.
    pub(super) fn add(
        self,
        connection: &Connection,
        path: i64,
        interval: Interval,
    ) -> Result<Interval, StoreError> {
        let joined = self.0.iter().fold(interval, |joined, known| Interval {
            store_epoch: joined.store_epoch,
            first: joined.first.min(known.first),
            last: joined.last.max(known.last),
        });
        if let [known] = self.0[..]
            && known == joined
        {
            return Ok(joined);
        }
        let epoch = joined.store_epoch.cast_signed();
        let mut delete = connection
            .prepare_cached("DELETE FROM intervals WHERE path = ?1 AND store_epoch = ?2 AND first = ?3")?;
        for known in &self.0 {
            delete.execute(params![path, epoch, known.first.cast_signed()])?;
        }
        connection
            .prepare_cached("INSERT INTO intervals (path, store_epoch, first, last) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![
                path,
                epoch,
                joined.first.cast_signed(),
                joined.last.cast_signed()
            ])?;
        Ok(joined)
    }
}

/// The parts of an interval without the given ids, which are in order and lie within it.
pub(super) fn without(interval: Interval, ids: &[u64]) -> Vec<Interval> {
    let mut parts = Vec::with_capacity(ids.len() + 1);
    let mut first = interval.first;
    for &id in ids {
        if id > first {
            parts.push(Interval {
                first,
                last: id - 1,
                ..interval
            });
        }
        first = id + 1;
    }
    if first <= interval.last {
        parts.push(Interval { first, ..interval });
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("schema.sql")).unwrap();
        connection
    }

    fn interval(first: u64, last: u64) -> Interval {
        Interval {
            store_epoch: u64::MAX - 3,
            first,
            last,
        }
    }

    fn add(connection: &Connection, interval: Interval) -> Interval {
        Done::around(connection, 1, interval)
            .unwrap()
            .add(connection, 1, interval)
            .unwrap()
    }

    fn rows(connection: &Connection) -> Vec<(i64, i64)> {
        let mut statement = connection
            .prepare("SELECT first, last FROM intervals ORDER BY first")
            .unwrap();
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn intervals_that_touch_become_one() {
        let connection = database();
        add(&connection, interval(1, 3));
        add(&connection, interval(10, 12));
        assert_eq!(rows(&connection), [(1, 3), (10, 12)]);
        assert_eq!(add(&connection, interval(4, 9)), interval(1, 12));
        assert_eq!(rows(&connection), [(1, 12)]);
        assert_eq!(add(&connection, interval(5, 6)), interval(1, 12));
        assert_eq!(add(&connection, interval(12, 13)), interval(1, 13));
        // The same ids of another epoch are other entries.
        let other = Interval {
            store_epoch: 1,
            ..interval(2, 2)
        };
        assert!(!Done::around(&connection, 1, other).unwrap().contains(1, 2));
        assert_eq!(add(&connection, other), other);
        assert!(
            !Done::around(&connection, 2, interval(2, 2))
                .unwrap()
                .contains(u64::MAX - 3, 2)
        );
    }

    #[test]
    fn a_set_of_intervals_is_a_set_of_ids() {
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..40 {
            let (connection, mut model) = (database(), BTreeSet::new());
            for _ in 0..60 {
                let first = random.random_range(1..120);
                let last = first + random.random_range(0..12);
                let done = Done::around(&connection, 1, interval(first, last)).unwrap();
                for id in first..=last {
                    assert_eq!(done.contains(u64::MAX - 3, id), model.contains(&id), "{id}");
                }
                model.extend(first..=last);
                let joined = done.add(&connection, 1, interval(first, last)).unwrap();
                assert!((joined.first..=joined.last).all(|id| model.contains(&id)));
                assert!(joined.covers(&interval(first, last)));
            }
            let rows = rows(&connection);
            let ids: Vec<u64> = rows
                .iter()
                .flat_map(|&(first, last)| first as u64..=last as u64)
                .collect();
            assert_eq!(ids, model.into_iter().collect::<Vec<_>>());
            assert!(
                rows.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0),
                "compact: {rows:?}"
            );
        }
    }

    #[test]
    fn ids_can_be_left_out() {
        assert_eq!(without(interval(1, 5), &[]), [interval(1, 5)]);
        assert_eq!(
            without(interval(1, 5), &[1, 3, 5]),
            [interval(2, 2), interval(4, 4)]
        );
        assert_eq!(without(interval(4, 4), &[4]), []);
    }
}
