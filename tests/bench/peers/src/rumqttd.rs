//! rumqttd 0.20 at the address that is given, for MQTT 5.
//!
//! Settings are those of the `rumqttd.toml` that its authors ship, except these:
//!
//! | setting | shipped | here | why |
//! |---|---|---|---|
//! | `next_connection_delay_ms` | 1 | 0 | a pause after each connection measures itself |
//! | `max_connections` | 10,010 | 20,010 | 10,000 idle connections, and some more |
//! | console, metrics, MQTT 3.1.1, WebSocket | on | off | no load uses them |
//!
//! A filter's log is held in memory: ten segments of 100 MB, of which the oldest is forgotten when all are full, whoever has
//! not read it.

use std::{collections::HashMap, net::SocketAddr};

use anyhow::{Context, Result};
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

fn main() -> Result<()> {
    let address = std::env::args()
        .nth(1)
        .context("where to listen is missing: ADDRESS:PORT")?;
    let listen: SocketAddr = address.parse().with_context(|| address.clone())?;
    let server = ServerSettings {
        name: "v5-1".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 0,
        connections: ConnectionSettings {
            connection_timeout_ms: 60_000,
            max_payload_size: 20_480,
            max_inflight_count: 100,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    };
    let config = Config {
        router: RouterConfig {
            max_connections: 20_010,
            max_outgoing_packet_count: 200,
            max_segment_size: 100 << 20,
            max_segment_count: 10,
            ..RouterConfig::default()
        },
        v5: Some(HashMap::from([("1".to_owned(), server)])),
        ..Config::default()
    };
    Broker::new(config).start().context("rumqttd ended")
}
