//! Logs for humans or as JSON.

use std::io::{IsTerminal, Write};

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One line for a reader, with colours on a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(Error::Format {
                found: text.chars().take(64).collect(),
            }),
        }
    }
}

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The form is not known.
    #[error("log format is {found:?}, allowed are human and json")]
    Format {
        /// What was found.
        found: String,
    },
    /// The filter is malformed.
    #[error("log filter is {found:?}, allowed are level and target=level, separated by commas: {reason}")]
    Filter {
        /// What was found.
        found: String,
        /// What the parser says.
        reason: String,
    },
    /// Logs of this process have begun already.
    #[error("logging has begun already")]
    Begun,
}

/// What libraries that speak through `log` say less of, unless the filter names them: the storage engine tells of each
/// flush and compaction.
const QUIET: &str = "fjall=warn,lsm_tree=warn";

/// Begins logging to standard error, which leaves standard output to results.
///
/// `filter` as in `info`, `warn,foreshore_broker=debug`.
///
/// # Errors
/// When the filter is malformed, or logging has begun already.
pub fn init(format: Format, filter: &str) -> Result<(), Error> {
    let malformed = |reason: String| Error::Filter {
        found: filter.chars().take(256).collect(),
        reason,
    };
    let filter =
        EnvFilter::try_new(format!("{QUIET},{filter}")).map_err(|error| malformed(error.to_string()))?;
    let registry = tracing_subscriber::registry().with(filter);
    let begun = match format {
        Format::Human if std::io::stderr().is_terminal() => {
            registry.with(fmt::layer().with_writer(|| Terminal)).try_init()
        }
        Format::Human => registry
            .with(fmt::layer().with_writer(std::io::stderr).with_ansi(false))
            .try_init(),
        Format::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    };
    begun.map_err(|_| Error::Begun)
}

/// Standard error of a person: a line that a program keeps rewriting there, such as a progress, makes way.
struct Terminal;

impl Write for Terminal {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let mut terminal = std::io::stderr().lock();
        terminal.write_all(b"\r\x1b[2K")?;
        terminal.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_filter_is_quoted() {
        let error = init(Format::Json, "foreshore=loud").unwrap_err();
        assert!(error.to_string().contains("foreshore=loud"), "{error}");
        assert!("xml".parse::<Format>().is_err());
    }

    #[test]
    fn begins_once() {
        init(Format::Json, "info").unwrap();
        assert!(matches!(init(Format::Human, "info"), Err(Error::Begun)));
    }
}
