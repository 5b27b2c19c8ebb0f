//! `foreshore broker sessions|subscriptions|retained|backlog`: what a broker that runs holds.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use foreshore_record::TopicFilter;
use serde_json::Value;

use super::super::{
    default_data_directory, parse_time,
    status::Form,
    table::{bytes, harmless, seconds, table},
    up::ask,
};
use crate::admin::{About, BrokerRequest, Request};

/// Which broker to ask.
#[derive(clap::Args)]
pub(in crate::commands) struct Target {
    /// Data directory of the `foreshore up` or `foreshore broker` to ask.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The broker, where several run there.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(super) broker: Option<String>,
}

/// How much to show, and how.
#[derive(clap::Args)]
pub(super) struct Shown {
    #[command(flatten)]
    target: Target,
    /// Show so many at most.
    #[arg(long, value_name = "N", default_value_t = 100)]
    max: usize,
    #[command(flatten)]
    form: Form,
}

/// What concerns a client, or all.
#[derive(clap::Args)]
pub(super) struct OfClient {
    /// Only what concerns this client.
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    #[command(flatten)]
    shown: Shown,
}

/// Retained messages.
#[derive(clap::Args)]
pub(super) struct Retained {
    /// Only topics that this matches; those that begin with `$` have to be asked for, such as `$SYS/#`.
    #[arg(long, value_name = "FILTER", default_value = "#")]
    filter: String,
    #[command(flatten)]
    shown: Shown,
}

/// What waits.
#[derive(clap::Args)]
pub(super) struct Backlog {
    /// Time over which rates are measured, a minute at most.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_time)]
    interval: Duration,
    #[command(flatten)]
    of: OfClient,
}

/// The broker's look at its own listeners.
#[derive(clap::Args)]
pub(super) struct Probe {
    #[command(flatten)]
    target: Target,
    /// Longest time for each listener, a minute at most.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    timeout: Duration,
    #[command(flatten)]
    form: Form,
}

impl Target {
    /// Asks, and gives back the answer.
    pub(in crate::commands) async fn ask(self, about: About) -> Result<Value> {
        let data = self.data.map_or_else(default_data_directory, Ok)?;
        let broker = self.broker;
        ask(&data, &Request::Broker(Box::new(BrokerRequest { broker, about }))).await
    }
}

impl Shown {
    /// Asks, and prints the answer as JSON or as people like it.
    async fn show(
        self,
        about: impl FnOnce(usize) -> About,
        text: impl FnOnce(&Value) -> String,
    ) -> Result<()> {
        let Self { target, max, form } = self;
        let answer = target.ask(about(max)).await?;
        if form.is_text() {
            print!("{}", text(&answer));
        } else {
            println!("{answer:#}");
        }
        Ok(())
    }
}

pub(super) async fn sessions(options: OfClient) -> Result<()> {
    let OfClient { client, shown } = options;
    shown
        .show(
            |max| About::Sessions { client, max },
            |answer| list(answer, &SESSIONS),
        )
        .await
}

pub(super) async fn subscriptions(options: OfClient) -> Result<()> {
    let OfClient { client, shown } = options;
    shown
        .show(
            |max| About::Subscriptions { client, max },
            |answer| list(answer, &SUBSCRIPTIONS),
        )
        .await
}

pub(super) async fn retained(options: Retained) -> Result<()> {
    let Retained { filter, shown } = options;
    let filter = TopicFilter::new(&filter).with_context(|| format!("--filter: found {filter:?}"))?;
    shown
        .show(
            |max| About::Retained { filter, max },
            |answer| list(answer, &RETAINED),
        )
        .await
}

pub(super) async fn backlog(options: Backlog) -> Result<()> {
    let Backlog {
        interval,
        of: OfClient { client, shown },
    } = options;
    let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    shown
        .show(
            |max| About::Backlog {
                client,
                interval_ms,
                max,
            },
            backlog_text,
        )
        .await
}

/// Looks at every listener, and fails if one of them can't be used.
pub(super) async fn probe(options: Probe) -> Result<()> {
    let Probe {
        target,
        timeout,
        form,
    } = options;
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let answer = target.ask(About::Probe { timeout_ms }).await?;
    if form.is_text() {
        print!("{}", rows(&answer, &PROBED));
    } else {
        println!("{answer:#}");
    }
    let failed = answer.as_array().into_iter().flatten();
    match failed.filter(|report| !report["failure"].is_null()).count() {
        0 => Ok(()),
        1 => bail!("a listener can't be used"),
        failed => bail!("{failed} listeners can't be used"),
    }
}

/// A column: its heading, the member that it shows, and how.
type Column = (&'static str, &'static str, fn(&Value) -> String);

const SESSIONS: [Column; 8] = [
    ("CLIENT", "/clientId", text),
    ("USER", "/connection/username", text),
    ("FROM", "/connection/peer", text),
    ("LISTENER", "/connection/listener", text),
    ("MQTT", "/connection/version", text),
    ("ENDS IN", "/endsInSeconds", time),
    ("WAITING", "/queue/entries", text),
    ("BYTES", "/queue/bytes", size),
];

const SUBSCRIPTIONS: [Column; 3] = [
    ("FILTER", "/filter", text),
    ("SUBSCRIBER", "/subscriber", text),
    ("QOS", "/qos", text),
];

const RETAINED: [Column; 4] = [
    ("TOPIC", "/topic", text),
    ("QOS", "/qos", text),
    ("BYTES", "/payloadBytes", size),
    ("EXPIRES IN", "/expiresInSeconds", time),
];

const QUEUES: [Column; 9] = [
    ("QUEUE", "/name", text),
    ("CONNECTED", "/connected", text),
    ("ENTRIES", "/entries", text),
    ("BYTES", "/bytes", size),
    ("OF", "/maxBytes", size),
    ("OLDEST", "/oldestSeconds", time),
    ("IN/S", "/inPerSecond", text),
    ("OUT/S", "/outPerSecond", text),
    ("DRAINED IN", "/drainedInSeconds", drained),
];

const TOPIC_FILTERS: [Column; 6] = [
    ("TOPIC FILTER", "/topicFilter", text),
    ("QUEUE", "/queue", text),
    ("ENTRIES", "/entries", text),
    ("OF", "/maxEntries", text),
    ("BYTES", "/bytes", size),
    ("OF", "/maxBytes", size),
];

const PROBED: [Column; 5] = [
    ("LISTENER", "/listener", text),
    ("URL", "/url", text),
    ("ROUND TRIP", "/seconds", milliseconds),
    ("NOTE", "/note", text),
    ("FAILURE", "/failure", text),
];

const SLOW: [Column; 6] = [
    ("SLOW CONNECTION", "/clientId", text),
    ("KEEPING", "/keeping", text),
    ("DELIVERIES", "/deliveries", text),
    ("BYTES", "/liveBytes", size),
    ("OF", "/maxLiveBytes", size),
    ("SHARD", "/shard", text),
];

const SHARDS: [Column; 5] = [
    ("SHARD", "/shard", text),
    ("KEEPING", "/keeping", text),
    ("ITEMS", "/items", text),
    ("BYTES", "/bytes", size),
    ("ANSWERS", "/answers", text),
];

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| text(value), bytes)
}

fn time(value: &Value) -> String {
    value.as_u64().map_or_else(|| text(value), seconds)
}

fn milliseconds(value: &Value) -> String {
    value
        .as_f64()
        .map_or_else(|| text(value), |seconds| format!("{:.1} ms", seconds * 1000.0))
}

fn drained(value: &Value) -> String {
    match value.as_f64() {
        // Larger than any time that means something, and cut off beyond.
        Some(value) => seconds(value as u64),
        None => "never".to_owned(),
    }
}

fn rows(items: &Value, columns: &[Column]) -> String {
    let items = items.as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<_> = items
        .iter()
        .map(|item| {
            let cells = columns
                .iter()
                .map(|(_, member, shown)| shown(item.pointer(member).unwrap_or(&Value::Null)));
            cells.collect()
        })
        .collect();
    let headings: Vec<_> = columns.iter().map(|(heading, ..)| *heading).collect();
    table(&headings, &rows)
}

fn list(answer: &Value, columns: &[Column]) -> String {
    let mut text = rows(&answer["items"], columns);
    if answer["more"] == true {
        text.push_str("there are more: --max shows them\n");
    }
    text
}

fn backlog_text(answer: &Value) -> String {
    let mut text = if is_empty(&answer["queues"]) {
        "nothing waits in a queue\n".to_owned()
    } else {
        rows(&answer["queues"], &QUEUES)
    };
    let limited = of_topic_filters(&answer["queues"]);
    if !is_empty(&limited) {
        text.push_str(&rows(&limited, &TOPIC_FILTERS));
    }
    if let Some(more @ 1..) = answer["moreQueues"].as_u64() {
        text.push_str(&format!("{more} more queues: --max shows them\n"));
    }
    if is_empty(&answer["slow"]) {
        text.push_str("every connection keeps up\n");
    } else {
        text.push_str(&rows(&answer["slow"], &SLOW));
    }
    text.push_str(&rows(&answer["shards"], &SHARDS));
    text
}

/// What waits in all queues of limits by topic filter, each with the queue's name.
fn of_topic_filters(queues: &Value) -> Value {
    let mut limited = Vec::new();
    for queue in queues.as_array().into_iter().flatten() {
        for of_filter in queue["topicFilters"].as_array().into_iter().flatten() {
            let mut of_filter = of_filter.clone();
            of_filter["queue"] = queue["name"].clone();
            limited.push(of_filter);
        }
    }
    Value::Array(limited)
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

/// An answer's own words, for a terminal.
pub(in crate::commands) fn words(answer: &Value) -> String {
    let text = answer["text"].as_str().unwrap_or_default();
    text.lines().map(|line| harmless(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_becomes_a_table() {
        let answer = json!({
            "items": [{
                "clientId": "pump", "durable": true, "queue": { "entries": 3, "bytes": 1500 }, "endsInSeconds": 90
            }],
            "more": true,
        });
        assert_eq!(
            list(&answer, &SESSIONS),
            "CLIENT  USER  FROM  LISTENER  MQTT  ENDS IN     WAITING  BYTES\n\
             pump    -     -     -         -     1 min 30 s  3        1.5 kB\n\
             there are more: --max shows them\n"
        );
    }

    #[test]
    fn a_backlog_says_what_does_not_become_less() {
        let answer = json!({
            "queues": [
                { "name": "dataflow/a", "entries": 9, "bytes": 9, "oldestSeconds": 1, "inPerSecond": 2.5, "outPerSecond": 0.0 },
                { "name": "session/b", "connected": false, "entries": 9, "bytes": 9, "oldestSeconds": 1,
                  "inPerSecond": 0.0, "outPerSecond": 1.0, "drainedInSeconds": 9.0 },
            ],
            "moreQueues": 4,
            "slow": [],
            "shards": [{ "shard": 0, "keeping": "up", "items": 0, "bytes": 0, "answers": true }],
        });
        let text = backlog_text(&answer);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[1].starts_with("dataflow/a") && lines[1].ends_with("never"),
            "{text}"
        );
        assert!(lines[2].contains("false") && lines[2].ends_with("9 s"), "{text}");
        assert_eq!(
            lines[3..5],
            ["4 more queues: --max shows them", "every connection keeps up"]
        );
    }
}
