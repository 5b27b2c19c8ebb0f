//! Names of the MQTT 5 user properties that travel with our records.

/// Number of a record: who counts ([`crate::SourceNumber::source`]).
pub const SOURCE: &str = "foreshore-source";
/// Number of a record: which life of the source ([`crate::SourceNumber::epoch`]).
pub const EPOCH: &str = "foreshore-epoch";
/// Number of a record: which record of that life ([`crate::SourceNumber::sequence`]).
pub const SEQUENCE: &str = "foreshore-sequence";

/// A broker that a record has left for another one, by what our own broker or the endpoint is known by; once for each.
pub const VIA: &str = "foreshore-via";

/// Namespace of the asset that a record belongs to.
pub const NAMESPACE: &str = "foreshore-namespace";
/// Name of the asset that a record belongs to.
pub const ASSET: &str = "foreshore-asset";
/// Dataset, event (`group/event`) or stream that a record belongs to.
pub const MEMBER: &str = "foreshore-member";
/// Whether a dataset message holds all points (`key`) or only those that changed (`delta`).
pub const FRAME: &str = "foreshore-frame";

/// CloudEvents 1.0: identifier of the event, unique within its source.
pub const CE_ID: &str = "id";
/// CloudEvents 1.0: version of the specification, `1.0`.
pub const CE_SPECVERSION: &str = "specversion";
/// CloudEvents 1.0: kind of the event, such as [`TYPE_KEYFRAME`].
pub const CE_TYPE: &str = "type";
/// CloudEvents 1.0: URI of the source, for OPC UA the server's application URI.
pub const CE_SOURCE: &str = "source";
/// CloudEvents 1.0: when it happened, RFC 3339.
pub const CE_TIME: &str = "time";
/// CloudEvents 1.0: what it is about, `asset/member`.
pub const CE_SUBJECT: &str = "subject";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// CloudEvents type of a dataset message with all points.
pub const TYPE_KEYFRAME: &str = "ua-keyframe";
/// CloudEvents type of a dataset message with changed points only.
pub const TYPE_DELTAFRAME: &str = "ua-deltaframe";
/// CloudEvents type of an event of an asset.
pub const TYPE_EVENT: &str = "ua-event";
/// CloudEvents type of a picture.
pub const TYPE_SNAPSHOT: &str = "foreshore.snapshot";

/// Snapshots: when the picture was taken, RFC 3339.
pub const CAPTURED_AT: &str = "foreshore-captured-at";
/// Snapshots: picture width in pixels.
pub const WIDTH: &str = "foreshore-width";
/// Snapshots: picture height in pixels.
pub const HEIGHT: &str = "foreshore-height";

/// Command responses: `ok` or a [`crate::CommandErrorCode`].
pub const COMMAND_STATUS: &str = "foreshore-status";
/// Command requests: key under which a repeat of the request is recognised.
pub const IDEMPOTENCY_KEY: &str = "foreshore-idempotency-key";
/// Command requests: RFC 3339 time after which the command must not begin.
pub const DEADLINE: &str = "foreshore-deadline";
/// Command requests: who asked, for the audit record.
pub const ACTOR: &str = "foreshore-actor";
