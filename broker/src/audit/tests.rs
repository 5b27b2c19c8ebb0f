use serde_json::Value;

use super::{event::Event, *};

fn line(event: &Event<'_>) -> Value {
    let line = event.line("plant/main", jiff::Timestamp::UNIX_EPOCH);
    let text = std::str::from_utf8(&line).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    let harmful = ['\r', '\u{1b}', '\u{85}', '\u{9b}', '\u{2028}', '\u{202e}'];
    assert!(text.ends_with('\n') && !text.contains(harmful), "{text}");
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_line_is_one_object_whatever_a_client_calls_itself() {
    let injected = "x\"}\n{\"time\":\"2026-01-01T00:00:00Z\",\"event\":\"connected\",\"client\":\"admin\u{1b}[2J\r\u{85}\u{9b}\u{2028}\u{202e}";
    let told = line(&Event {
        event: What::Refused,
        client: Some(injected),
        claimed_user: Some(injected),
        topic: Some(injected),
        detail: Some(injected),
        ..Event::default()
    });
    for member in ["client", "claimedUser", "topic", "detail"] {
        assert_eq!(told[member], injected, "{member}");
    }
    assert_eq!(
        (&told["event"], &told["time"], &told["target"], &told["broker"]),
        (
            &"refused".into(),
            &"1970-01-01T00:00:00Z".into(),
            &"audit".into(),
            &"plant/main".into()
        )
    );
    assert_eq!(
        told.as_object().unwrap().len(),
        8,
        "what is not known is not there: {told}"
    );
}

#[test]
fn long_texts_are_cut_between_characters() {
    let long = "ä".repeat(40_000);
    let told = line(&Event {
        client: Some(&long),
        ..Event::default()
    });
    assert_eq!(told["client"], format!("{}…", "ä".repeat(128)));
    let odd = format!("x{long}");
    let told = line(&Event {
        client: Some(&odd),
        ..Event::default()
    });
    assert_eq!(told["client"], format!("x{}…", "ä".repeat(127)));
    let fits = "x".repeat(256);
    let told = line(&Event {
        client: Some(&fits),
        ..Event::default()
    });
    assert_eq!(told["client"], fits);
}
