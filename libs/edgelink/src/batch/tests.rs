use foreshore_record::TopicName;

use super::*;

const LIMIT: usize = MAX_BATCH_BYTES;

fn output(id: u64, index: u32, payload: &str) -> Entry {
    let record = Record::new(TopicName::new("a/b").unwrap(), payload.to_owned());
    Entry {
        store_epoch: 7,
        id,
        index,
        record,
    }
}

fn header(body: &Body) -> proto::Batch {
    proto::Batch {
        codec: body.codec.to_proto(),
        length: body.length,
        crc: body.crc,
        ..proto::Batch::default()
    }
}

fn settles(first: u64, last: u64) -> Vec<Interval> {
    vec![Interval {
        store_epoch: 7,
        first,
        last,
    }]
}

#[test]
fn outputs_survive_either_codec_and_their_parts() {
    let outputs: Vec<Entry> = (1..=900)
        .map(|id| output(id, 0, &format!("{id:0>200}")))
        .collect();
    for codec in [Codec::None, Codec::Zstd] {
        let body = Body::encode(&outputs, codec).unwrap();
        let parts: Vec<Bytes> = body.parts().collect();
        assert!(
            parts
                .iter()
                .all(|part| !part.is_empty() && part.len() <= PART_BYTES)
        );
        assert_eq!(parts.len(), body.bytes.len().div_ceil(PART_BYTES));
        let joined = Bytes::from(parts.concat());
        assert_eq!(
            decode(&header(&body), joined, &settles(1, 900), LIMIT).unwrap(),
            outputs
        );
    }
    let (plain, packed) = (
        Body::encode(&outputs, Codec::None),
        Body::encode(&outputs, Codec::Zstd),
    );
    assert!(packed.unwrap().bytes.len() * 4 < plain.unwrap().bytes.len());
}

#[test]
fn damage_is_found_whatever_bit_it_hits() {
    let body = Body::encode(
        &[output(1, 0, "temperature"), output(2, 0, "pressure")],
        Codec::None,
    )
    .unwrap();
    for bit in 0..body.bytes.len() * 8 {
        let mut damaged = body.bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = decode(&header(&body), damaged.into(), &settles(1, 2), LIMIT).unwrap_err();
        assert!(matches!(error, BodyError::Checksum { .. }), "bit {bit}: {error}");
    }
    let cut = body.bytes.slice(..body.bytes.len() - 1);
    assert!(matches!(
        decode(&header(&body), cut, &settles(1, 2), LIMIT),
        Err(BodyError::TooLarge { .. })
    ));
}

#[test]
fn a_bomb_takes_no_more_memory_than_was_allowed() {
    let zeros = vec![0; 64 << 20];
    let bomb = Bytes::from(zstd::bulk::compress(&zeros, 1).unwrap());
    assert!(bomb.len() < 10_000);
    let mut header = header(&Body {
        bytes: bomb.clone(),
        codec: Codec::Zstd,
        length: 4096,
        crc: 0,
    });
    let error = decode(&header, bomb.clone(), &settles(1, 1), LIMIT).unwrap_err();
    assert!(matches!(error, BodyError::Compression { .. }), "{error}");
    header.length = u32::MAX;
    let error = decode(&header, bomb, &settles(1, 1), LIMIT).unwrap_err();
    assert_eq!(
        error,
        BodyError::TooLarge {
            found: u64::from(u32::MAX),
            allowed: LIMIT as u64
        }
    );
}

#[test]
fn many_tiny_entries_are_counted_while_they_are_read() {
    // Two bytes each: an entry without content.
    let plain = Bytes::from([0x0a, 0x00].repeat(1 << 20));
    let body = Body {
        length: plain.len() as u32,
        crc: crc32fast::hash(&plain),
        bytes: plain,
        codec: Codec::None,
    };
    let error = decode(&header(&body), body.bytes.clone(), &settles(1, 1), LIMIT).unwrap_err();
    assert_eq!(error, BodyError::NoRecord { id: 0, index: 0 });

    let outputs: Vec<Entry> = (0..=MAX_OUTPUTS)
        .map(|index| output(1, index as u32, ""))
        .collect();
    assert_eq!(
        Body::encode(&outputs, Codec::None),
        Err(BodyError::TooManyOutputs)
    );
    assert_eq!(Body::encode::<Record>(&[], Codec::None), Err(BodyError::Empty));
}

#[test]
fn outputs_must_be_in_place_and_settled() {
    let cases: [(&[Entry], Vec<Interval>); 6] = [
        (&[output(1, 1, "")], settles(1, 1)),
        (&[output(1, 0, ""), output(1, 2, "")], settles(1, 1)),
        (&[output(1, 0, ""), output(1, 0, "")], settles(1, 1)),
        (&[output(2, 0, ""), output(1, 0, "")], settles(1, 2)),
        (&[output(3, 0, "")], settles(1, 2)),
        (
            &[output(1, 0, "")],
            vec![Interval {
                store_epoch: 8,
                first: 1,
                last: 1,
            }],
        ),
    ];
    for (outputs, settles) in cases {
        let body = Body::encode(outputs, Codec::Zstd).unwrap();
        let error = decode(&header(&body), body.bytes.clone(), &settles, LIMIT).unwrap_err();
        assert!(matches!(error, BodyError::Order { .. }), "{outputs:?}: {error}");
    }
    // An entry can have several outputs, and an epoch can follow another with smaller ids.
    let outputs = [
        output(5, 0, ""),
        output(5, 1, ""),
        Entry {
            store_epoch: 8,
            ..output(1, 0, "")
        },
    ];
    let settles = [
        Interval {
            store_epoch: 7,
            first: 1,
            last: 9,
        },
        Interval {
            store_epoch: 8,
            first: 1,
            last: 3,
        },
    ];
    let body = Body::encode(&outputs, Codec::Zstd).unwrap();
    assert_eq!(
        decode(&header(&body), body.bytes.clone(), &settles, LIMIT).unwrap(),
        outputs
    );
}

#[test]
fn codecs_and_fields_that_are_not_known() {
    let body = Body::encode(&[output(1, 0, "x")], Codec::None).unwrap();
    let other = proto::Batch {
        codec: 77,
        ..header(&body)
    };
    let error = decode(&other, body.bytes.clone(), &settles(1, 1), LIMIT).unwrap_err();
    assert_eq!(error, BodyError::Codec { found: 77 });

    // A field of a later version is skipped.
    let newer = Bytes::from([&[0x10, 0x05][..], &body.bytes].concat());
    let body = Body {
        length: newer.len() as u32,
        crc: crc32fast::hash(&newer),
        bytes: newer,
        codec: Codec::None,
    };
    assert_eq!(
        decode(&header(&body), body.bytes.clone(), &settles(1, 1), LIMIT)
            .unwrap()
            .len(),
        1
    );

    // A length beyond the end.
    let short = Bytes::from_static(&[0x0a, 0x7f, 0x00]);
    let body = Body {
        length: 3,
        crc: crc32fast::hash(&short),
        bytes: short,
        codec: Codec::None,
    };
    let error = decode(&header(&body), body.bytes.clone(), &settles(1, 1), LIMIT).unwrap_err();
    assert_eq!(error, BodyError::CutShort);
}
