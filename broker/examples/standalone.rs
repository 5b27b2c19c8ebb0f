//! The smallest use of the library: a broker on one port that lets everybody in.
//!
//! `cargo run -p foreshore-broker --example standalone -- 127.0.0.1:1883 [DIRECTORY]`

use std::{error::Error, net::SocketAddr, time::Duration};

use foreshore_broker::{Broker, ListenerOptions, Method, Options, Storage};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments.next().as_deref().unwrap_or("127.0.0.1:1883").parse()?;
    let storage = match arguments.next() {
        Some(path) => Storage::Directory {
            path: path.into(),
            options: foreshore_store::StoreOptions::default(),
        },
        None => Storage::Memory,
    };
    let listeners = vec![ListenerOptions::tcp("mqtt", address, vec![Method::Anonymous])];
    let broker = Broker::start(Options {
        listeners,
        storage,
        ..Options::default()
    })
    .await?;
    println!("{:?}", broker.addresses());
    tokio::signal::ctrl_c().await?;
    println!(
        "{}",
        serde_json::to_string_pretty(&broker.sessions(None, 100).await?)?
    );
    broker.stop(Duration::from_secs(10)).await?;
    Ok(())
}
