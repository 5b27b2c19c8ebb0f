use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[a-zA-Z0-9/äß€ ]{1,12}").unwrap()
}

fn properties() -> impl Strategy<Value = Properties> {
    (
        prop::option::of(text()),
        any::<bool>(),
        any::<Option<u32>>(),
        prop::option::of(text()),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..9)),
        prop::collection::vec((text(), text()), 0..4),
    )
        .prop_map(
            |(content_type, payload_is_utf8, expiry_seconds, response_topic, data, user)| Properties {
                content_type,
                payload_is_utf8,
                expiry_seconds,
                response_topic,
                correlation_data: data.map(Payload::from),
                user,
            },
        )
}

fn record() -> impl Strategy<Value = Record> {
    let number = (text(), any::<u64>(), any::<u64>()).prop_map(|(source, epoch, sequence)| SourceNumber {
        source,
        epoch,
        sequence,
    });
    let time = (-100_000_000_000_i64..100_000_000_000, 0..1_000_000_000)
        .prop_map(|(second, nanosecond)| Timestamp::new(second, nanosecond).unwrap());
    (
        text(),
        prop::collection::vec(any::<u8>(), 0..64),
        0_u8..3,
        any::<bool>(),
        properties(),
        prop::option::of(number),
        prop::option::of(time),
    )
        .prop_map(
            |(topic, payload, qos, retain, properties, number, ingested_at)| Record {
                topic: TopicName::new(topic).unwrap(),
                payload: payload.into(),
                qos: qos.try_into().unwrap(),
                retain,
                properties,
                number,
                ingested_at,
            },
        )
}

fn flags() -> impl Strategy<Value = EntryFlags> {
    (0_u8..3, any::<bool>(), prop::collection::vec(any::<u32>(), 0..4)).prop_map(
        |(qos, retain, subscription_identifiers)| EntryFlags {
            qos: qos.try_into().unwrap(),
            retain,
            subscription_identifiers,
        },
    )
}

proptest! {
    #[test]
    fn entries_survive_their_row(
        record in record(),
        flags in flags(),
        size: u32,
        ingested_at: u64,
        expires_at in prop::option::of(0..u64::MAX),
        references: u32,
        topic: Option<u64>,
    ) {
        let (ingested_at, expires_at) = (BrokerTime(ingested_at), expires_at.map(BrokerTime));
        let size = size % 1000;
        let fields = EntryFields { flags: &flags, size, ingested_at, expires_at, topic };
        let inline = fields.with_record(&record);
        let expected = EntryRow {
            flags: flags.clone(),
            size,
            ingested_at,
            expires_at,
            body: BodyOf::Inline(Arc::new(record)),
        };
        prop_assert_eq!(&EntryRow::decode(&inline).unwrap(), &expected);
        let head = EntryHead { size, ingested_at, expires_at, references: None, topic };
        prop_assert_eq!(EntryHead::decode(&inline).unwrap(), head);

        let shared = fields.with_reference(references);
        let expected = EntryRow { body: BodyOf::Shared { references }, ..expected };
        prop_assert_eq!(EntryRow::decode(&shared).unwrap(), expected);
        let head = EntryHead { references: Some(references), ..head };
        prop_assert_eq!(EntryHead::decode(&shared).unwrap(), head);
    }

    #[test]
    fn records_survive_their_rows(record in record(), flags in flags(), id: u64, at: u64) {
        prop_assert_eq!(&decode_body(&encode_body(&record)).unwrap(), &record);
        let record = Arc::new(record);
        let at = BrokerTime(at);
        let retained = Retained { id, record: Arc::clone(&record), ingested_at: at, expires_at: None };
        prop_assert_eq!(decode_retained(&encode_retained(id, at, None, &record)).unwrap(), retained);
        let letter = DeadLetter {
            id,
            store_epoch: id.rotate_left(32),
            stage: "sink".to_owned(),
            reason: "404".to_owned(),
            attempts: 5,
            at,
            flags,
            record,
        };
        prop_assert_eq!(decode_dead_letter(id, &encode_dead_letter(&letter)).unwrap(), letter);
    }

    #[test]
    fn damaged_rows_are_refused(record in record(), position: prop::sample::Index, cut: prop::sample::Index) {
        let row = encode_body(&record).to_vec();
        let mut flipped = row.clone();
        flipped[position.index(row.len())] ^= 0x10;
        prop_assert!(decode_body(&flipped).is_err());
        prop_assert!(decode_body(&row[..cut.index(row.len())]).is_err());
    }
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let reason = "ä".repeat(MAX_CAUSE_LEN);
    assert_eq!(cut(&reason).len(), MAX_CAUSE_LEN);
    assert!(cut(&format!("x{reason}")).ends_with('ä'));
}
