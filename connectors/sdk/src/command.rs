//! Commands to assets: taken from the broker, judged, recorded, carried out once, answered.

pub(crate) mod announce;
pub(crate) mod journal;
pub(crate) mod request;
pub(crate) mod schemas;
pub(crate) mod serve;
