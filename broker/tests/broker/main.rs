//! The broker over real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failure ends the test"
)]

mod audit;
mod auth;
mod basics;
mod change;
mod client;
mod conduct;
mod conformance;
mod durable;
mod encrypted;
mod fuzz;
mod inspect;
mod limits;
mod memory;
mod metrics;
mod own;
mod paths;
mod peers;
mod policy;
mod pressure;
mod probe;
mod protocol;
mod quotas;
mod revocation;
mod role;
mod service_accounts;
mod sessions;
mod shared;
mod state_store;
mod trace;
mod websocket;

use std::{net::SocketAddr, path::Path, time::Duration};

use foreshore_broker::{Broker, Handle, Limits, ListenerOptions, Method, Options, Storage};

/// A broker for one test.
pub(crate) struct TestBroker {
    pub(crate) handle: Handle,
    pub(crate) address: SocketAddr,
}

/// Options of a test's broker: one listener that lets everybody in.
pub(crate) fn options() -> Options {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    Options {
        listeners: vec![ListenerOptions::tcp("test", any_port, vec![Method::Anonymous])],
        shards: Some(2),
        // What differs between threads is to be seen.
        few_connections: 0,
        ..Options::default()
    }
}

/// Options of a broker that keeps its messages in a directory.
pub(crate) fn options_in(directory: &Path) -> Options {
    let storage = Storage::Directory {
        path: directory.to_owned(),
        options: foreshore_store::StoreOptions::default(),
    };
    Options { storage, ..options() }
}

/// Options of a broker that keeps its messages in a directory, on a disk that counts as full.
pub(crate) fn options_of_full_disk(directory: &Path) -> Options {
    let storage = Storage::Directory {
        path: directory.to_owned(),
        options: foreshore_store::StoreOptions {
            // No disk has so much room.
            free_space_watermark: u64::MAX,
            ..foreshore_store::StoreOptions::default()
        },
    };
    Options { storage, ..options() }
}

impl TestBroker {
    pub(crate) async fn start() -> Self {
        Self::start_with(options()).await
    }

    pub(crate) async fn start_limited(limits: Limits) -> Self {
        Self::start_with(Options { limits, ..options() }).await
    }

    pub(crate) async fn start_with(options: Options) -> Self {
        let handle = Broker::start(options).await.unwrap();
        let address = handle.addresses()[0].1;
        Self { handle, address }
    }

    pub(crate) async fn stop(self) {
        self.handle.stop(Duration::from_secs(30)).await.unwrap();
    }
}
