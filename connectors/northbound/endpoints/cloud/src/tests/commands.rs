use super::*;

const START: &str = "/api/assets/bottling/filler/commands/control/start";

#[tokio::test]
async fn commands_that_can_not_be_carried_out_are_answered_at_once_and_audited() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let (status, answer) = cloud.post(START, &json!({})).await;
    assert_eq!((status, &answer["code"]), (404, &json!("NotFound")));

    let sink = plant.link(&cloud, cloud.handle.edge_link_address());
    deliver_surely(&sink, Lane::Live, &outputs(1, 1)).await;
    // Connected, but no broker of the namespace is known to the relay.
    let (status, answer) = cloud
        .post(START, &json!({ "input": { "speed": 5 }, "timeout": 20 }))
        .await;
    assert_eq!(
        (status, &answer["code"]),
        (503, &json!("Unavailable")),
        "{answer}"
    );
    assert!(
        answer["detail"]
            .as_str()
            .unwrap()
            .contains("no broker of namespace \"bottling\""),
        "{answer}"
    );

    drop(sink);
    until(async || cloud.get("/api/edges").await["items"][0]["connected"] == json!(false)).await;
    let (status, answer) = cloud.post(START, &json!({ "timeout": 600 })).await;
    assert_eq!((status, &answer["code"]), (503, &json!("Unavailable")));
    assert!(
        answer["detail"].as_str().unwrap().contains("not connected"),
        "{answer}"
    );

    let audit = cloud.get("/api/audit").await;
    let outcomes: Vec<_> = audit["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["outcome"].clone())
        .collect();
    assert_eq!(
        outcomes,
        [json!("Unavailable"), json!("Unavailable"), json!("NotFound")]
    );
    assert_eq!(audit["items"][1]["input"], json!({ "speed": 5 }));
    cloud.stop().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_told_what_is_allowed() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let address = cloud.handle.http_address();
    let (status, answer) = http(address, "a-wrong-token-of-the-api", "GET", "/api/edges", "").await;
    assert_eq!(
        (status, &answer["code"], &answer["status"]),
        (401, &json!("Unauthorized"), &json!(401))
    );
    for (method, path, body, expected, part) in [
        ("GET", "/api/nothing", "", 404, "nothing at this address"),
        ("GET", "/api/assets/a/b", "", 404, "no asset a/b"),
        ("GET", "/api/assets?limt=5", "", 400, "unknown field `limt`"),
        ("GET", "/api/assets?limit=0", "", 400, "1 to 10000 are allowed"),
        ("GET", "/api/assets/a/b/values?from=yesterday", "", 400, "from"),
        ("GET", "/api/assets/a/b/values?after=x", "", 400, "not a `next`"),
        ("DELETE", "/api/edges", "", 405, "another method"),
        ("POST", START, "{", 400, "JSON"),
        ("POST", START, r#"{"timeout":-1}"#, 400, "at most 600 are allowed"),
        ("POST", START, r#"{"inptu":1}"#, 400, "unknown field `inptu`"),
        (
            "POST",
            START,
            r#"{"idempotencyKey":"a/b"}"#,
            400,
            "idempotencyKey",
        ),
    ] {
        let (status, answer) = cloud.http(method, path, body).await;
        assert_eq!(status, expected, "{method} {path} {body}: {answer}");
        assert!(
            answer["detail"].as_str().unwrap().contains(part),
            "{method} {path} {body}: {answer}"
        );
    }
    cloud.stop().await;
}
