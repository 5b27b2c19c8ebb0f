//! Percentiles of many times, within two per cent, in little memory.

/// Parts of each power of two.
const PARTS: usize = 64;

/// A histogram of nanoseconds.
pub(super) struct Latencies {
    counts: Vec<u64>,
    total: u64,
}

impl Latencies {
    pub(super) fn new() -> Self {
        Self {
            counts: vec![0; PARTS * 64],
            total: 0,
        }
    }

    pub(super) fn add(&mut self, nanoseconds: u64) {
        let power = nanoseconds.max(PARTS as u64).ilog2() as usize;
        let shift = power - PARTS.ilog2() as usize;
        let place = shift * PARTS + usize::try_from(nanoseconds >> shift).unwrap_or(0);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
            self.total += 1;
        }
    }

    /// A percentile in milliseconds; 0 when nothing was added.
    pub(super) fn percentile(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (place, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted.max(1) {
                return nanoseconds(place) / 1e6;
            }
        }
        0.0
    }
}

/// The least number of nanoseconds that is counted at a place.
fn nanoseconds(place: usize) -> f64 {
    if place < 2 * PARTS {
        return place as f64;
    }
    let shift = place / PARTS - 1;
    ((place - shift * PARTS) as f64) * (1_u64 << shift) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_two_per_cent() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.percentile(0.5), 0.0);
        for nanoseconds in 1..=1_000_000 {
            latencies.add(nanoseconds);
        }
        for (share, expected) in [(0.5, 0.5), (0.99, 0.99), (0.000_01, 0.000_01)] {
            let found = latencies.percentile(share);
            assert!((found / expected - 1.0).abs() < 0.02, "{share}: {found}");
        }
        latencies.add(u64::MAX);
        assert!(latencies.percentile(1.0) > 1e12);
    }
}
