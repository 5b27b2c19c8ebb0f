//! What the cloud knows of assets before they send anything, and after they are gone.

use super::{proxy::Proxy, *};

/// Names of the assets that the cloud lists, with whether the edge has them still.
async fn listed(cloud: &Running) -> Vec<(String, bool)> {
    let assets = cloud.get("/api/assets").await;
    let items = assets["items"].as_array().unwrap().iter();
    let named = items.map(|item| {
        (
            item["name"].as_str().unwrap().to_owned(),
            item["declared"] == true,
        )
    });
    named.collect()
}

fn has(name: &str) -> (String, bool) {
    (name.to_owned(), true)
}

#[tokio::test]
async fn assets_are_known_before_they_send_anything_and_forgotten_when_they_are_gone() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let known = assets(&["capper", "filler"]);
    let address = cloud.handle.edge_link_address();
    let sink = plant.link_with(&cloud, address, |_, surroundings| {
        surroundings.assets = known.clone()
    });
    until(async || listed(&cloud).await == [has("capper"), has("filler")]).await;
    let filler = cloud.get("/api/assets/bottling/filler").await;
    let description = &filler["description"];
    assert_eq!(
        (
            &description["displayName"],
            &description["actionGroups"][0]["actions"][0]["name"]
        ),
        (&json!("the filler"), &json!("start"))
    );

    deliver_surely(&sink, Lane::Live, &outputs(1, 1)).await;
    known.remove("bottling", "capper");
    known.remove("bottling", "filler");
    known.set(asset("labeller"));
    let gone = ("filler".to_owned(), false);
    until(async || listed(&cloud).await == [gone.clone(), has("labeller")]).await;
    let filler = cloud.get("/api/assets/bottling/filler").await;
    assert_eq!(filler["points"][0]["value"], 1, "its history stays");
    let start = "/api/assets/bottling/filler/commands/control/start";
    let (status, answer) = cloud.post(start, &json!({})).await;
    assert_eq!((status, &answer["code"]), (404, &json!("NotFound")), "{answer}");
    cloud.stop().await;
}

#[tokio::test]
async fn half_a_plan_takes_nothing_away_and_a_broken_link_loses_no_change() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let proxy = Proxy::to(cloud.handle.edge_link_address()).await;
    let first = plant.link_with(&cloud, proxy.address, |_, surroundings| {
        surroundings.assets = assets(&["capper", "filler"]);
    });
    until(async || listed(&cloud).await == [has("capper"), has("filler")]).await;
    drop(first);

    // The process starts anew, and its plan arrives asset by asset.
    let known = Assets::default();
    known.set(asset("filler"));
    let sink = plant.link_with(&cloud, proxy.address, |_, surroundings| {
        surroundings.assets = known.clone()
    });
    deliver_surely(&sink, Lane::Live, &outputs(1, 1)).await;
    assert_eq!(listed(&cloud).await, [has("capper"), has("filler")]);
    proxy.cut();
    known.set(asset("palletiser"));
    known.complete();
    until(async || listed(&cloud).await == [has("filler"), has("palletiser")]).await;
    cloud.stop().await;
}
