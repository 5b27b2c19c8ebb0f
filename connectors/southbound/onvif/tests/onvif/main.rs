//! The connector, run by the SDK's runner, against cameras that others wrote.
//!
//! | module | camera |
//! |---|---|
//! | `ipycam` | ipycam (PyPI): WS-UsernameToken, HTTP Basic, movements without an end |
//! | `oxvif` | the mock of oxvif (crates registry): events, bitmaps, faults on demand |
//! | `lighttpd` | that one behind HTTP Digest of Debian's lighttpd |
//! | `hostile`, `scripted` | cameras that answer nonsense; written here, since nobody sells them |
//! | `tls` | a camera with a certificate of its own |
//! | `plant` | the connector with a broker stand-in, and what tests ask of it |

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod hostile;
mod ipycam;
mod lighttpd;
mod oxvif;
mod plant;
mod scripted;
mod tls;
