//! Sink to JSON-lines files.
