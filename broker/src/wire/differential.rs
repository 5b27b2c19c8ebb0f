//! What is read here beside what another codec reads of the same bytes: `mqtt-proto`, which shares no code with ours nor
//! with the codec that ours is built on.
//!
//! - What ours takes, the other takes too, and has read the same.
//! - What ours refuses, the other refuses too, or writes otherwise than it was.
//! - Or the reason is one of [`STRICTER`] or [`LAXER`].
//!
//! Which codec is right where they differ, a person decides, with the standard.

mod make;
mod ours;
mod theirs;

use std::collections::BTreeMap;

use rand::{SeedableRng, rngs::StdRng};

use self::make::Made;

/// Packets that are compared; a hundred times as many in the full tests.
const PACKETS: usize = 60_000;

/// What ours demands and the other does not.
const STRICTER: [&str; 13] = [
    // [MQTT-1.5.4-2]; the other looks for it in topics only.
    "text holds U+0000",
    // [MQTT-3.3.1-2]
    "DUP is set with quality of service 0",
    // [MQTT-4.7.1-2]
    "topic holds '+', which is not allowed there",
    // [MQTT-4.7.3-1]
    "topic is empty",
    // Section 3.3.2.1
    "neither topic nor alias is given",
    // [MQTT-3.3.2-8]
    "topic alias is 0",
    // Sections 3.1.2.11.3, 3.1.2.11.4 and 3.8.2.1.2
    "property is 0",
    // Section 3.1.2.11.10
    "authentication data is given without a method",
    // Section 3.15.2.2.2
    "AUTH names no authentication method",
    // [MQTT-3.1.2-13] and [MQTT-3.1.2-15] of version 3.1.1
    "will quality of service or retain is set without a will",
    // [MQTT-3.1.2-22] of version 3.1.1
    "password is given without a user name",
    // [MQTT-3.1.3-8] of version 3.1.1
    "client identifier is empty, which a clean session only may be",
    // Sections 3.4.2.1 to 3.7.2.1
    "reason code is not one of this packet",
];

/// What the other demands and ours does not.
const LAXER: [&str; 2] = [
    // Section 3.3.2.3.2 lets the receiver choose; who wants text is the subscriber, and it may look.
    "invalid payload format, utf8 expected",
    // Bad authentication method: the table of section 2.4 lets DISCONNECT say it, the one of section 3.14.2.1 does not.
    "invalid reason code `140` for packet `Disconnect`",
];

/// How often what was found.
#[derive(Debug, Default)]
struct Tally {
    both: BTreeMap<&'static str, usize>,
    neither: usize,
    differences: Vec<String>,
}

#[test]
fn another_codec_reads_the_same() {
    let full = std::env::var("FORESHORE_TEST_FULL").is_ok_and(|full| !full.is_empty());
    // Chosen by chance only where there is time to look at what chance finds.
    let seed = match std::env::var("FORESHORE_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) if full => rand::random(),
        Err(_) => 0,
    };
    eprintln!("FORESHORE_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    for _ in 0..if full { 100 * PACKETS } else { PACKETS } {
        tally.compare(&make::packet(&mut random));
        assert!(tally.differences.len() < 20, "{:#?}", tally.differences);
    }
    eprintln!("{tally:#?}");
    assert!(tally.differences.is_empty(), "{:#?}", tally.differences);
    // All of it was there to be compared.
    let kinds = [
        "connect",
        "publish",
        "ack",
        "subscribe",
        "unsubscribe",
        "disconnect",
        "auth",
        "ping",
    ];
    for kind in kinds {
        assert!(
            tally.both.get(kind).is_some_and(|count| *count > PACKETS / 400),
            "{kind}: {tally:#?}"
        );
    }
    assert!(tally.neither > PACKETS / 20, "{tally:#?}");
}

impl Tally {
    fn compare(&mut self, made: &Made) {
        let ours = ours::read(made);
        let theirs = theirs::read(made);
        let difference = match (&ours, &theirs) {
            (Ok(ours), Ok(theirs)) if *ours == theirs.content => {
                *self.both.entry(made.kind).or_default() += 1;
                return;
            }
            (Err(_), Err(_)) => {
                self.neither += 1;
                return;
            }
            (Err(refused), Ok(_)) if STRICTER.iter().any(|known| refused.starts_with(known)) => return,
            (Ok(_), Err(refused)) if LAXER.contains(&refused.as_str()) => return,
            (Err(_), Ok(theirs)) if theirs.size != made.bytes.len() => {
                self.neither += 1;
                return;
            }
            (Ok(_), Ok(_)) => "read otherwise",
            (Ok(_), Err(_)) => "taken by ours only",
            (Err(_), Ok(_)) => "refused by ours only",
        };
        self.differences.push(format!(
            "{difference}: {made:02x?}\n  ours {ours:?}\n  theirs {theirs:?}"
        ));
    }
}

/// A value of bytes, so that a person can read it.
fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}
