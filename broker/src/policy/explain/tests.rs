use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn question(client_id: &str, username: Option<&str>, request: Request) -> Question {
    Question {
        client_id: client_id.to_owned(),
        username: username.map(str::to_owned),
        groups: Vec::new(),
        certificate: BTreeMap::new(),
        attributes: BTreeMap::new(),
        request,
    }
}

fn publish(topic: &str) -> Request {
    Request::Publish {
        topic: TopicName::new(topic).unwrap(),
        qos: Qos::AtLeastOnce,
        retain: false,
    }
}

fn subscribe(filter: &str) -> Request {
    let filter = TopicFilter::new(filter).unwrap();
    Request::Subscribe { filter }
}

fn policy(rules: Value) -> BrokerPolicySpec {
    serde_json::from_value(json!({ "rules": rules })).unwrap()
}

fn plant() -> BrokerPolicySpec {
    policy(json!([
        { "name": "in", "effect": "Allow", "actions": ["Connect"] },
        { "name": "own", "effect": "Allow", "actions": ["Publish", "Subscribe"], "topics": ["devices/${clientid}/#"],
          "principals": { "users": ["${clientid}-*"] }, "maxQos": "AtLeastOnce", "allowRetain": false },
        { "name": "viewers", "effect": "Allow", "actions": ["Subscribe"], "topics": ["devices/+/state", "sites/#"],
          "principals": { "groups": ["viewers"], "certificate": { "O": "plant-*" } } },
        { "name": "secret", "effect": "Deny", "actions": ["Publish", "Subscribe"], "topics": ["devices/+/secret"] },
    ]))
}

fn ask(question: Question) -> Explanation {
    explain([("plant", &plant())], question).unwrap()
}

fn rules(readings: &[RuleReading]) -> Vec<&str> {
    readings.iter().map(|reading| reading.rule.as_str()).collect()
}

#[test]
fn the_rule_that_allows_it_is_named_with_the_names_filled_in() {
    let answer = ask(question("pump", Some("pump-7"), publish("devices/pump/flow")));
    assert!(answer.allowed && answer.nearest.is_empty());
    assert_eq!(rules(&answer.deciding), ["plant/own"]);
    assert_eq!(
        answer.to_string(),
        "client \"pump\", user \"pump-7\": publish to \"devices/pump/flow\" with quality of service 1\n\
         allowed by plant/own (Allow)\n    \
             users: \"pump-7\" matches \"pump-*\", which is \"${clientid}-*\" filled in\n    \
             topics: \"devices/pump/flow\" matches \"devices/pump/#\", which is \"devices/${clientid}/#\" filled in\n"
    );
    let answer = ask(question("pump", Some("pump-7"), subscribe("devices/pump/flow/+")));
    assert_eq!((answer.allowed, answer.max_qos), (true, Some(Qos::AtLeastOnce)));
}

#[test]
fn the_rule_that_denies_it_is_named_and_what_would_have_allowed_it() {
    let answer = ask(question("pump", Some("pump-7"), publish("devices/pump/secret")));
    assert!(!answer.allowed);
    assert_eq!(rules(&answer.deciding), ["plant/secret"]);
    assert_eq!(answer.nearest[0].rule, "plant/own");
    assert!(answer.nearest[0].obstacles.is_empty());
    // A subscription is denied by what it overlaps.
    let answer = ask(question("pump", Some("pump-7"), subscribe("devices/pump/#")));
    assert_eq!(
        (answer.allowed, rules(&answer.deciding)),
        (false, vec!["plant/secret"])
    );
}

#[test]
fn the_nearest_rules_say_what_kept_them_from_allowing_it() {
    let fields = |reading: &RuleReading| -> Vec<String> {
        reading
            .obstacles
            .iter()
            .map(|obstacle| obstacle.field.clone())
            .collect()
    };
    let answer = ask(question("pump", Some("other"), publish("devices/pump/flow")));
    assert!(!answer.allowed && answer.deciding.is_empty());
    assert_eq!(answer.nearest[0].rule, "plant/own");
    let obstacle = &answer.nearest[0].obstacles[..];
    let [
        Obstacle {
            field,
            found,
            allowed,
            ..
        },
    ] = obstacle
    else {
        panic!("{answer}")
    };
    assert_eq!(
        (field.as_str(), &found[..], &allowed[..]),
        ("users", &["other".to_owned()][..], &["pump-*".to_owned()][..])
    );
    assert!(
        answer
            .to_string()
            .contains("refused: no rule allows it\nnearest rules:\n  plant/own (Allow)\n"),
        "{answer}"
    );

    let loud = Request::Publish {
        topic: TopicName::new("devices/pump/flow").unwrap(),
        qos: Qos::ExactlyOnce,
        retain: true,
    };
    let answer = ask(question("pump", Some("pump-7"), loud));
    assert_eq!(fields(&answer.nearest[0]), ["maxQos", "allowRetain"]);

    let answer = ask(question("pump", None, subscribe("devices/#")));
    assert!(!answer.allowed);
    let viewers = answer
        .nearest
        .iter()
        .find(|reading| reading.rule == "plant/viewers")
        .unwrap();
    assert_eq!(fields(viewers), ["groups", "certificate.O", "topics"]);
    let note = &viewers.obstacles[2].note;
    assert!(
        note.contains("\"devices/#\" asks for more than \"devices/+/state\""),
        "{note}"
    );
    // Beside one about the same topics, a rule about something else comes last.
    assert_eq!(answer.nearest.last().unwrap().rule, "plant/in");
}

#[test]
fn a_name_that_can_not_be_filled_in_is_told_of() {
    let answer = ask(question("a/b", Some("a/b-x"), publish("devices/a/b/flow")));
    let own = answer
        .nearest
        .iter()
        .find(|reading| reading.rule == "plant/own")
        .unwrap();
    let note = &own.obstacles[0].note;
    assert!(
        note.contains("${clientid}") && note.contains("\"a/b\"") && note.contains('#'),
        "{note}"
    );
    assert!(own.obstacles[0].allowed.is_empty());
}

#[test]
fn without_a_policy_everything_is_allowed_and_with_none_that_fits_nothing() {
    let answer = explain([], question("c", None, publish("t"))).unwrap();
    assert!(answer.allowed && answer.without_policy && answer.to_string().contains("no BrokerPolicy"));
    let other = policy(
        json!([{ "name": "in", "effect": "Allow", "actions": ["Connect"], "principals": { "clients": ["x"] } }]),
    );
    let answer = explain([("p", &other)], question("c", None, Request::Connect)).unwrap();
    assert!(!answer.allowed && !answer.without_policy);
    assert_eq!(answer.nearest[0].obstacles[0].allowed, ["x"]);
}

fn any_rule() -> impl Strategy<Value = Value> {
    let names = prop::collection::vec("[ab]\\*?|\\$\\{clientid\\}|\\$\\{username\\}\\*", 0..3);
    let topics = prop::collection::vec(
        "([ab]|\\+|\\$\\{clientid\\}|\\$\\{username\\})(/([ab]|\\+)){0,2}(/#)?",
        1..3,
    );
    let actions = prop::sample::subsequence(vec!["Connect", "Publish", "Subscribe"], 1..=3);
    let qos = prop::sample::select(vec!["AtMostOnce", "AtLeastOnce", "ExactlyOnce"]);
    (any::<bool>(), names.clone(), names.clone(), names, topics, actions, qos, any::<bool>()).prop_map(
        |(allow, clients, users, groups, topics, actions, qos, choice)| {
            let mut rule = json!({ "name": "r", "effect": if allow { "Allow" } else { "Deny" }, "actions": actions,
                "principals": { "clients": clients, "users": users, "groups": groups } });
            if actions != ["Connect"] {
                rule["topics"] = json!(topics);
            }
            if allow {
                rule["maxQos"] = json!(qos);
                rule["allowRetain"] = json!(choice);
            } else if actions == ["Subscribe"] {
                rule["literalFilters"] = json!(choice);
            }
            rule
        },
    )
}

fn any_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::Connect),
        ("[ab](/[ab]){0,2}", 0_u8..3, any::<bool>()).prop_map(|(topic, qos, retain)| Request::Publish {
            topic: TopicName::new(topic).unwrap(),
            qos: Qos::try_from(qos).unwrap(),
            retain,
        }),
        "([ab]|\\+)(/([ab]|\\+)){0,2}(/#)?".prop_map(|filter| subscribe(&filter)),
    ]
}

proptest! {
    /// What is said of single rules agrees with how clients are judged.
    #[test]
    fn readings_agree_with_the_verdict(
        all in prop::collection::vec(any_rule(), 1..6),
        client_id in "[ab]{1,2}|\\+",
        username in prop::option::of("[ab]{1,2}"),
        groups in prop::collection::vec("[ab]", 0..2),
        request in any_request(),
    ) {
        let asked = Question { groups, ..question(&client_id, username.as_deref(), request) };
        let spec = policy(Value::Array(all));
        let answer = explain([("p", &spec)], asked).unwrap();
        let effects = |effect| answer.deciding.iter().all(|reading| reading.effect == effect);
        if answer.allowed {
            prop_assert!(!answer.deciding.is_empty() && effects(PolicyEffect::Allow));
        } else if answer.deciding.is_empty() {
            prop_assert!(answer.nearest.iter().all(|reading| !reading.obstacles.is_empty()));
        } else {
            prop_assert!(effects(PolicyEffect::Deny));
        }
    }
}
