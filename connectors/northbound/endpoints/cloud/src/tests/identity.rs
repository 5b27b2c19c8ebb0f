use super::*;

/// Why a sink can't deliver, once that is known for sure.
async fn fatal(sink: &CloudSink) -> &'static str {
    let waiting = async {
        loop {
            if let Err(SinkError::Fatal { reason, .. }) = sink.probe().await {
                return reason;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap()
}

#[tokio::test]
async fn a_certificate_is_renewed_while_data_flows() {
    let plant = Plant::new();
    let mut options = plant.options();
    options.certificate_lifetime = Duration::from_secs(6);
    let cloud = Running::start(options).await;
    let sink = plant.link(&cloud, cloud.handle.edge_link_address());
    let ends_at = async || {
        let edges = cloud.get("/api/edges").await;
        let ends_at = edges["items"][0]["certificateEndsAt"]
            .as_str()
            .unwrap()
            .parse::<Timestamp>()
            .unwrap();
        (ends_at, edges["items"][0]["connectedAt"].clone())
    };
    deliver_surely(&sink, Lane::Live, &outputs(1, 10)).await;
    let (first, since) = ends_at().await;
    let mut next = 11;
    // Twice the life of the first certificate, without a delivery that fails.
    while Timestamp::now() < first + Duration::from_secs(6) {
        let delivered = deliver(&sink, Lane::Live, &outputs(next, next + 9)).await;
        assert_eq!(delivered, Ok(vec![Delivery::Delivered; 10]));
        next += 10;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (last, still_since) = ends_at().await;
    assert!(last > first);
    assert_eq!(still_since, since, "the stream was not opened anew");
    assert_eq!(cloud.counts().await, (next - 1, 0));
    cloud.stop().await;
}

#[tokio::test]
async fn an_edge_that_was_off_for_longer_than_its_certificate_renews_by_its_key() {
    let plant = Plant::new();
    let mut options = plant.options();
    options.certificate_lifetime = Duration::from_secs(3);
    let cloud = Running::start(options).await;
    let address = cloud.handle.edge_link_address();
    let sink = plant.link(&cloud, address);
    deliver_surely(&sink, Lane::Live, &outputs(1, 10)).await;
    drop(sink);
    // The token is gone, so that only the key can help.
    cloud.handle.set_join_tokens(&[]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let sink = plant.link(&cloud, address);
    deliver_surely(&sink, Lane::Live, &outputs(11, 20)).await;
    assert_eq!(cloud.counts().await, (20, 0));
    cloud.stop().await;
}

#[tokio::test]
async fn a_revoked_edge_is_cut_off_until_a_new_token_admits_it() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let address = cloud.handle.edge_link_address();
    let sink = plant.link(&cloud, address);
    deliver_surely(&sink, Lane::Live, &outputs(1, 10)).await;
    assert_eq!(cloud.post("/api/edges/plant/revoke", &json!({})).await.0, 204);
    assert_eq!(fatal(&sink).await, "EdgeRevoked");
    assert_eq!(cloud.post("/api/edges/nobody/revoke", &json!({})).await.0, 404);
    drop(sink);

    // The token that it used does not help, not even another edge directory with a new key.
    let elsewhere = TempDir::new().unwrap();
    let sink = plant.link_with(&cloud, address, |_, surroundings| {
        surroundings.data_directory = Some(elsewhere.path().to_owned());
    });
    assert_eq!(fatal(&sink).await, "JoinTokenUsed");
    drop(sink);
    let new = "another-token-of-the-plant";
    let token = JoinToken {
        edge: "plant".to_owned(),
        token: Secret::new(new),
        expires_at: None,
    };
    cloud.handle.set_join_tokens(&[token]).await.unwrap();
    let sink = plant.link_with(&cloud, address, |setup, surroundings| {
        let mut secrets = BTreeMap::clone(&setup.secrets.0);
        let data = BTreeMap::from([("token".to_owned(), SecretValue(new.as_bytes().to_vec()))]);
        secrets.get_mut("join").unwrap().data = data;
        setup.secrets = Secrets(Arc::new(secrets));
        surroundings.data_directory = Some(elsewhere.path().to_owned());
    });
    deliver_surely(&sink, Lane::Live, &outputs(5, 20)).await;
    assert_eq!(cloud.counts().await, (20, 6));
    cloud.stop().await;
}

#[tokio::test]
async fn strangers_are_refused_with_the_reason() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let address = cloud.handle.edge_link_address();
    let with_token = |token: Option<JoinToken>| {
        let (cloud, plant) = (&cloud, &plant);
        async move {
            cloud.handle.set_join_tokens(token.as_slice()).await.unwrap();
            let elsewhere = TempDir::new().unwrap();
            let sink = plant.link_with(cloud, address, |_, surroundings| {
                surroundings.data_directory = Some(elsewhere.path().to_owned());
            });
            fatal(&sink).await
        }
    };
    let token = |edge: &str, expires_at| {
        Some(JoinToken {
            edge: edge.to_owned(),
            token: Secret::new(TOKEN),
            expires_at,
        })
    };
    assert_eq!(with_token(None).await, "JoinTokenUnknown");
    assert_eq!(with_token(token("other", None)).await, "JoinTokenForAnotherEdge");
    assert_eq!(
        with_token(token("plant", Some(Timestamp::UNIX_EPOCH))).await,
        "JoinTokenExpired"
    );

    let another = Plant::new();
    let stranger = Running::start(another.options()).await;
    let sink = another.link(&stranger, address);
    assert_eq!(fatal(&sink).await, "CertificateUntrusted");
    stranger.stop().await;
    cloud.stop().await;
}

#[tokio::test]
async fn a_cloud_that_was_set_up_anew_admits_the_edge_again() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let address = cloud.handle.edge_link_address();
    let sink = plant.link(&cloud, address);
    deliver_surely(&sink, Lane::Live, &outputs(1, 10)).await;
    drop(sink);
    cloud.stop().await;
    let mut options = plant.options();
    options.data_directory = plant.cloud.path().join("another");
    options.edge_link.address = address;
    let cloud = Running::start(options).await;
    // The endpoint's trust is that of the new authority; key and certificate are those of the old one.
    let sink = plant.link(&cloud, address);
    deliver_surely(&sink, Lane::Live, &outputs(1, 10)).await;
    assert_eq!(cloud.counts().await, (10, 0));
    cloud.stop().await;
}
