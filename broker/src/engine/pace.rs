//! How fast clients may publish, each of them and all together, and connect.
//!
//! Whoever is too fast is not refused; its next packet is looked at later. Each message takes its share of a second at the
//! rate that is allowed (the generic cell rate algorithm, ITU-T I.371), and its publisher waits until what was counted is
//! less than a second ahead. So what is counted over all clients slows down those who publish again and again, in turn,
//! and nobody's first message after a while.

use std::time::{Duration, Instant};

/// How far the messages of one moment may be ahead of the rate.
const BURST: Duration = Duration::from_secs(1);

/// The longest wait for one message. With more publishers than messages a second, each has one a second: a client whose
/// packets are not looked at for longer would take us for dead.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Messages, or connections, as they are counted against a rate.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When all of them are over at that rate.
    over: Option<Instant>,
}

impl Pace {
    /// Counts a message; tells until when its publisher waits before its next one. Of a connection: until when the next one
    /// is not taken.
    pub(crate) fn count(&mut self, per_second: u32, now: Instant) -> Option<Instant> {
        let began = self
            .over
            .map_or(now, |over| over.clamp(now, now + BURST + LONGEST_WAIT));
        let over = began + Duration::from_secs(1) / per_second.max(1);
        self.over = Some(over);
        let ahead = over.duration_since(now).saturating_sub(BURST);
        (!ahead.is_zero()).then(|| now + ahead.min(LONGEST_WAIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Publishers that send whenever they may, and how many messages each gets through.
    fn flood(pace: &mut Pace, per_second: u32, publishers: usize, seconds: u64) -> Vec<u32> {
        let began = Instant::now();
        let mut sent = vec![0; publishers];
        let mut free_at = vec![began; publishers];
        for millisecond in 0..seconds * 1000 {
            let now = began + Duration::from_millis(millisecond);
            for (sent, free_at) in sent.iter_mut().zip(&mut free_at) {
                while *free_at <= now {
                    *sent += 1;
                    *free_at = pace.count(per_second, now).unwrap_or(now);
                    if *sent > 1_000_000 {
                        return vec![*sent];
                    }
                }
            }
        }
        sent
    }

    #[test]
    fn a_flood_gets_the_rate_and_a_second_ahead() {
        for per_second in [1, 7, 1000, 30_000] {
            let sent = flood(&mut Pace::default(), per_second, 1, 10);
            let off = sent[0].abs_diff(11 * per_second);
            assert!(off <= per_second / 100 + 1, "{per_second}: {sent:?}");
        }
    }

    #[test]
    fn floods_share_the_rate_and_leave_others_alone() {
        let mut pace = Pace::default();
        let sent = flood(&mut pace, 1000, 20, 10);
        let all: u32 = sent.iter().sum();
        assert!((11_000..11_200).contains(&all), "{sent:?}");
        // After the second ahead, which is the first one's who comes.
        assert!(
            sent.iter().skip(1).all(|sent| (450..550).contains(sent)),
            "{sent:?}"
        );
    }

    #[test]
    fn nobody_waits_for_longer_than_a_second_and_a_pause_is_forgiven() {
        let mut pace = Pace::default();
        let now = Instant::now();
        for _ in 0..100 {
            let until = pace.count(1, now).unwrap_or(now);
            assert!(until <= now + LONGEST_WAIT);
        }
        assert_eq!(pace.count(1, now + Duration::from_secs(3)), None);
        assert_eq!(
            pace.count(1, now + Duration::from_secs(3)),
            Some(now + Duration::from_secs(4))
        );
    }
}
