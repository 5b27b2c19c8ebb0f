//! The cloud endpoint.

#![allow(dead_code, unused)]
mod audit;
mod metrics;
mod samples;
mod store;
