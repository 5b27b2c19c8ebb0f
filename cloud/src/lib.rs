//! The cloud endpoint: the far end of every edge's stream.
//!
//! It admits edges and issues their certificates (`provisioning`), takes what they deliver over EdgeLink and
//! acknowledges it once it is committed (`link`, `store`), sends commands down and keeps an audit of them (`commands`,
//! `audit`), and answers an HTTP JSON API (`api`).
//!
//! [`Cloud::open`] takes [`Options`], [`Cloud::handle`] gives a cheap-clone [`Handle`], [`Cloud::run`] serves until the
//! shutdown begins.

mod api;
mod audit;
mod commands;
mod directory;
mod link;
mod metrics;
mod options;
mod provisioning;
mod samples;
mod service;
mod store;
mod times;

pub use options::{
    ApiToken, CommandOptions, HistoryOptions, HttpOptions, InvalidOption, JoinToken, LinkOptions,
    ListenOptions, Options, Secret, TlsFiles,
};
pub use service::{Cloud, Error, Handle};
pub use store::StoreError;

#[cfg(test)]
mod tests;
