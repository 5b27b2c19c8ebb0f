//! The state store as its clients see it.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use foreshore_broker::Limits;
use foreshore_crds::v1alpha1::BrokerPolicySpec;
use rmqtt_codec::{
    types::{Publish, QoS},
    v5,
};

use crate::{
    TestBroker,
    client::{Client, Client3, back, hello, publish},
    options_in, options_of_full_disk,
    protocol::will,
};

const REQUEST: &str = "statestore/v1/FA9AE35F-2F64-47CD-9BFF-08E2B32A0FE8/command/invoke";
const NOTIFICATIONS: &str = "clients/statestore/v1/FA9AE35F-2F64-47CD-9BFF-08E2B32A0FE8";

/// A client of the state store: requests, and the notifications that came between their answers.
struct Asker {
    client: Client,
    id: String,
    answers: String,
    count: u16,
    notified: Vec<Notification>,
}

#[derive(Debug)]
struct Answer {
    payload: String,
    user: HashMap<String, String>,
    message: Publish,
}

#[derive(Debug, PartialEq, Eq)]
struct Notification {
    key: String,
    payload: String,
    version: String,
}

fn hexadecimal(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02X}")).collect()
}

fn resp(arguments: &[&str]) -> Bytes {
    let mut out = format!("*{}\r\n", arguments.len());
    for argument in arguments {
        out += &format!("${}\r\n{argument}\r\n", argument.len());
    }
    out.into()
}

/// A client's time, so many seconds from now.
fn timestamp(ahead: i64) -> String {
    let now = jiff::Timestamp::now().as_millisecond() + ahead * 1000;
    format!("{now:015}:00000:client")
}

fn request(arguments: &[&str], response_topic: &str, correlation: u16, user: &[(&str, &str)]) -> Publish {
    let properties = v5::PublishProperties {
        response_topic: Some(response_topic.into()),
        correlation_data: Some(Bytes::copy_from_slice(&correlation.to_be_bytes())),
        user_properties: user
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
        ..v5::PublishProperties::default()
    };
    Publish {
        payload: resp(arguments),
        properties: Some(properties),
        ..publish(REQUEST, "", QoS::AtLeastOnce, correlation)
    }
}

fn user(message: &Publish) -> HashMap<String, String> {
    let properties = message.properties.as_ref().unwrap();
    let pairs = properties.user_properties.iter();
    pairs
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

impl Asker {
    async fn connect(broker: &TestBroker, connect: v5::Connect) -> Self {
        let id = connect.client_id.to_string();
        let (client, ack) = Client::connect(broker.address, connect).await;
        let answers = format!("clients/{id}/answers");
        let mut asker = Self {
            client,
            answers,
            count: 0,
            notified: Vec::new(),
            id,
        };
        if !ack.session_present {
            let notifications = format!("{NOTIFICATIONS}/{}/command/notify/+", hexadecimal(&asker.id));
            asker.subscribe(&notifications).await;
            let answers = asker.answers.clone();
            asker.subscribe(&answers).await;
        }
        asker
    }

    async fn clean(broker: &TestBroker, id: &str) -> Self {
        Self::connect(broker, hello(id)).await
    }

    async fn subscribe(&mut self, filter: &str) {
        // As the clients of the SDK do.
        let options = v5::SubscriptionOptions {
            qos: QoS::AtLeastOnce,
            no_local: true,
            ..v5::SubscriptionOptions::default()
        };
        let reason = self.client.subscribe_with(filter, options, None).await;
        assert_eq!(reason, v5::SubscribeAckReason::GrantedQos1, "{filter}");
    }

    async fn ask_with(&mut self, arguments: &[&str], user: &[(&str, &str)]) -> Answer {
        self.count += 1;
        let count = self.count;
        let request = request(arguments, &self.answers, count, user);
        self.client.send_publish(request).await;
        self.answer(count).await
    }

    /// The answer to a request, and its PUBACK.
    async fn answer(&mut self, count: u16) -> Answer {
        let (mut answer, mut acknowledged) = (None, false);
        loop {
            match self.client.receive().await {
                v5::Packet::PublishAck(ack) => {
                    assert_eq!(
                        (ack.packet_id.get(), ack.reason_code),
                        (count, v5::PublishAckReason::Success)
                    );
                    acknowledged = true;
                }
                v5::Packet::Publish(message) => answer = self.take(*message, count).await.or(answer),
                other => panic!("an answer expected, {other:?} came"),
            }
            if acknowledged && let Some(answer) = answer.take() {
                return answer;
            }
        }
    }

    /// Acknowledges a message; an answer is returned, a notification is kept.
    async fn take(&mut self, message: Publish, count: u16) -> Option<Answer> {
        if let Some(packet_id) = message.packet_id {
            self.client.acknowledge(packet_id.get()).await;
        }
        let user = user(&message);
        let payload = String::from_utf8(message.payload.to_vec()).unwrap();
        let properties = message.properties.clone().unwrap();
        assert_eq!(
            properties.content_type.as_deref(),
            Some("application/octet-stream")
        );
        assert_eq!(user["__protVer"], "1.0");
        if let Some(key) = message.topic.strip_prefix(&format!(
            "{NOTIFICATIONS}/{}/command/notify/",
            hexadecimal(&self.id)
        )) {
            let key = key.to_owned();
            let version = user["__ts"].clone();
            self.notified.push(Notification {
                key,
                payload,
                version,
            });
            return None;
        }
        assert_eq!(&*message.topic, self.answers);
        let correlation = properties.correlation_data.unwrap();
        assert_eq!(correlation[..], count.to_be_bytes());
        Some(Answer {
            payload,
            user,
            message,
        })
    }

    /// Asks with the time of now.
    async fn ask(&mut self, arguments: &[&str]) -> Answer {
        self.ask_with(arguments, &[("__ts", &timestamp(0))]).await
    }

    /// Asks, and returns the payload of the answer.
    async fn tell(&mut self, arguments: &[&str]) -> String {
        let answer = self.ask(arguments).await;
        assert_eq!(answer.user["__stat"], "200");
        answer.payload
    }

    /// Asks without waiting for answers in between, and returns them: they and the acknowledgements may overtake each
    /// other, but none of its own kind.
    async fn tell_all(&mut self, requests: &[Vec<&str>]) -> Vec<String> {
        let mut answers = Vec::new();
        for portion in requests.chunks(100) {
            let time = timestamp(0);
            let stamped = [("__ts", time.as_str())];
            let (mut acknowledged, mut answered) = (self.count, self.count);
            let count = self.count + portion.len() as u16;
            let numbers = self.count + 1..=count;
            let packets = numbers
                .zip(portion)
                .map(|(number, arguments)| request(arguments, &self.answers, number, &stamped));
            self.client.send_publishes(packets).await;
            self.count = count;
            while acknowledged < count || answered < count {
                match self.client.receive().await {
                    v5::Packet::PublishAck(ack) => {
                        acknowledged += 1;
                        assert_eq!(ack.packet_id.get(), acknowledged);
                    }
                    v5::Packet::Publish(message) => {
                        if let Some(answer) = self.take(*message, answered + 1).await {
                            answered += 1;
                            answers.push(answer.payload);
                        }
                    }
                    other => panic!("{other:?} came"),
                }
            }
        }
        answers
    }

    /// The next notifications.
    async fn notifications(&mut self, count: usize) -> Vec<Notification> {
        while self.notified.len() < count {
            let message = self.client.message().await;
            assert!(self.take(message, 0).await.is_none());
        }
        std::mem::take(&mut self.notified)
    }

    /// Asks until a key is gone.
    async fn wait_until_gone(&mut self, key: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while self.tell(&["GET", key]).await != "$-1\r\n" {
            assert!(tokio::time::Instant::now() < deadline, "{key} does not expire");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn set_notification(value: &str) -> String {
    let array = resp(&["NOTIFY", "SET", "VALUE", value]);
    String::from_utf8(array.to_vec()).unwrap()
}

const DELETE_NOTIFICATION: &str = "*2\r\n$6\r\nNOTIFY\r\n$6\r\nDELETE\r\n";

fn policy(rules: serde_json::Value) -> BrokerPolicySpec {
    serde_json::from_value(serde_json::json!({ "rules": rules })).unwrap()
}

#[tokio::test]
async fn keys_are_set_read_and_deleted() {
    let broker = TestBroker::start().await;
    let mut asker = Asker::clean(&broker, "a").await;
    assert_eq!(asker.tell(&["GET", "k"]).await, "$-1\r\n");
    let set = asker.ask(&["SET", "k", "v\r\n\0"]).await;
    assert_eq!(set.payload, "+OK\r\n");
    let version = set.user["__ts"].clone();
    assert!(
        version.ends_with(":StateStore") && version > timestamp(-60),
        "{version}"
    );
    let mut other = Asker::clean(&broker, "b").await;
    let get = other.ask(&["GET", "k"]).await;
    assert_eq!(
        (get.payload.as_str(), &get.user["__ts"]),
        ("$4\r\nv\r\n\0\r\n", &version)
    );
    assert_eq!(other.tell(&["SET", "k", "w", "NX"]).await, ":-1\r\n");
    assert_eq!(other.tell(&["SET", "k", "w", "NEX"]).await, ":-1\r\n");
    assert_eq!(other.tell(&["SET", "k", "v\r\n\0", "NEX"]).await, "+OK\r\n");
    assert_eq!(other.tell(&["VDEL", "k", "w"]).await, ":-1\r\n");
    assert_eq!(other.tell(&["VDEL", "k", "v\r\n\0"]).await, ":1\r\n");
    assert_eq!(asker.tell(&["DEL", "k"]).await, ":0\r\n");
    let missing = asker.ask(&["GET", "k"]).await;
    assert!(
        !missing.user.contains_key("__ts"),
        "what does not exist has no version"
    );
    assert_eq!(asker.tell(&["get", "k"]).await, "-ERR unknown command\r\n");
    assert_eq!(asker.tell(&["GET", ""]).await, "-ERR the key length is zero\r\n");
}

#[tokio::test]
async fn an_answer_expires_with_its_request() {
    let broker = TestBroker::start().await;
    let mut asker = Asker::clean(&broker, "a").await;
    let mut patient = request(&["GET", "k"], &asker.answers, 1, &[]);
    if let Some(properties) = &mut patient.properties {
        properties.message_expiry_interval = std::num::NonZeroU32::new(600);
    }
    asker.client.send_publish(patient).await;
    let answer = asker.answer(1).await;
    let left = answer
        .message
        .properties
        .unwrap()
        .message_expiry_interval
        .unwrap();
    assert!((1..=600).contains(&left.get()));
}

#[tokio::test]
async fn requests_of_one_client_are_done_in_order_however_they_come() {
    let broker = TestBroker::start().await;
    let mut asker = Asker::clean(&broker, "a").await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let values: Vec<String> = (0..40).map(|index| index.to_string()).collect();
    let requests: Vec<_> = values
        .iter()
        .flat_map(|value| [vec!["SET", "k", value], vec!["GET", "k"]])
        .collect();
    let answers = asker.tell_all(&requests).await;
    for (pair, value) in answers.chunks(2).zip(&values) {
        assert_eq!(
            pair,
            ["+OK\r\n".to_owned(), format!("${}\r\n{value}\r\n", value.len())]
        );
    }
    // Messages to others go their way before and behind requests.
    let time = timestamp(0);
    let message = |text: &str, id| publish("seen", text, QoS::AtLeastOnce, id);
    publisher.subscribe("seen", QoS::AtLeastOnce).await;
    let mixed = [
        message("before", 201),
        request(&["SET", "k", "x"], "nowhere", 202, &[("__ts", &time)]),
        message("behind", 203),
    ];
    asker.client.send_publishes(mixed.into_iter()).await;
    for expected in [201, 202, 203] {
        match asker.client.receive().await {
            v5::Packet::PublishAck(ack) => assert_eq!(ack.packet_id.get(), expected),
            other => panic!("PUBACK expected, {other:?} came"),
        }
    }
    assert_eq!(
        (publisher.take().await, publisher.take().await),
        ("before".into(), "behind".into())
    );
    assert_eq!(asker.tell(&["GET", "k"]).await, "$1\r\nx\r\n");
}

#[tokio::test]
async fn clocks_that_are_ahead_or_unreadable_are_refused() {
    let broker = TestBroker::start().await;
    let mut asker = Asker::clean(&broker, "a").await;
    let set: &[&str] = &["SET", "k", "v"];
    let now = timestamp(0);
    for (user, expected) in [
        (&[][..], "missing timestamp"),
        (&[("__ts", "now")], "malformed timestamp"),
        (&[("__ts", &now), ("__ft", "1:1")], "malformed timestamp"),
        (
            &[("__ts", timestamp(90).as_str())],
            "the request timestamp is too far in the future; ensure that the client and broker system clocks are synchronized",
        ),
        (
            &[("__ts", &now), ("__ft", timestamp(90).as_str())],
            "the request fencing token timestamp is too far in the future; ensure that the client and broker system \
             clocks are synchronized",
        ),
    ] {
        let answer = asker.ask_with(set, user).await;
        assert_eq!(answer.payload, format!("-ERR {expected}\r\n"));
        assert!(!answer.user.contains_key("__ts"));
    }
    assert_eq!(asker.tell(&["GET", "k"]).await, "$-1\r\n");
    // Within the minute the store follows, and stays ahead of what it has seen.
    let ahead = timestamp(50);
    let first = asker.ask_with(set, &[("__ts", &ahead)]).await.user["__ts"].clone();
    assert!(first > ahead, "{first}");
    let second = asker.ask_with(set, &[("__ts", &now)]).await.user["__ts"].clone();
    assert!(second > first, "{second}");
}

#[tokio::test]
async fn fencing_tokens_protect_a_key() {
    let broker = TestBroker::start().await;
    let mut asker = Asker::clean(&broker, "a").await;
    let lock = asker.ask(&["SET", "lock", "a", "NEX", "PX", "60000"]).await.user["__ts"].clone();
    let taken = asker.ask(&["SET", "lock", "b", "PX", "60000"]).await.user["__ts"].clone();
    let set: &[&str] = &["SET", "k", "v"];
    let with = |token: &str| vec![("__ts", timestamp(0)), ("__ft", token.to_owned())];
    let mut asked = async |arguments: &[&str], user: Vec<(&str, String)>| {
        let user: Vec<_> = user.iter().map(|(name, value)| (*name, value.as_str())).collect();
        asker.ask_with(arguments, &user).await.payload
    };
    assert_eq!(asked(set, with(&taken)).await, "+OK\r\n");
    let lower = "-ERR the request fencing token is a lower version than the fencing token protecting the resource\r\n";
    assert_eq!(asked(set, with(&lock)).await, lower);
    let missing = "-ERR a fencing token is required for this request\r\n";
    assert_eq!(asked(set, vec![("__ts", timestamp(0))]).await, missing);
    assert_eq!(asked(&["DEL", "k"], vec![]).await, missing);
    assert_eq!(asked(&["VDEL", "k", "v"], with(&lock)).await, lower);
    assert_eq!(asked(&["GET", "k"], vec![]).await, "$1\r\nv\r\n");
    assert_eq!(asked(&["DEL", "k"], with(&taken)).await, ":1\r\n");
    assert_eq!(asked(set, vec![("__ts", timestamp(0))]).await, "+OK\r\n");
}

#[tokio::test]
async fn watchers_are_told_in_the_order_of_changes() {
    let broker = TestBroker::start().await;
    let mut watcher = Asker::clean(&broker, "watcher").await;
    assert_eq!(watcher.tell(&["KEYNOTIFY", "k"]).await, "+OK\r\n");
    assert_eq!(
        watcher.tell(&["KEYNOTIFY", "k"]).await,
        "+OK\r\n",
        "once more is once"
    );
    let mut writer = Asker::clean(&broker, "writer").await;
    let set = writer.ask(&["SET", "k", "1"]).await.user["__ts"].clone();
    writer.tell(&["SET", "other", "x"]).await;
    writer.tell(&["SET", "k", "2", "NX"]).await;
    writer.tell(&["DEL", "k"]).await;
    watcher.tell(&["SET", "k", "3"]).await;
    let told = watcher.notifications(3).await;
    let payloads: Vec<_> = told.iter().map(|told| told.payload.as_str()).collect();
    assert_eq!(
        payloads,
        [
            &set_notification("1"),
            DELETE_NOTIFICATION,
            &set_notification("3")
        ]
    );
    assert!(told.iter().all(|told| told.key == "6B"));
    assert_eq!(told[0].version, set);
    assert!(told.is_sorted_by(|left, right| left.version < right.version));

    assert_eq!(watcher.tell(&["KEYNOTIFY", "k", "STOP"]).await, "+OK\r\n");
    assert_eq!(watcher.tell(&["KEYNOTIFY", "k", "STOP"]).await, ":0\r\n");
    writer.tell(&["SET", "k", "4"]).await;
    watcher.tell(&["GET", "k"]).await;
    assert!(watcher.notified.is_empty());
}

#[tokio::test]
async fn watchers_are_told_though_they_subscribe_to_nothing() {
    // As those of the SDK's clients in Go and .NET do.
    let broker = TestBroker::start().await;
    let mut writer = Asker::clean(&broker, "writer").await;
    let (mut watcher, _) = Client::connect(broker.address, back("watcher")).await;
    let watch = request(&["KEYNOTIFY", "k"], "nowhere", 7, &[]);
    assert_eq!(watcher.publish_packet(watch).await, v5::PublishAckReason::Success);
    writer.tell(&["SET", "k", "at once"]).await;
    assert_eq!(watcher.take().await, set_notification("at once"));
    watcher.disconnect().await;
    writer.tell(&["SET", "k", "while away"]).await;
    let (mut watcher, _) = Client::connect(broker.address, back("watcher")).await;
    assert_eq!(watcher.take().await, set_notification("while away"));
    writer.tell(&["SET", "k", "again"]).await;
    assert_eq!(watcher.take().await, set_notification("again"));
}

#[tokio::test]
async fn many_writers_leave_the_watcher_with_the_last_value() {
    let broker = TestBroker::start().await;
    let mut watcher = Asker::clean(&broker, "watcher").await;
    watcher.tell(&["KEYNOTIFY", "k"]).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let mut asker = Asker::clean(&broker, &format!("writer-{writer}")).await;
        writers.spawn(async move {
            for round in 0..25 {
                asker.tell(&["SET", "k", &format!("{writer}/{round}")]).await;
            }
        });
    }
    let told = watcher.notifications(100).await;
    writers.join_all().await;
    assert!(told.is_sorted_by(|left, right| left.version < right.version));
    let last = watcher.tell(&["GET", "k"]).await;
    assert!(told[99].payload.ends_with(&last), "{last}");
}

#[tokio::test]
async fn keys_expire_and_watchers_are_told() {
    let broker = TestBroker::start().await;
    let mut asker = Asker::clean(&broker, "a").await;
    asker.tell(&["KEYNOTIFY", "k"]).await;
    asker.tell(&["SET", "k", "v", "PX", "60000"]).await;
    // A second key that expires earlier is not kept waiting by the first.
    asker.tell(&["SET", "brief", "v", "PX", "20"]).await;
    asker.wait_until_gone("brief").await;
    asker.tell(&["SET", "k", "v", "NEX", "PX", "20"]).await;
    let told = asker.notifications(3).await;
    assert_eq!(told[2].payload, DELETE_NOTIFICATION);
    assert!(told[2].version > told[1].version);
    assert_eq!(asker.tell(&["GET", "k"]).await, "$-1\r\n");
}

#[tokio::test]
async fn many_keys_that_expire_at_once_are_all_told_of() {
    let broker = TestBroker::start().await;
    let mut asker = Asker::clean(&broker, "a").await;
    let keys: Vec<String> = (0..700).map(|index| format!("k{index}")).collect();
    let watch: Vec<_> = keys.iter().map(|key| vec!["KEYNOTIFY", key]).collect();
    let set: Vec<_> = keys.iter().map(|key| vec!["SET", key, "", "PX", "500"]).collect();
    for answer in asker.tell_all(&[watch, set].concat()).await {
        assert_eq!(answer, "+OK\r\n");
    }
    let told = asker.notifications(1400).await;
    let deleted = told
        .iter()
        .filter(|told| told.payload == DELETE_NOTIFICATION)
        .count();
    assert_eq!(deleted, 700);
    assert_eq!(asker.tell(&["SET", "k0", "", "NX"]).await, "+OK\r\n");
}

#[tokio::test]
async fn a_watch_survives_a_disconnect_and_a_restart_and_ends_with_its_session() {
    let directory = tempfile::tempdir().unwrap();
    let broker = TestBroker::start_with(options_in(directory.path())).await;
    let mut watcher = Asker::connect(&broker, back("watcher")).await;
    watcher.tell(&["KEYNOTIFY", "k"]).await;
    watcher.client.disconnect().await;
    let mut writer = Asker::clean(&broker, "writer").await;
    writer.tell(&["SET", "k", "while away"]).await;
    broker.stop().await;

    let broker = TestBroker::start_with(options_in(directory.path())).await;
    let mut writer = Asker::clean(&broker, "writer").await;
    writer.tell(&["SET", "k", "after a restart"]).await;
    let mut watcher = Asker::connect(&broker, back("watcher")).await;
    let payloads: Vec<_> = watcher
        .notifications(2)
        .await
        .into_iter()
        .map(|told| told.payload)
        .collect();
    assert_eq!(
        payloads,
        [
            set_notification("while away"),
            set_notification("after a restart")
        ]
    );

    // A new session watches nothing.
    watcher.client.disconnect().await;
    let anew = v5::Connect {
        clean_start: true,
        ..back("watcher")
    };
    let mut watcher = Asker::connect(&broker, anew).await;
    writer.tell(&["SET", "k", "nobody watches"]).await;
    watcher.tell(&["GET", "k"]).await;
    assert!(watcher.notified.is_empty());
    assert_eq!(watcher.tell(&["KEYNOTIFY", "k", "STOP"]).await, ":0\r\n");
    // So that the answer is acknowledged for good.
    watcher.client.disconnect().await;
    broker.stop().await;
    let broker = TestBroker::start_with(options_in(directory.path())).await;
    let mut watcher = Asker::connect(&broker, back("watcher")).await;
    assert_eq!(watcher.tell(&["KEYNOTIFY", "k", "STOP"]).await, ":0\r\n");
}

#[tokio::test]
async fn keys_fences_expiry_and_versions_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let broker = TestBroker::start_with(options_in(directory.path())).await;
    let mut asker = Asker::clean(&broker, "a").await;
    let large = "x".repeat(200_000);
    asker.tell(&["SET", "large", &large]).await;
    asker.tell(&["SET", "gone", "v"]).await;
    asker.tell(&["DEL", "gone"]).await;
    asker.tell(&["SET", "brief", "v", "PX", "1500"]).await;
    let token = timestamp(0);
    asker
        .ask_with(&["SET", "fenced", "v"], &[("__ts", &token), ("__ft", &token)])
        .await;
    let ahead = timestamp(50);
    let version = asker
        .ask_with(&["SET", "last", "v"], &[("__ts", &ahead)])
        .await
        .user["__ts"]
        .clone();
    asker.tell(&["DEL", "last"]).await;
    broker.stop().await;

    let broker = TestBroker::start_with(options_in(directory.path())).await;
    let mut asker = Asker::clean(&broker, "a").await;
    assert_eq!(
        asker.tell(&["GET", "large"]).await,
        format!("$200000\r\n{large}\r\n")
    );
    assert_eq!(asker.tell(&["GET", "gone"]).await, "$-1\r\n");
    let missing = "-ERR a fencing token is required for this request\r\n";
    assert_eq!(asker.tell(&["SET", "fenced", "w"]).await, missing);
    // The value that had the latest version is deleted, and no version is given twice all the same.
    let next = asker.ask(&["SET", "next", "v"]).await.user["__ts"].clone();
    assert!(next > version, "{next} {version}");
    asker.wait_until_gone("brief").await;
    asker.tell(&["GET", "large"]).await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_the_published_words() {
    let limits = Limits {
        max_state_keys: 3,
        max_state_bytes: 10_000,
        max_subscriptions: 3,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let mut asker = Asker::clean(&broker, "a").await;
    let refused = "-ERR the quota has been exceeded\r\n";
    assert_eq!(asker.tell(&["SET", "k", &"x".repeat(10_000)]).await, refused);
    assert_eq!(asker.tell(&["SET", &"k".repeat(5000), ""]).await, refused);
    for key in ["1", "2", "3"] {
        assert_eq!(asker.tell(&["SET", key, ""]).await, "+OK\r\n");
        assert_eq!(asker.tell(&["KEYNOTIFY", key]).await, "+OK\r\n");
    }
    assert_eq!(asker.tell(&["SET", "4", ""]).await, refused);
    assert_eq!(asker.tell(&["KEYNOTIFY", "4"]).await, refused);
    assert_eq!(asker.tell(&["DEL", "1"]).await, ":1\r\n");
    assert_eq!(asker.tell(&["KEYNOTIFY", "1", "STOP"]).await, "+OK\r\n");
    assert_eq!(asker.tell(&["SET", "4", ""]).await, "+OK\r\n");
    assert_eq!(asker.tell(&["KEYNOTIFY", "4"]).await, "+OK\r\n");
}

#[tokio::test]
async fn nothing_new_is_kept_below_the_watermark_of_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let broker = TestBroker::start_with(options_in(directory.path())).await;
    let mut asker = Asker::clean(&broker, "a").await;
    asker.tell(&["SET", "k", "v"]).await;
    broker.stop().await;
    let broker = TestBroker::start_with(options_of_full_disk(directory.path())).await;
    // One whose answers would have to be stored is answered all the same.
    let mut asker = Asker::connect(&broker, back("b")).await;
    assert_eq!(
        asker.tell(&["SET", "k", "w"]).await,
        "-ERR the quota has been exceeded\r\n"
    );
    assert_eq!(asker.tell(&["GET", "k"]).await, "$1\r\nv\r\n");
    assert_eq!(asker.tell(&["DEL", "k"]).await, ":1\r\n");
}

#[tokio::test]
async fn answers_go_to_whoever_asked_and_to_nobody_else() {
    let broker = TestBroker::start().await;
    let mut victim = Client::clean(broker.address, "victim").await;
    for filter in ["#", "foreshore/commands/#", "$share/g/#"] {
        victim.subscribe(filter, QoS::AtLeastOnce).await;
    }
    let mut sly = Asker::clean(&broker, "sly").await;
    sly.tell(&["SET", "k", "open the valve"]).await;
    for topic in [
        "foreshore/commands/plant/valve/group/open",
        "$SYS/broker/version",
        "victim/topic",
    ] {
        let request = request(&["GET", "k"], topic, 700, &[]);
        sly.client.send_publish(request).await;
        match sly.client.receive().await {
            v5::Packet::PublishAck(ack) => assert_eq!(ack.reason_code, v5::PublishAckReason::Success),
            other => panic!("PUBACK and no answer expected, {other:?} came"),
        }
    }
    // Neither requests nor answers nor notifications were routed to others.
    sly.tell(&["KEYNOTIFY", "k"]).await;
    sly.tell(&["SET", "k", "shut it"]).await;
    assert_eq!(sly.notifications(1).await[0].payload, set_notification("shut it"));
    sly.client.publish("mark", "mark").await;
    assert_eq!(victim.take().await, "mark");
}

#[tokio::test]
async fn response_topics_of_the_store_s_own_end_the_connection() {
    let broker = TestBroker::start().await;
    let notify = format!("{NOTIFICATIONS}/76696374696D/command/notify/6B");
    for topic in [REQUEST, &notify] {
        let mut sly = Client::clean(broker.address, "sly").await;
        sly.send_publish(request(&["GET", "k"], topic, 7, &[])).await;
        assert_eq!(
            sly.expect_disconnect().await,
            v5::DisconnectReasonCode::TopicNameInvalid
        );
    }
}

#[tokio::test]
async fn nobody_but_the_store_notifies() {
    let broker = TestBroker::start().await;
    let notify = format!("{NOTIFICATIONS}/76696374696D/command/notify/6B");
    let mut sly = Client::clean(broker.address, "sly").await;
    assert_eq!(
        sly.publish(&notify, "forged").await,
        v5::PublishAckReason::NotAuthorized
    );
    for topic in [REQUEST, &notify] {
        let will = v5::LastWill {
            message: "forged".into(),
            ..will(topic, None)
        };
        let connect = v5::Connect {
            last_will: Some(will),
            ..hello("mortal")
        };
        let mut mortal = Client::open(broker.address).await;
        mortal.send(v5::Packet::Connect(Box::new(connect))).await;
        assert_eq!(
            mortal.connack().await.reason_code,
            v5::ConnectAckReason::NotAuthorized
        );
    }
}

#[tokio::test]
async fn messages_that_are_no_requests_are_refused() {
    let broker = TestBroker::start().await;
    let mut client = Client::clean(broker.address, "c").await;
    let whole = || request(&["GET", "k"], "r", 7, &[]);
    let without = |change: fn(&mut v5::PublishProperties)| {
        let mut request = whole();
        change(request.properties.as_mut().unwrap());
        request
    };
    for request in [
        Publish {
            qos: QoS::ExactlyOnce,
            ..whole()
        },
        Publish {
            retain: true,
            ..whole()
        },
        without(|properties| properties.response_topic = None),
        without(|properties| properties.correlation_data = None),
        publish(REQUEST, "hello", QoS::AtLeastOnce, 7),
    ] {
        let reason = client.publish_packet(request).await;
        assert_eq!(reason, v5::PublishAckReason::PayloadFormatInvalid);
    }
    client
        .send_publish(publish(REQUEST, "hello", QoS::AtMostOnce, 0))
        .await;
    client.ping().await;
    // Older clients can't be told, and have no response topic either.
    let (mut old, _) = Client3::connect(broker.address, "old", true).await;
    let request = publish(REQUEST, "hello", QoS::AtLeastOnce, 7);
    old.send(rmqtt_codec::v3::Packet::Publish(Box::new(request)))
        .await;
    assert!(old.next().await.is_none());
}

#[tokio::test]
async fn other_versions_of_the_protocol_are_told_which_is_spoken() {
    let broker = TestBroker::start().await;
    let mut asker = Asker::clean(&broker, "a").await;
    let answer = asker.ask_with(&["GET", "k"], &[("__protVer", "7.1")]).await;
    let value = |name: &str| answer.user[name].as_str();
    assert_eq!((answer.payload.as_str(), value("__stat")), ("", "505"));
    assert_eq!(
        (value("__supProtMajVer"), value("__requestProtVer")),
        ("1", "7.1")
    );
}

#[tokio::test]
async fn policies_say_who_may_ask() {
    let broker = TestBroker::start().await;
    let rules = policy(serde_json::json!([
        { "name": "own", "effect": "Allow", "actions": ["Connect", "Subscribe"],
          "topics": ["clients/${clientid}/#", format!("{NOTIFICATIONS}/+/command/notify/+")] },
        { "name": "store", "effect": "Allow", "actions": ["Publish"], "topics": [REQUEST],
          "principals": { "clients": ["trusted"] } },
    ]));
    broker.handle.set_policies([("p", &rules)]).unwrap();
    let mut trusted = Asker::clean(&broker, "trusted").await;
    assert_eq!(trusted.tell(&["SET", "k", "v"]).await, "+OK\r\n");
    let mut other = Client::clean(broker.address, "other").await;
    let request = request(
        &["SET", "k", "w"],
        "clients/other/answers",
        7,
        &[("__ts", &timestamp(0))],
    );
    assert_eq!(
        other.publish_packet(request).await,
        v5::PublishAckReason::NotAuthorized
    );
    assert_eq!(trusted.tell(&["GET", "k"]).await, "$1\r\nv\r\n");
}

#[tokio::test]
async fn whoever_may_ask_no_more_is_told_no_more() {
    let broker = TestBroker::start().await;
    let anybody = serde_json::json!(
        { "name": "all", "effect": "Allow", "actions": ["Connect", "Publish", "Subscribe"] }
    );
    let but_watcher = serde_json::json!(
        { "name": "no", "effect": "Deny", "actions": ["Publish"], "topics": ["statestore/#"],
          "principals": { "clients": ["watcher"] } }
    );
    let (open, closed) = (
        policy(serde_json::json!([anybody])),
        policy(serde_json::json!([anybody, but_watcher])),
    );
    broker.handle.set_policies([("p", &open)]).unwrap();
    let mut watcher = Asker::connect(&broker, back("watcher")).await;
    watcher.tell(&["KEYNOTIFY", "k"]).await;
    watcher.client.ping().await;
    broker.handle.set_policies([("p", &closed)]).unwrap();
    let reason = watcher.client.expect_disconnect().await;
    assert_eq!(reason, v5::DisconnectReasonCode::NotAuthorized);
    let mut writer = Asker::clean(&broker, "writer").await;
    writer.tell(&["SET", "k", "secret"]).await;
    let mut watcher = Asker::connect(&broker, back("watcher")).await;
    watcher.client.publish("clients/watcher/answers", "mark").await;
    assert!(watcher.notified.is_empty());

    // One that is away when it loses the right does not find what was queued meanwhile.
    broker.handle.set_policies([("p", &open)]).unwrap();
    watcher.count = 100;
    watcher.tell(&["KEYNOTIFY", "k"]).await;
    watcher.client.disconnect().await;
    writer.tell(&["SET", "k", "secret"]).await;
    broker.handle.set_policies([("p", &closed)]).unwrap();
    let (mut watcher, _) = Client::connect(broker.address, back("watcher")).await;
    watcher.subscribe("mark", QoS::AtLeastOnce).await;
    writer.client.publish("mark", "mark").await;
    assert_eq!(watcher.take().await, "mark");
}

#[tokio::test]
async fn hostile_payloads_are_answered_and_harm_nobody() {
    let broker = TestBroker::start().await;
    let mut asker = Asker::clean(&broker, "a").await;
    let nested = "*1\r\n".repeat(50_000);
    for payload in [
        "",
        "*",
        "*\r\n",
        "*999999999\r\n",
        "*-1\r\n",
        "*2\r\n$3\r\nGET\r\n$999999999\r\nk\r\n",
        "*2\r\n$3\r\nGET\r\n$18446744073709551615\r\n",
        "*2\r\n$3\r\nGET\r\n*1\r\n$1\r\nk\r\n",
        "\0\0\0\0",
        &nested,
    ] {
        asker.count += 1;
        let count = asker.count;
        let request = Publish {
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            ..request(&[], &asker.answers, count, &[])
        };
        asker.client.send_publish(request).await;
        let answer = asker.answer(count).await.payload;
        assert!(
            answer.starts_with("-ERR ") && answer.ends_with("\r\n"),
            "{answer:?}"
        );
    }
    assert_eq!(asker.tell(&["SET", "k", "v"]).await, "+OK\r\n");
}
