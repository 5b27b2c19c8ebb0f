//! What happened to a message, step by step.

use std::fmt;

use foreshore_record::Qos;
use foreshore_store::EntryId;
use serde::Serialize;

use crate::wire::packet::AckKind;

/// A hop, and when it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TimedHop {
    /// Microseconds since the broker got the message.
    pub after_micros: u64,
    /// What happened.
    #[serde(flatten)]
    pub hop: Hop,
}

/// What happened to a message.
///
/// A `receiver` is named as its path in the ledger is: `session/CLIENT`, `shared/GROUP/FILTER` or the name of a dataflow's
/// path. What concerns a shared group names the member as `client` besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "hop", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Hop {
    /// The broker got it.
    Received {
        /// From this client; absent when the broker itself publishes: a will, a command, a notification.
        #[serde(skip_serializing_if = "Option::is_none")]
        client: Option<String>,
        /// Through this listener.
        #[serde(skip_serializing_if = "Option::is_none")]
        listener: Option<String>,
        /// Quality of service.
        qos: Qos,
        /// Packet identifier; 0 with quality of service 0.
        packet_id: u16,
        /// DUP flag: the client says that it may have sent it before.
        dup: bool,
        /// RETAIN flag.
        retain: bool,
        /// Bytes of its payload.
        bytes: usize,
    },
    /// The policies allow it.
    Allowed,
    /// A policy refuses it.
    Denied {
        /// The rule that does.
        rule: String,
    },
    /// It is not taken in.
    Refused {
        /// Why, in the words of MQTT 5.0 section 2.4.
        reason: &'static str,
    },
    /// It was taken in before, by its packet identifier or its number: nobody gets it once more.
    Repeated,
    /// It is a request to the state store, which answers it itself.
    Requested,
    /// Nobody subscribes to its topic.
    Unrouted,
    /// Somebody is to get it.
    Routed {
        /// Who.
        receiver: String,
        /// Quality of service of the delivery.
        qos: Qos,
        /// Whether it enters a durable queue for that.
        queued: bool,
        /// Whether the receiver is connected: a session's client, or any member of a group. Dataflows read when they like.
        #[serde(skip_serializing_if = "Option::is_none")]
        connected: Option<bool>,
    },
    /// The group commit that holds it is durable.
    Stored {
        /// Its entry, the same in all queues.
        entry: EntryId,
        /// Microseconds from its submission until the commit was known to be durable.
        commit_micros: u64,
    },
    /// The store did not take it.
    NotStored {
        /// Why.
        reason: String,
    },
    /// Its publisher is told what became of it.
    Answered {
        /// PUBACK, or PUBREC with quality of service 2.
        packet: &'static str,
        /// The reason code of MQTT 5.0 section 2.4; 128 and above refuse it.
        code: u8,
        /// The code in words.
        reason: &'static str,
    },
    /// Its publisher is not told: its connection has ended.
    Unanswered,
    /// Its publisher released its packet identifier (PUBREL, quality of service 2).
    ReleasedByPublisher,
    /// A member of the group was chosen.
    Assigned {
        /// The group.
        receiver: String,
        /// The member.
        client: String,
    },
    /// It is not kept in memory for the receiver: it is read from the durable queue later.
    LeftToQueue {
        /// Whose.
        receiver: String,
    },
    /// PUBLISH was written for a client.
    Sent {
        /// Whose delivery.
        receiver: String,
        /// The member of the group.
        #[serde(skip_serializing_if = "Option::is_none")]
        client: Option<String>,
        /// Quality of service.
        qos: Qos,
        /// Packet identifier; 0 with quality of service 0.
        packet_id: u16,
        /// DUP flag: it is a repeat.
        dup: bool,
    },
    /// The client acknowledged a step of the delivery.
    Acknowledged {
        /// Whose delivery.
        receiver: String,
        /// The member of the group.
        #[serde(skip_serializing_if = "Option::is_none")]
        client: Option<String>,
        /// PUBACK; or PUBREC, then PUBCOMP.
        packet: &'static str,
        /// Packet identifier.
        packet_id: u16,
    },
    /// PUBREL was written for the client (quality of service 2).
    Released {
        /// Whose delivery.
        receiver: String,
        /// The member of the group.
        #[serde(skip_serializing_if = "Option::is_none")]
        client: Option<String>,
        /// Packet identifier.
        packet_id: u16,
    },
    /// The connection of the group's member ended before it acknowledged: another gets it.
    Returned {
        /// The group.
        receiver: String,
    },
    /// It was handed to the runner of a dataflow.
    HandedOut {
        /// The dataflow's path.
        receiver: String,
        /// How often that happened in earlier openings of the path.
        attempt: u32,
    },
    /// The dataflow is done with it: the position of its path passed it.
    Settled {
        /// The dataflow's path.
        receiver: String,
        /// Outputs that it produced.
        emitted: u32,
    },
    /// It could not be processed, and was set aside.
    DeadLettered {
        /// Whose.
        receiver: String,
        /// The stage that failed, or `sink`.
        stage: String,
        /// Why.
        reason: String,
    },
    /// It will not be delivered.
    Dropped {
        /// To whom.
        receiver: String,
        /// Why, as the ledger names it; what was in no durable queue has the further reasons `no_room` and
        /// `not_connected`.
        reason: String,
    },
}

impl Hop {
    /// The receiver for whom this is the last hop.
    pub(crate) fn ends(&self) -> Option<&str> {
        match self {
            Self::Dropped { receiver, .. }
            | Self::Settled { receiver, .. }
            | Self::DeadLettered { receiver, .. }
            | Self::Sent {
                receiver,
                qos: Qos::AtMostOnce,
                ..
            }
            | Self::Acknowledged {
                receiver,
                packet: "PUBACK" | "PUBCOMP",
                ..
            } => Some(receiver),
            _ => None,
        }
    }

    /// Whether its publisher has to be told what becomes of it.
    pub(crate) fn asks_for_an_answer(&self) -> bool {
        matches!(self, Self::Received { packet_id: 1.., .. })
    }

    /// Whether its publisher is told everything after it, or can't be any more: with quality of service 2 that takes
    /// PUBREL too.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::Answered { packet, code, .. } => *packet == "PUBACK" || *code >= 0x80,
            Self::Unanswered | Self::ReleasedByPublisher => true,
            _ => false,
        }
    }

    /// Whether a message may have come to its end with it.
    pub(crate) fn may_be_last(&self) -> bool {
        self.ends().is_some() || self.ends_all() || self.is_answer() || matches!(self, Self::Stored { .. })
    }

    /// Whether nobody gets the message after this.
    pub(crate) fn ends_all(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. } | Self::Repeated | Self::Requested | Self::Unrouted | Self::NotStored { .. }
        )
    }
}

/// How a packet is called.
pub(crate) fn packet_name(kind: AckKind) -> &'static str {
    match kind {
        AckKind::PubAck => "PUBACK",
        AckKind::PubRec => "PUBREC",
        AckKind::PubRel => "PUBREL",
        AckKind::PubComp => "PUBCOMP",
    }
}

/// A number of microseconds as people read it.
struct Micros(u64);

impl fmt::Display for Micros {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(micros) = self;
        write!(formatter, "{}.{:03} ms", micros / 1000, micros % 1000)
    }
}

impl fmt::Display for TimedHop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = format!("+{}", Micros(self.after_micros));
        write!(formatter, "{after:>14}  {}", self.hop)
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |qos: Qos| u8::from(qos);
        let member = |client: &Option<String>| {
            let client = client.as_ref();
            client.map_or_else(String::new, |client| format!(", member {client}"))
        };
        match self {
            Self::Received {
                client,
                listener,
                qos,
                packet_id,
                dup,
                retain,
                bytes,
            } => {
                let client = client.as_deref().unwrap_or("the broker itself");
                write!(formatter, "received       from {client}")?;
                if let Some(listener) = listener {
                    write!(formatter, " through listener {listener}")?;
                }
                write!(formatter, ", QoS {}, {bytes} bytes", number(*qos))?;
                if *packet_id > 0 {
                    write!(formatter, ", packet {packet_id}")?;
                }
                formatter.write_str(if *dup { ", DUP" } else { "" })?;
                formatter.write_str(if *retain { ", retained" } else { "" })
            }
            Self::Allowed => formatter.write_str("allowed        by policy"),
            Self::Denied { rule } => write!(formatter, "denied         by policy: {rule}"),
            Self::Refused { reason } => write!(formatter, "refused        {reason}"),
            Self::Repeated => formatter.write_str("repeated       it was taken in before"),
            Self::Requested => formatter.write_str("requested      of the state store"),
            Self::Unrouted => formatter.write_str("unrouted       nobody subscribes to its topic"),
            Self::Routed {
                receiver,
                qos,
                queued,
                connected,
            } => {
                write!(formatter, "routed         to {receiver}, QoS {}", number(*qos))?;
                formatter.write_str(match connected {
                    Some(true) => ", connected",
                    Some(false) => ", not connected",
                    None => "",
                })?;
                formatter.write_str(if *queued { ", queued" } else { "" })
            }
            Self::Stored { entry, commit_micros } => {
                let commit = Micros(*commit_micros);
                write!(formatter, "stored         as entry {entry}, commit took {commit}")
            }
            Self::NotStored { reason } => write!(formatter, "not stored     {reason}"),
            Self::Answered { packet, reason, .. } => write!(formatter, "answered       {packet}: {reason}"),
            Self::Unanswered => formatter.write_str("unanswered     its publisher has gone"),
            Self::ReleasedByPublisher => formatter.write_str("released       by its publisher"),
            Self::Assigned { receiver, client } => {
                write!(formatter, "assigned       to member {client} of {receiver}")
            }
            Self::LeftToQueue { receiver } => {
                write!(
                    formatter,
                    "left           to the queue of {receiver}, to be read later"
                )
            }
            Self::Sent {
                receiver,
                client,
                qos,
                packet_id,
                dup,
            } => {
                let (member, qos) = (member(client), number(*qos));
                write!(formatter, "sent           to {receiver}{member}, QoS {qos}")?;
                if *packet_id > 0 {
                    write!(formatter, ", packet {packet_id}")?;
                }
                formatter.write_str(if *dup { ", again" } else { "" })
            }
            Self::Acknowledged {
                receiver,
                client,
                packet,
                packet_id,
            } => {
                let member = member(client);
                write!(
                    formatter,
                    "acknowledged   by {receiver}{member}: {packet}, packet {packet_id}"
                )
            }
            Self::Released {
                receiver,
                client,
                packet_id,
            } => {
                let member = member(client);
                write!(
                    formatter,
                    "released       to {receiver}{member}: PUBREL, packet {packet_id}"
                )
            }
            Self::Returned { receiver } => {
                write!(formatter, "returned       to {receiver}: its member has gone")
            }
            Self::HandedOut { receiver, attempt } => {
                write!(formatter, "handed out     to {receiver}, attempt {}", attempt + 1)
            }
            Self::Settled { receiver, emitted } => {
                write!(formatter, "settled        by {receiver}, {emitted} outputs")
            }
            Self::DeadLettered {
                receiver,
                stage,
                reason,
            } => {
                write!(
                    formatter,
                    "dead-lettered  by {receiver} at stage {stage}: {reason}"
                )
            }
            Self::Dropped { receiver, reason } => {
                write!(formatter, "dropped        for {receiver}: {reason}")
            }
        }
    }
}
