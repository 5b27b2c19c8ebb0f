use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use foreshore_control::queue::Paths as _;
use foreshore_record::{DropReason, Lane};
use serde_json::json;

use super::plant::{GENEROUS, Plant, all_delivered, line, path, quick, until};
use crate::{Capabilities, Delivery, SinkError};

#[tokio::test]
async fn records_go_through_stages_to_the_sink_and_the_ledger_tells_all() {
    let mut plant = Plant::new().await;
    plant
        .flow(line(json!([
            { "name": "some", "filter": { "expression": "payload.n % 2 == 0" } },
            { "name": "shape", "map": { "fields": [{ "output": "half", "expression": "10 / (payload.n - 4)" }] } },
        ])))
        .await
        .expect("flow");
    for n in 0..10 {
        plant.publish("out", format!(r#"{{"n":{n}}}"#));
    }
    plant.publish("out", "no json");
    until("settlement", || plant.ledger("out").waiting == 0).await;
    let ledger = plant.ledger("out");
    assert!(ledger.balances(), "{ledger:?}");
    assert_eq!(
        (ledger.received, ledger.delivered, ledger.dead_lettered),
        (11, 4, 2)
    );
    assert_eq!(ledger.dropped.get("filtered"), Some(&5));
    assert_eq!(ledger.emitted, Some(4));
    let letters = plant
        .paths
        .dead_letters(&path("out"), 0, 10)
        .await
        .expect("letters");
    let reasons: Vec<_> = letters
        .iter()
        .map(|l| (l.stage.as_str(), l.reason.as_str()))
        .collect();
    assert_eq!(reasons[0], ("shape", "half: division by zero"));
    assert_eq!(reasons[1].0, "some");
    assert!(reasons[1].1.starts_with("payload is not JSON"), "{reasons:?}");
    let mut received = plant.scripts.of("out").payloads();
    received.sort();
    assert_eq!(
        received,
        [
            r#"{"half":-2}"#,
            r#"{"half":-5}"#,
            r#"{"half":2}"#,
            r#"{"half":5}"#
        ]
    );
    plant.end().await;
}

#[tokio::test]
async fn dead_letters_can_be_replayed_after_the_stage_was_mended() {
    let mut plant = Plant::new().await;
    let stage = |expression: &str| {
        line(json!([{ "name": "shape", "map": { "fields": [{ "output": "v", "expression": expression }] } }]))
    };
    plant.flow(stage("payload.value")).await.expect("flow");
    plant.publish("out", r#"{"Value":7}"#);
    until("dead letter", || plant.ledger("out").dead_lettered == 1).await;
    plant.flow(stage("payload.Value")).await.expect("mended");
    let letters = plant
        .paths
        .dead_letters(&path("out"), 0, 10)
        .await
        .expect("letters");
    assert_eq!(plant.paths.replay(&path("out"), &[letters[0].id]).await, Ok(1));
    until("delivery", || {
        plant.scripts.of("out").payloads() == [r#"{"v":7}"#]
    })
    .await;
    plant.end().await;
}

#[tokio::test]
async fn a_slow_sink_stops_no_other() {
    let mut plant = Plant::new().await;
    let sinks = json!([
        { "name": "fast", "endpointRef": { "name": "files" } },
        { "name": "stuck", "endpointRef": { "name": "files" } },
    ]);
    *plant.scripts.of("stuck").slow.lock() = GENEROUS * 2;
    let spec = json!({ "source": { "topics": ["#"] }, "sinks": sinks, "delivery": quick() });
    plant.flow(spec).await.expect("flow");
    for n in 0..100 {
        plant.publish("fast", n);
        plant.publish("stuck", n);
    }
    until("delivery", || plant.ledger("fast").delivered == 100).await;
    assert_eq!(plant.ledger("stuck").delivered, 0);
    plant.end().await;
}

#[tokio::test]
async fn an_away_sink_loses_nothing_and_uses_up_no_tries() {
    let mut plant = Plant::new().await;
    let script = plant.scripts.of("out");
    script.set_away(true);
    plant.flow(line(json!([]))).await.expect("flow");
    for n in 0..50 {
        plant.publish("out", n);
    }
    until("probes", || script.probes.load(Ordering::Relaxed) > 8).await;
    assert_eq!(
        script.begun.load(Ordering::Relaxed),
        0,
        "nothing is read for a sink that is away"
    );
    script.set_away(false);
    until("delivery", || plant.ledger("out").delivered == 50).await;
    let ledger = plant.ledger("out");
    assert_eq!((ledger.dead_lettered, ledger.redelivered), (0, 0), "{ledger:?}");
    plant.end().await;
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_live_records_go_before_the_backlog() {
    let mut plant = Plant::new().await;
    let script = plant.scripts.of("out");
    plant.flow(line(json!([]))).await.expect("flow");
    plant.publish("out", "before");
    until("delivery", || plant.ledger("out").delivered == 1).await;
    script.set_away(true);
    for n in 0..500 {
        plant.publish("out", format!("old {n}"));
    }
    // Longer than the limit after which the boundary moves.
    tokio::time::sleep(Duration::from_secs(30)).await;
    *script.slow.lock() = Duration::from_millis(200);
    script.set_away(false);
    let probes = script.probes.load(Ordering::Relaxed);
    until("recovery", || script.probes.load(Ordering::Relaxed) > probes).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    for n in 0..5 {
        plant.publish("out", format!("new {n}"));
    }
    until("settlement", || plant.ledger("out").waiting == 0).await;
    let received = script.received.lock().clone();
    let last_new = received
        .iter()
        .rposition(|r| r.payload.starts_with("new"))
        .expect("new ones");
    let old_before = received
        .iter()
        .take(last_new)
        .filter(|r| r.payload.starts_with("old"))
        .count();
    assert!(
        old_before < 100,
        "{old_before} old records went before the new ones"
    );
    // The first one may have been published before the path was opened.
    for received in received.iter().filter(|received| received.payload != "before") {
        let lane = if received.payload.starts_with("old") {
            Lane::Backlog
        } else {
            Lane::Live
        };
        assert_eq!(received.lane, lane, "{received:?}");
    }
    let distinct: BTreeSet<_> = received.iter().map(|received| received.id).collect();
    assert_eq!(distinct.len(), 506);
    plant.end().await;
}

#[tokio::test]
async fn strict_order_holds_over_failures() {
    let mut plant = Plant::new().await;
    let script = plant.scripts.of("out");
    for _ in 0..5 {
        let refuse = |_: &crate::Batch<'_>| Err(SinkError::retryable("Unreachable", "lost"));
        script
            .next
            .lock()
            .extend([Box::new(all_delivered) as super::plant::Answer, Box::new(refuse)]);
    }
    plant.paths.create(&path("out"));
    for n in 0..60 {
        plant.publish("out", n);
    }
    let mut spec = line(json!([]));
    spec["delivery"]["maxInflight"] = json!(1);
    plant.flow(spec).await.expect("flow");
    for n in 60..100 {
        plant.publish("out", n);
    }
    until("delivery", || plant.ledger("out").delivered == 100).await;
    let expected: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(script.payloads(), expected);
    plant.end().await;
}

#[tokio::test]
async fn a_sink_is_given_no_more_than_it_takes() {
    let mut plant = Plant::new().await;
    let script = plant.scripts.of("out");
    *script.takes.lock() = Some(Capabilities {
        max_inflight: 1,
        max_outputs: 3,
        ..Capabilities::default()
    });
    *script.slow.lock() = Duration::from_millis(20);
    *script.usual.lock() = Some(Box::new(|batch| {
        assert!(batch.outputs.len() <= 3, "{}", batch.outputs.len());
        all_delivered(batch)
    }));
    plant.paths.create(&path("out"));
    for n in 0..30 {
        plant.publish("out", n);
    }
    plant.flow(line(json!([]))).await.expect("flow");
    for n in 30..60 {
        plant.publish("out", n);
    }
    until("delivery", || plant.ledger("out").delivered == 60).await;
    // Side by side, what happens now would have gone before what waited.
    let expected: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    assert_eq!(script.payloads(), expected);
    plant.end().await;
}

#[tokio::test]
async fn what_a_sink_drops_is_counted_as_dropped_by_its_reason() {
    let mut plant = Plant::new().await;
    let script = plant.scripts.of("out");
    *script.usual.lock() = Some(Box::new(|batch| {
        let judge = |output: &crate::Output| match &output.record.payload[..] {
            b"3" | b"4" => Delivery::Dropped {
                reason: DropReason::LOOP,
            },
            _ => Delivery::Delivered,
        };
        Ok(batch.outputs.iter().map(judge).collect())
    }));
    plant.paths.create(&path("out"));
    for n in 0..10 {
        plant.publish("out", n);
    }
    plant.flow(line(json!([]))).await.expect("flow");
    until("delivery", || plant.ledger("out").waiting == 0).await;
    let ledger = plant.ledger("out");
    assert!(ledger.balances() && ledger.delivered == 8, "{ledger:?}");
    assert_eq!(ledger.dropped.get(&DropReason::LOOP.to_string()), Some(&2));
    plant.end().await;
}

#[tokio::test]
async fn a_refused_batch_is_halved_until_the_culprit_is_alone() {
    let mut plant = Plant::new().await;
    let script = plant.scripts.of("out");
    *script.usual.lock() = Some(Box::new(|batch| {
        if batch
            .outputs
            .iter()
            .any(|output| &output.record.payload[..] == b"37")
        {
            return Err(SinkError::Rejected {
                cause: "constraint violated".to_owned(),
            });
        }
        all_delivered(batch)
    }));
    plant.flow(line(json!([]))).await.expect("flow");
    for n in 0..80 {
        plant.publish("out", n);
    }
    until("settlement", || plant.ledger("out").waiting == 0).await;
    let ledger = plant.ledger("out");
    assert_eq!((ledger.delivered, ledger.dead_lettered), (79, 1));
    let letters = plant
        .paths
        .dead_letters(&path("out"), 0, 10)
        .await
        .expect("letters");
    assert_eq!(&letters[0].record.payload[..], b"37");
    assert_eq!(
        (letters[0].stage.as_str(), letters[0].reason.as_str()),
        ("sink", "refused 5 times: constraint violated")
    );
    assert_eq!(script.payloads().len(), 79, "nothing was sent twice");
    plant.end().await;
}

#[tokio::test]
async fn what_a_sink_never_takes_is_a_dead_letter() {
    let mut plant = Plant::new().await;
    *plant.scripts.of("out").usual.lock() = Some(Box::new(|batch| {
        let judge = |output: &crate::Output| match output.record.payload.len() {
            1 => Delivery::Delivered,
            _ => Delivery::DeadLetter {
                reason: "too long".to_owned(),
            },
        };
        Ok(batch.outputs.iter().map(judge).collect())
    }));
    plant.flow(line(json!([]))).await.expect("flow");
    for n in 0..20 {
        plant.publish("out", n);
    }
    until("settlement", || plant.ledger("out").waiting == 0).await;
    let ledger = plant.ledger("out");
    assert_eq!((ledger.delivered, ledger.dead_lettered), (10, 10));
    plant.end().await;
}

#[tokio::test]
async fn a_crash_between_acknowledgement_and_settlement_repeats_and_loses_nothing() {
    let mut first = Plant::new().await;
    first.flow(line(json!([]))).await.expect("flow");
    let script = first.scripts.of("out");
    // The sink acknowledges, and the broker is gone before anything is settled.
    let broker = first.paths.clone();
    *script.usual.lock() = Some(Box::new(move |batch| {
        broker.set_unavailable(Some("power is off"));
        all_delivered(batch)
    }));
    for n in 0..10 {
        first.publish("out", n);
    }
    until("acknowledgement", || !script.payloads().is_empty()).await;
    let acknowledged = script.payloads();
    let paths = first.paths.clone();
    first.end().await;
    assert_eq!(paths.ledger(&path("out")).delivered, 0, "nothing was settled");

    paths.set_unavailable(None);
    let mut second = Plant::over(paths).await;
    second.flow(line(json!([]))).await.expect("flow");
    until("settlement", || second.ledger("out").waiting == 0).await;
    let received = second.scripts.of("out").payloads();
    assert!(
        acknowledged.iter().all(|payload| received.contains(payload)),
        "what was not settled is repeated"
    );
    let distinct: BTreeSet<_> = received.into_iter().collect();
    assert_eq!(distinct.len(), 10);
    let ledger = second.ledger("out");
    assert!(
        ledger.balances() && ledger.delivered == 10 && ledger.redelivered > 0,
        "{ledger:?}"
    );
    second.end().await;
}

#[tokio::test]
async fn a_fenced_runner_stops_and_the_later_one_goes_on() {
    let mut first = Plant::new().await;
    first.flow(line(json!([]))).await.expect("flow");
    first.publish("out", 1);
    until("delivery", || first.ledger("out").delivered == 1).await;
    let mut second = Plant::over(first.paths.clone()).await;
    second.flow(line(json!([]))).await.expect("flow");
    for n in 2..50 {
        second.publish("out", n);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    until("settlement", || second.ledger("out").waiting == 0).await;
    let closed = first.scripts.of("out");
    until("end of the first", || closed.closed.load(Ordering::Relaxed) == 1).await;
    let before = closed.payloads().len();
    second.publish("out", 50);
    until("delivery", || {
        second.scripts.of("out").payloads().contains(&"50".to_owned())
    })
    .await;
    assert_eq!(closed.payloads().len(), before);
    assert!(second.ledger("out").balances());
    first.end().await;
    second.end().await;
}

#[tokio::test]
async fn a_restart_of_the_broker_is_survived() {
    let mut plant = Plant::new().await;
    plant.flow(line(json!([]))).await.expect("flow");
    for round in 0..5 {
        for n in 0..20 {
            plant.publish("out", round * 100 + n);
        }
        plant.paths.set_unavailable(Some("restart"));
        plant.paths.restart();
        tokio::time::sleep(Duration::from_millis(20)).await;
        plant.paths.set_unavailable(None);
        let delivered = (round + 1) * 20;
        until("delivery", || plant.ledger("out").delivered == delivered).await;
    }
    let ledger = plant.ledger("out");
    assert!(ledger.balances() && ledger.dead_lettered == 0, "{ledger:?}");
    plant.end().await;
}
