//! How often one client or address is told of. Everything here is pure.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Time in which one is told of [`MOST`] times.
const WINDOW: Duration = Duration::from_secs(60);

/// Lines of one in a window.
const MOST: u32 = 30;

/// Clients and addresses that are told apart; those beyond count together.
const MAX_KNOWN: usize = 4096;

/// Who is told of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A client that was let in.
    Client(Arc<str>),
    /// An address from which somebody was not let in.
    Address(IpAddr),
    /// All those that are not told apart.
    Others,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is told, with how many were left out before it.
    Tell {
        /// So many.
        left_out: u64,
    },
    /// It is left out.
    LeaveOut,
}

/// Who was told of lately.
#[derive(Debug, Default)]
pub(super) struct Limit(HashMap<Key, Window>);

#[derive(Debug)]
struct Window {
    began: Instant,
    told: u32,
    left_out: u64,
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= WINDOW
    }
}

impl Limit {
    /// Whether a line about somebody is told.
    pub(super) fn judge(&mut self, key: Key, now: Instant) -> Verdict {
        let is_known = self.0.contains_key(&key) || self.0.len() < MAX_KNOWN;
        let key = if is_known { key } else { Key::Others };
        let new = || Window {
            began: now,
            told: 0,
            left_out: 0,
        };
        let window = self.0.entry(key).or_insert_with(new);
        let mut left_out = 0;
        if window.is_over(now) {
            left_out = window.left_out;
            *window = new();
        }
        if window.told == MOST {
            window.left_out += 1;
            return Verdict::LeaveOut;
        }
        window.told += 1;
        Verdict::Tell { left_out }
    }

    /// Forgets those whose window is over, and tells what was left out of them.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<(Key, u64)> {
        let over = self.0.extract_if(|_, window| window.is_over(now));
        over.filter(|(_, window)| window.left_out > 0)
            .map(|(key, window)| (key, window.left_out))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(name: &str) -> Key {
        Key::Client(name.into())
    }

    const TOLD: Verdict = Verdict::Tell { left_out: 0 };

    #[test]
    fn a_flood_of_one_is_counted_and_hides_no_other() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        for _ in 0..MOST {
            assert_eq!(limit.judge(client("a"), now), TOLD);
        }
        for _ in 0..1000 {
            assert_eq!(limit.judge(client("a"), now), Verdict::LeaveOut);
        }
        assert_eq!(limit.judge(client("b"), now), TOLD);
        assert_eq!(limit.judge(Key::Address(Ipv4Addr::LOCALHOST.into()), now), TOLD);
        let almost = now + WINDOW - Duration::from_millis(1);
        assert_eq!(limit.judge(client("a"), almost), Verdict::LeaveOut);
        assert_eq!(limit.sweep(almost), []);
        // The next line in another window tells how many were left out, once.
        let later = now + WINDOW;
        assert_eq!(limit.judge(client("a"), later), Verdict::Tell { left_out: 1001 });
        assert_eq!(limit.judge(client("a"), later), TOLD);
    }

    #[test]
    fn what_was_left_out_is_told_of_those_who_have_stopped_too() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        for _ in 0..MOST + 7 {
            limit.judge(client("a"), now);
        }
        limit.judge(client("b"), now);
        assert_eq!(limit.sweep(now + WINDOW), [(client("a"), 7)]);
        assert_eq!(limit.sweep(now + WINDOW), []);
        assert!(limit.0.is_empty());
    }

    #[test]
    fn however_many_there_are_the_table_stays_small() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        for number in 0..MAX_KNOWN * 2 {
            limit.judge(client(&number.to_string()), now);
        }
        assert_eq!(limit.0.len(), MAX_KNOWN + 1);
        let others = u64::try_from(MAX_KNOWN).unwrap() - u64::from(MOST);
        assert_eq!(limit.sweep(now + WINDOW), [(Key::Others, others)]);
    }
}
