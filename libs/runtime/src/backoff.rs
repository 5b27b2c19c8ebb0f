//! Waiting between tries.

use std::time::Duration;

use rand::Rng;

/// Exponential waiting with full jitter: each wait is a random time between the shortest wait and a ceiling that
/// doubles with every try up to the longest wait.
///
/// Jitter spreads the tries of many clients that lost the same server at the same time.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    /// Waits of at least `min` and at most `max`; when `max` is smaller than `min`, all waits are `min`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max: max.max(min),
            tries: 0,
        }
    }

    /// The next wait. Never zero unless `min` and `max` are.
    pub fn next_delay(&mut self) -> Duration {
        self.tries = self.tries.saturating_add(1);
        let factor = 1_u32.checked_shl(self.tries).unwrap_or(u32::MAX);
        let ceiling = self
            .min
            .max(Duration::from_millis(1))
            .saturating_mul(factor)
            .clamp(self.min, self.max);
        if ceiling <= self.min {
            return self.min;
        }
        rand::rng().random_range(self.min..=ceiling)
    }

    /// How often [`next_delay`](Self::next_delay) was called since the last reset.
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Begins again with short waits; to be called when a try succeeded.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_within_their_bounds_and_grow() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max);
        for tries in 1..200_u32 {
            let delay = backoff.next_delay();
            let ceiling = min
                .saturating_mul(1_u32.checked_shl(tries).unwrap_or(u32::MAX))
                .min(max);
            assert!(delay >= min && delay <= ceiling, "try {tries} waited {delay:?}");
        }
        assert_eq!(backoff.tries(), 199);
        backoff.reset();
        assert!(backoff.next_delay() <= min * 2);
    }

    #[test]
    fn bounds_the_wrong_way_round_wait_the_minimum() {
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(1));
        assert_eq!(backoff.next_delay(), Duration::from_secs(2));
    }
}
