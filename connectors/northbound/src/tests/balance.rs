//! Whatever a sink and a broker do, every entry is settled exactly once and the ledger balances.

use std::{collections::BTreeMap, time::Duration};

use foreshore_record::Outcome;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::plant::{Answer, Plant, all_delivered, line, path, until};
use crate::{Delivery, SinkError};

const RECORDS: u32 = 400;

/// An answer drawn at random.
fn answer(random: &mut StdRng) -> Answer {
    match random.random_range(0..10) {
        0 => Box::new(|_| Err(SinkError::retryable("Unreachable", "lost"))),
        1 => Box::new(|_| {
            Err(SinkError::Rejected {
                cause: "refused".to_owned(),
            })
        }),
        2 => {
            let nth = random.random_range(1..5);
            Box::new(move |batch| {
                let judge = |at: usize| match at % nth {
                    0 => Delivery::DeadLetter {
                        reason: "unwanted".to_owned(),
                    },
                    _ => Delivery::Delivered,
                };
                Ok((0..batch.outputs.len()).map(judge).collect())
            })
        }
        _ => Box::new(all_delivered),
    }
}

async fn torment(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut plant = Plant::new().await;
    let mut spec = line(json!([
        { "name": "some", "filter": { "expression": "payload % 7 != 0" } },
        { "name": "fail", "map": { "fields": [{ "output": "v", "expression": "100 / (payload % 5)" }] } },
        { "name": "twice", "inputs": ["fail"], "filter": { "expression": "payload.v > 40" } },
    ]));
    spec["sinks"][0]["inputs"] = json!(["fail", "twice"]);
    spec["delivery"]["maxInflight"] = json!(random.random_range(1..6));
    let script = plant.scripts.of("out");
    script.next.lock().extend((0..60).map(|_| answer(&mut random)));
    plant.flow(spec.clone()).await.expect("flow");
    for n in 0..RECORDS {
        plant.publish("out", n);
        if n % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..10))).await;
            match random.random_range(0..4) {
                0 => {
                    plant.paths.set_unavailable(Some("away"));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    plant.paths.set_unavailable(None);
                }
                1 => plant.paths.lose_answers(true),
                2 => {
                    spec["delivery"]["batch"]["maxRecords"] = json!(random.random_range(1..40));
                    plant.flow(spec.clone()).await.expect("edit");
                }
                _ => plant.paths.lose_answers(false),
            }
        }
    }
    plant.paths.lose_answers(false);
    until("settlement", || plant.ledger("out").waiting == 0).await;

    let ledger = plant.ledger("out");
    assert!(ledger.balances(), "seed {seed}: {ledger:?}");
    assert_eq!(ledger.received, u64::from(RECORDS), "seed {seed}");
    let settled = plant.paths.settled(&path("out"));
    let mut times: BTreeMap<u64, u32> = BTreeMap::new();
    for settlement in &settled {
        *times.entry(settlement.id).or_default() += 1;
    }
    assert_eq!(times.len(), RECORDS as usize, "seed {seed}");
    assert!(times.values().all(|times| *times == 1), "seed {seed}");
    // What is settled as delivered was acknowledged, with every output.
    let received = script.received.lock().clone();
    for settlement in settled
        .iter()
        .filter(|settlement| settlement.outcome == Outcome::Delivered)
    {
        for index in 0..settlement.emitted {
            let held = received
                .iter()
                .any(|output| output.id == settlement.id && output.index == index);
            assert!(
                held,
                "seed {seed}: output {index} of {} was never acknowledged",
                settlement.id
            );
        }
    }
    plant.end().await;
}

#[tokio::test]
async fn every_entry_is_settled_once_under_random_failures() {
    for seed in 0..8 {
        torment(seed).await;
    }
}
