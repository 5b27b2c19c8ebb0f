use std::sync::atomic::Ordering;

use super::{proxy::Proxy, *};

#[tokio::test]
async fn what_is_acknowledged_is_in_the_ledger_the_registry_and_the_history() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let sink = plant.link(&cloud, cloud.handle.edge_link_address());
    for lane in Lane::ALL {
        let first = 100 * lane as u64 + 1;
        let deliveries = deliver_surely(&sink, lane, &outputs(first, first + 99)).await;
        assert_eq!(deliveries, vec![Delivery::Delivered; 100]);
    }
    assert_eq!(cloud.counts().await, (400, 0));
    assert_eq!(
        deliver_surely(&sink, Lane::Live, &outputs(50, 149)).await.len(),
        100
    );
    assert_eq!(cloud.counts().await, (400, 100));

    let asset = cloud.get("/api/assets/bottling/filler").await;
    assert_eq!(
        (&asset["edge"], &asset["points"][0]["value"]),
        (&json!("plant"), &json!(400))
    );
    let values = cloud
        .get("/api/assets/bottling/filler/values?from=2023-11-14T22:13:30Z&limit=3&point=speed")
        .await;
    let found: Vec<_> = values["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["value"].clone())
        .collect();
    assert_eq!(found, [json!(10), json!(11), json!(12)]);
    let next = values["next"].as_str().unwrap();
    let values = cloud
        .get(&format!(
            "/api/assets/bottling/filler/values?after={next}&limit=1"
        ))
        .await;
    assert_eq!(values["items"][0]["value"], json!(13));
    let edges = cloud.get("/api/edges").await;
    assert_eq!(
        (&edges["items"][0]["name"], &edges["items"][0]["connected"]),
        (&json!("plant"), &json!(true))
    );
    cloud.stop().await;
}

#[tokio::test]
async fn a_batch_whose_acknowledgement_is_lost_is_kept_once() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let proxy = Proxy::to(cloud.handle.edge_link_address()).await;
    let sink = Arc::new(plant.link(&cloud, proxy.address));
    deliver_surely(&sink, Lane::Live, &outputs(1, 10)).await;

    proxy.conditions.is_mute.store(true, Ordering::Relaxed);
    let lost = {
        let sink = Arc::clone(&sink);
        tokio::spawn(async move { deliver(&sink, Lane::Live, &outputs(11, 20)).await })
    };
    until(async || cloud.counts().await == (20, 0)).await;
    proxy.cut();
    assert!(matches!(lost.await.unwrap(), Err(SinkError::Retryable { .. })));
    proxy.conditions.is_mute.store(false, Ordering::Relaxed);

    let deliveries = deliver_surely(&sink, Lane::Backlog, &outputs(11, 25)).await;
    assert_eq!(deliveries, vec![Delivery::Delivered; 15]);
    assert_eq!(cloud.counts().await, (25, 10));
    cloud.stop().await;
}

#[tokio::test]
async fn a_cloud_that_was_away_is_found_again_with_what_it_had() {
    let plant = Plant::new();
    let mut options = plant.options();
    let cloud = Running::start(options.clone()).await;
    let address = cloud.handle.edge_link_address();
    let sink = plant.link(&cloud, address);
    deliver_surely(&sink, Lane::Live, &outputs(1, 10)).await;
    cloud.stop().await;

    let error = deliver(&sink, Lane::Live, &outputs(11, 20)).await.unwrap_err();
    assert!(matches!(error, SinkError::Retryable { .. }), "{error:?}");
    options.edge_link.address = address;
    let cloud = Running::start(options).await;
    deliver_surely(&sink, Lane::Live, &outputs(5, 20)).await;
    assert_eq!(cloud.counts().await, (20, 6));
    cloud.stop().await;
}

#[tokio::test]
async fn an_alarm_overtakes_a_backlog_on_a_slow_uplink() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let proxy = Proxy::to(cloud.handle.edge_link_address()).await;
    let sink = Arc::new(plant.link(&cloud, proxy.address));
    deliver_surely(&sink, Lane::Live, &outputs(1, 1)).await;
    // Eight batches that can't be compressed: half a minute of this uplink.
    proxy.conditions.uplink.store(64 << 10, Ordering::Relaxed);
    let backlog: Vec<_> = (0..8)
        .map(|number| {
            let sink = Arc::clone(&sink);
            let mut state = 0x9e37_79b9_7f4a_7c15_u64 + number;
            let noise = (0..256 << 10).map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            });
            let noise: Vec<u8> = noise.collect();
            tokio::spawn(async move {
                let topic = TopicName::new("foreshore/streams/bottling/filler/camera").unwrap();
                let record = Arc::new(Record::new(topic, noise));
                let output = Output {
                    store_epoch: 7,
                    id: 1000 + number,
                    index: 0,
                    attempt: 0,
                    record,
                };
                deliver_surely(&sink, Lane::Backlog, &[output]).await;
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    deliver_surely(&sink, Lane::Alarm, &outputs(2, 2)).await;
    let left = backlog.iter().filter(|task| !task.is_finished()).count();
    assert!(
        left >= 4,
        "only {left} batches of the backlog were left when the alarm had arrived"
    );
    proxy.conditions.uplink.store(0, Ordering::Relaxed);
    for task in backlog {
        task.await.unwrap();
    }
    assert_eq!(cloud.counts().await, (10, 0));
    cloud.stop().await;
}

#[tokio::test]
async fn what_is_larger_than_the_credit_goes_and_what_is_too_large_is_told() {
    let plant = Plant::new();
    let mut options = plant.options();
    options.link.lane_credit = 64 << 10;
    options.link.max_batch_bytes = 1 << 20;
    options.link.max_record_bytes = 600 << 10;
    let cloud = Running::start(options).await;
    let sink = plant.link_with(&cloud, cloud.handle.edge_link_address(), |setup, _| {
        let endpoint = setup.endpoint.spec.cloud.as_mut().unwrap();
        endpoint.compression = Some(foreshore_crds::v1alpha1::dataflow_endpoint::Compression::None);
    });
    let picture = |id, bytes| {
        let topic = TopicName::new("foreshore/streams/bottling/filler/camera").unwrap();
        let record = Arc::new(Record::new(topic, vec![b'x'; bytes]));
        [Output {
            store_epoch: 7,
            id,
            index: 0,
            attempt: 0,
            record,
        }]
    };
    let delivered = deliver_surely(&sink, Lane::Bulk, &picture(1, 500 << 10)).await;
    assert_eq!(delivered, [Delivery::Delivered]);
    let refused = deliver_surely(&sink, Lane::Bulk, &picture(2, 700 << 10)).await;
    assert!(
        matches!(&refused[..], [Delivery::DeadLetter { reason }] if reason.contains("614400 are allowed"))
    );
    let error = deliver(&sink, Lane::Bulk, &picture(3, 2 << 20))
        .await
        .unwrap_err();
    assert!(matches!(error, SinkError::Rejected { .. }), "{error:?}");
    assert_eq!(cloud.counts().await, (1, 0));
    cloud.stop().await;
}

#[tokio::test]
async fn a_full_store_acknowledges_nothing_and_says_why() {
    let plant = Plant::new();
    let mut options = plant.options();
    options.history.limit_bytes = Some(400 << 10);
    let cloud = Running::start(options.clone()).await;
    let address = cloud.handle.edge_link_address();
    let sink = plant.link(&cloud, address);
    let mut first = 1;
    let error = loop {
        match deliver(&sink, Lane::Live, &outputs(first, first + 499)).await {
            Ok(_) => first += 500,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("the store is full"), "{error}");
    assert_eq!(cloud.counts().await, (first - 1, 0));
    cloud.stop().await;

    options.history.limit_bytes = None;
    options.edge_link.address = address;
    let cloud = Running::start(options).await;
    deliver_surely(&sink, Lane::Live, &outputs(first, first + 499)).await;
    assert_eq!(cloud.counts().await, (first + 499, 0));
    cloud.stop().await;
}
