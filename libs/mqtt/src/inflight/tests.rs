use std::collections::BTreeMap;

use bytes::Bytes;
use foreshore_record::{Record, TopicName};
use proptest::prelude::*;
use rmqtt_codec::v5::{Codec, Packet};
use tokio_util::codec::Decoder;

use super::*;
use crate::error::PublishError;

fn limits(receive_maximum: u16) -> Limits {
    Limits {
        version: crate::version::Version::V5,
        receive_maximum,
        max_packet_size: usize::MAX,
        max_qos: Qos::ExactlyOnce,
        retain: true,
        subscription_identifiers: true,
        keep_alive: std::time::Duration::ZERO,
    }
}

fn publish(number: u64, qos: Qos) -> EncodedPublish {
    let payload = Bytes::copy_from_slice(&number.to_be_bytes());
    let mut record = Record::new(TopicName::new("t").unwrap(), payload);
    record.qos = qos;
    EncodedPublish::new(&record).unwrap()
}

/// The server's side: packet identifiers that it has not answered, with the message's number and whether PUBREL came.
#[derive(Default)]
struct Server {
    open: BTreeMap<u16, (u64, bool)>,
    /// Numbers in the order of their first arrival on this connection.
    arrived: Vec<u64>,
    dups: usize,
}

impl Server {
    fn read(&mut self, out: &mut BytesMut) {
        let mut codec = Codec::default();
        while let Some((packet, _)) = codec.decode(out).unwrap() {
            match packet {
                Packet::Publish(publish) => {
                    let number = u64::from_be_bytes(publish.payload[..].try_into().unwrap());
                    let id = publish.packet_id.unwrap().get();
                    self.dups += usize::from(publish.dup);
                    assert!(
                        self.open.insert(id, (number, false)).is_none(),
                        "identifier {id} is in use"
                    );
                    self.arrived.push(number);
                }
                Packet::PublishRelease(release) => {
                    self.open
                        .entry(release.packet_id.get())
                        .or_insert((u64::MAX, true))
                        .1 = true;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(bool),
    /// Answers the nth open message; with QoS 2, the next of its two answers.
    Answer(usize),
    Reconnect {
        session: bool,
        receive_maximum: u16,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => any::<bool>().prop_map(Step::Send),
        5 => (0_usize..20).prop_map(Step::Answer),
        1 => (any::<bool>(), 1_u16..12).prop_map(|(session, receive_maximum)| Step::Reconnect { session, receive_maximum }),
    ];
    proptest::collection::vec(step, 0..120)
}

fn answer_one(in_flight: &mut InFlight, server: &mut Server, nth: usize, qos: &[Qos], out: &mut BytesMut) {
    let Some((&id, &(number, released))) = server.open.iter().nth(nth % server.open.len().max(1)) else {
        return;
    };
    let packet_id = NonZeroU16::new(id).unwrap();
    let ok = ReasonCode::SUCCESS;
    if released {
        server.open.remove(&id);
        in_flight.completed(packet_id).unwrap();
    } else if qos[usize::try_from(number).unwrap()] == Qos::ExactlyOnce {
        in_flight.received(packet_id, ok, String::new(), out).unwrap();
    } else {
        server.open.remove(&id);
        in_flight.acknowledged(packet_id, ok, String::new()).unwrap();
    }
}

proptest! {
    /// Whatever happens to connections, every message is answered once, none is lost, and what is sent again is sent
    /// in the order of publication.
    #[test]
    fn every_message_is_answered_once(steps in steps()) {
        let mut in_flight = InFlight::new(10, limits(10));
        in_flight.resume(false, limits(10));
        let (mut out, mut server) = (BytesMut::new(), Server::default());
        let (mut qos, mut receipts) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Send(exactly_once) if in_flight.has_room() => {
                    qos.push(if exactly_once { Qos::ExactlyOnce } else { Qos::AtLeastOnce });
                    let (answer, receipt) = oneshot::channel();
                    receipts.push(receipt);
                    in_flight.send(publish(receipts.len() as u64 - 1, qos[receipts.len() - 1]), answer, &mut out);
                }
                Step::Send(_) => {}
                Step::Answer(nth) => {
                    server.read(&mut out);
                    answer_one(&mut in_flight, &mut server, nth, &qos, &mut out);
                    in_flight.pump(&mut out);
                }
                Step::Reconnect { session, receive_maximum } => {
                    out.clear();
                    server = Server::default();
                    in_flight.resume(session, limits(receive_maximum));
                    in_flight.pump(&mut out);
                }
            }
            server.read(&mut out);
            prop_assert!(server.open.len() <= 10);
            prop_assert!(server.arrived.is_sorted(), "{:?}", server.arrived);
        }
        while !in_flight.is_empty() {
            server.read(&mut out);
            answer_one(&mut in_flight, &mut server, 0, &qos, &mut out);
            in_flight.pump(&mut out);
        }
        for receipt in &mut receipts {
            prop_assert_eq!(receipt.try_recv().unwrap(), Ok(Acknowledgement { reason: ReasonCode::SUCCESS }));
        }
    }
}

fn sent(
    in_flight: &mut InFlight,
    number: u64,
    out: &mut BytesMut,
) -> oneshot::Receiver<Result<Acknowledgement, PublishError>> {
    let (answer, receipt) = oneshot::channel();
    in_flight.send(publish(number, Qos::AtLeastOnce), answer, out);
    receipt
}

#[test]
fn a_session_that_goes_on_sees_the_same_identifiers_marked_as_repeats() {
    let mut in_flight = InFlight::new(4, limits(4));
    in_flight.resume(false, limits(4));
    let mut out = BytesMut::new();
    let _receipts: Vec<_> = (0..3)
        .map(|number| sent(&mut in_flight, number, &mut out))
        .collect();
    let mut before = Server::default();
    before.read(&mut out);
    in_flight.resume(true, limits(2));
    in_flight.pump(&mut out);
    let mut after = Server::default();
    after.read(&mut out);
    assert_eq!((after.arrived.clone(), after.dups), (vec![0, 1], 2));
    assert!(after.open.iter().all(|(id, message)| before.open[id] == *message));
    assert!(!in_flight.has_room() && in_flight.len() == 3);
}

#[test]
fn a_refusal_is_an_error_and_frees_its_place() {
    let mut in_flight = InFlight::new(1, limits(1));
    in_flight.resume(false, limits(1));
    let mut out = BytesMut::new();
    let mut receipt = sent(&mut in_flight, 0, &mut out);
    assert!(!in_flight.has_room());
    let id = NonZeroU16::MIN;
    in_flight
        .acknowledged(id, ReasonCode::QUOTA_EXCEEDED, "disk full".into())
        .unwrap();
    let error = receipt.try_recv().unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server refused the message: quota exceeded (0x97): disk full"
    );
    assert!(in_flight.has_room());
    assert_eq!(
        in_flight.acknowledged(id, ReasonCode::SUCCESS, String::new()),
        Err(Unexpected)
    );
    assert_eq!(in_flight.completed(NonZeroU16::MAX), Err(Unexpected));
}

#[test]
fn what_the_server_does_not_take_is_not_sent() {
    let mut in_flight = InFlight::new(1, limits(1));
    in_flight.resume(
        false,
        Limits {
            max_packet_size: 10,
            ..limits(1)
        },
    );
    let mut out = BytesMut::new();
    let mut receipt = sent(&mut in_flight, 0, &mut out);
    assert!(matches!(
        receipt.try_recv().unwrap(),
        Err(PublishError::TooLarge { max: 10, .. })
    ));
    assert!(out.is_empty() && in_flight.is_empty() && in_flight.has_room());
}
