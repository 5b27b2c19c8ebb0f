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
