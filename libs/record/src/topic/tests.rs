use proptest::prelude::*;

use super::*;

fn filter(text: &str) -> TopicFilter {
    TopicFilter::new(text).expect("test filters are valid")
}

#[test]
fn filters_match_as_the_specification_says() {
    for (pattern, topic, expected) in [
        ("sport/tennis/player1/#", "sport/tennis/player1", true),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
        ("sport/#", "sport", true),
        ("#", "sport", true),
        ("+", "finance", true),
        ("/+", "/finance", true),
        ("+/+", "/finance", true),
        ("+", "/finance", false),
        ("sport/+", "sport", false),
        ("sport/+", "sport/", true),
        ("#", "$SYS/broker", false),
        ("+/broker", "$SYS/broker", false),
        ("$SYS/#", "$SYS/broker", true),
        ("a/b", "a/b/c", false),
    ] {
        assert_eq!(
            filter(pattern).matches(topic),
            expected,
            "{pattern} against {topic}"
        );
    }
}

#[test]
fn malformed_filters_and_names_are_refused() {
    for text in ["", "sport/tennis#", "sport/#/ranking", "sport+", "a\0b"] {
        assert!(TopicFilter::new(text).is_err(), "{text:?}");
    }
    for text in ["", "a/+", "#", "a\0b"] {
        assert!(TopicName::new(text).is_err(), "{text:?}");
    }
    assert!(matches!(
        TopicName::new("a/".repeat(200)),
        Err(InvalidTopic::TooManyLevels { found: 201 })
    ));
}

#[test]
fn shared_subscriptions_are_split() {
    let (group, rest) = TopicFilter::parse_shared("$share/g/a/+").unwrap().unwrap();
    assert_eq!((group.as_str(), rest.as_str()), ("g", "a/+"));
    assert_eq!(TopicFilter::parse_shared("a/b").unwrap(), None);
    for text in ["$share/g", "$share//a", "$share/g/", "$share/g+/a"] {
        assert!(TopicFilter::parse_shared(text).is_err(), "{text}");
    }
}

#[test]
fn templates_are_filled_and_values_cannot_change_the_structure() {
    let variables = [("namespace", "bottling"), ("asset", "fil/ler#1")];
    let topic = fill_template("plant/{namespace}/{asset}/x", &variables).unwrap();
    assert_eq!(topic.as_str(), "plant/bottling/fil_ler_1/x");
    let error = fill_template("plant/{aset}", &variables).unwrap_err();
    assert_eq!(
        error.to_string(),
        "topic template names {aset}: {namespace}, {asset} are allowed"
    );
    assert_eq!(
        fill_template("a/{b", &variables).unwrap_err(),
        InvalidTemplate::Brace { position: 0 }
    );
    assert!(matches!(
        fill_template("a}/b", &variables),
        Err(InvalidTemplate::Brace { .. })
    ));
}

proptest! {
    #[test]
    fn a_covering_filter_matches_whatever_the_covered_one_matches(
        wide in "[ab+]{1}(/[ab+]{1}){0,3}(/#)?",
        narrow in "[ab+]{1}(/[ab+]{1}){0,3}(/#)?",
        topic in "[ab]{1}(/[ab]{1}){0,4}",
    ) {
        let (wide, narrow) = (filter(&wide), filter(&narrow));
        if wide.covers(&narrow) && narrow.matches(&topic) {
            prop_assert!(wide.matches(&topic));
        }
    }
}
