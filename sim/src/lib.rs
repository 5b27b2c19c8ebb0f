//! A simulated plant: a bottling line as an OPC UA server and a camera on it that speaks ONVIF.
//!
//! Both show the same [`line::Line`], which is repeatable from a seed, and take [`faults::Fault`]s on demand. It is a
//! stand-in for machines that a laptop and a test do not have; nothing in it is used to reach real ones.

pub mod camera;
pub mod faults;
pub mod line;
pub mod opcua;
