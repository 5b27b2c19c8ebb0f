//! The usual ports of roles, which pods have to themselves.

/// Of a broker's listener for roles.
pub const MQTT: u16 = 17883;
/// Of a broker's queues.
pub const QUEUE: u16 = 17443;
/// Of metrics and health of a role.
pub const HTTP: u16 = 9090;
/// Of requests of people's tools, on the loopback of a pod.
pub const ADMIN: u16 = 9091;
/// Of a simulated OPC UA server whose manifest names none.
pub const OPCUA: u16 = 4840;
/// Of a simulated camera whose manifest names none.
pub const ONVIF: u16 = 8080;
/// Of a cloud endpoint's links whose manifest names none.
pub const EDGE_LINK: u16 = 7443;
/// Of a cloud endpoint's JSON API whose manifest names none.
pub const CLOUD_API: u16 = 7080;
