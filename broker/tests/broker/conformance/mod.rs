//! What MQTT demands, statement by statement. `tests/conformance/mqtt.md` says which test shows which statement.

mod hostile;
mod raw;
mod table;
mod v3;
mod v3_delivery;
mod v5_connect;
mod v5_delivery;
mod v5_end;
mod v5_malformed;
mod v5_publish;
mod v5_session;
mod v5_subscribe;

/// Client identifiers that every server must take: 1 to 23 bytes of digits and letters, each of which is there
/// ([MQTT-3.1.3-5]).
const STANDARD_CLIENT_IDS: [&str; 4] = [
    "0",
    "0123456789abcdefghijklm",
    "nopqrstuvwxyzABCDEFGHIJ",
    "KLMNOPQRSTUVWXYZ",
];
