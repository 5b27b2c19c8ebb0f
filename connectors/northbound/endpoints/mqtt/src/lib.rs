//! Sink to an MQTT broker.
