//! The numbers of a device's records.

use std::path::Path;

use foreshore_record::SourceNumber;
use jiff::Timestamp;

const EPOCH_FILE: &str = "epoch";
/// Digits of the largest epoch, and a line feed.
const EPOCH_LEN: u64 = 21;

/// Counts the records of one device in one life of it.
#[derive(Debug)]
pub(crate) struct Numbers {
    source: String,
    epoch: u64,
    last: u64,
}

impl Numbers {
    /// Begins a life, and makes it durable before the first number is given: a later life must have a larger epoch.
    ///
    /// The epoch is the clock's milliseconds, or one more than the last that is stored: so it rises with a clock that
    /// was set back, and also when the state directory did not survive, as in a new pod. Where another instance had the
    /// device, it is larger than the epoch `above` of that one, whose clock is another. Blocks on files.
    ///
    /// # Errors
    /// When the directory can't be written.
    pub(crate) fn begin(
        namespace: &str,
        device: &str,
        directory: &Path,
        above: u64,
    ) -> Result<Self, foreshore_tls::Error> {
        Self::begin_at(namespace, device, directory, above, Timestamp::now())
    }

    fn begin_at(
        namespace: &str,
        device: &str,
        directory: &Path,
        above: u64,
        now: Timestamp,
    ) -> Result<Self, foreshore_tls::Error> {
        let path = directory.join(EPOCH_FILE);
        // A file that is missing or damaged counts as none: the clock stands in.
        let stored = foreshore_tls::read_bounded(&path, EPOCH_LEN).ok();
        let stored = stored.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse::<u64>().ok());
        let clock = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let least = stored.unwrap_or_default().max(above).saturating_add(1);
        let epoch = clock.max(least);
        foreshore_tls::write_private(&path, format!("{epoch}\n").as_bytes())?;
        Ok(Self {
            source: format!("connector/{namespace}/{device}"),
            epoch,
            last: 0,
        })
    }

    /// Which life this is.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> SourceNumber {
        self.last += 1;
        SourceNumber {
            source: self.source.clone(),
            epoch: self.epoch,
            sequence: self.last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(directory: &Path, millisecond: i64) -> Numbers {
        let now = Timestamp::from_millisecond(millisecond).unwrap();
        Numbers::begin_at("plant", "line", directory, 0, now).unwrap()
    }

    #[test]
    fn numbers_rise_without_gaps() {
        let directory = tempfile::tempdir().unwrap();
        let mut numbers = begin(directory.path(), 1000);
        let first = numbers.next();
        assert_eq!(
            (first.source.as_str(), first.epoch, first.sequence),
            ("connector/plant/line", 1000, 1)
        );
        assert_eq!(numbers.next().sequence, 2);
    }

    #[test]
    fn the_epoch_rises_whatever_the_clock_and_the_directory_do() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(begin(directory.path(), 1000).epoch, 1000);
        assert_eq!(begin(directory.path(), 500).epoch, 1001);
        assert_eq!(begin(directory.path(), 9000).epoch, 9000);
        std::fs::write(directory.path().join(EPOCH_FILE), "nonsense").unwrap();
        assert_eq!(begin(directory.path(), 9500).epoch, 9500);
        let now = Timestamp::from_millisecond(9600).unwrap();
        let above = Numbers::begin_at("plant", "line", directory.path(), 20_000, now);
        assert_eq!(above.unwrap().epoch, 20_001);
        let other = tempfile::tempdir().unwrap();
        assert_eq!(begin(other.path(), 9600).epoch, 9600);
        assert!(Numbers::begin("plant", "line", Path::new("/nowhere/at/all"), 0).is_err());
    }
}
