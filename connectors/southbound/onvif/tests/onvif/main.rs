//! The connector, run by the SDK's runner, against cameras that others wrote.
//!
//! | module | camera |
//! |---|---|
//! | `ipycam` | ipycam (PyPI): WS-UsernameToken, HTTP Basic, movements without an end |
//! | `plant` | the connector with a broker stand-in, and what tests ask of it |

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod ipycam;
mod plant;
