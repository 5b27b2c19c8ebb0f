//! rmqtt 0.24 at the address that is given, as a library: no plugin, so that nothing is stored, counted or authorised.
//!
//! Settings are the builder's own, except these:
//!
//! | setting | default | here | why |
//! |---|---|---|---|
//! | `nodelay` | off | on | as all others have it: small packets wait for nobody's acknowledgement |
//! | `max_inflight` | 16 | 256 | as ours; 16 would measure round trips |
//! | `max_mqueue_len` | 1,000 | 1,000,000 | a full queue drops, and only what is delivered counts |
//! | `backlog`, `max_handshaking_limit` | 512, 1,000 | 1,024, 10,000 | 10,000 connections, one soon after the other |

use std::net::SocketAddr;

use anyhow::{Context, Result};
use rmqtt::{context::ServerContext, net::Builder, server::MqttServer};

#[tokio::main]
async fn main() -> Result<()> {
    let address = std::env::args()
        .nth(1)
        .context("where to listen is missing: ADDRESS:PORT")?;
    let listen: SocketAddr = address.parse().with_context(|| address.clone())?;
    let listener = Builder::new()
        .name("bench")
        .laddr(listen)
        .nodelay(true)
        .backlog(1_024)
        .max_handshaking_limit(10_000)
        .max_inflight(256.try_into()?)
        .max_mqueue_len(1_000_000)
        .allow_anonymous(true)
        .bind()
        .and_then(|bound| bound.tcp())
        .context(address)?;
    let context = ServerContext::new().build().await;
    let server = MqttServer::new(context).listener(listener).build();
    server.run().await.context("rmqtt ended")
}
