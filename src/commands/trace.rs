//! `foreshore trace`: where messages are.

use std::time::Duration;

use anyhow::{Context, Result};
use foreshore_broker::inspect::trace::MessageId;
use foreshore_record::TopicFilter;
use serde_json::Value;

use super::{
    broker::inspect::{Target, words},
    parse_time,
    status::Form,
};
use crate::admin::About;

/// Which messages, and whom to ask.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    wanted: Wanted,
}

/// Which messages, and how to show them.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("messages wanted").args(["topic", "id"]).required(true))]
pub(crate) struct Wanted {
    /// Watch what happens to the next messages whose topic this filter matches.
    #[arg(long, value_name = "FILTER")]
    topic: Option<String>,
    /// Look for one message: by its entry in the store, a number, or by its CloudEvents id.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Watch so many messages, 256 at most.
    #[arg(long, value_name = "N", default_value_t = 10, conflicts_with = "id")]
    messages: usize,
    /// Watch for so long at most, up to five minutes. It ends earlier when all that is wanted has happened.
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = parse_time, conflicts_with = "id")]
    within: Duration,
    #[command(flatten)]
    form: Form,
}

impl Wanted {
    /// The question to a broker.
    ///
    /// # Errors
    /// When the topic filter is not valid.
    pub(crate) fn about(&self) -> Result<About> {
        if let Some(id) = &self.id {
            let Ok(id) = id.parse::<MessageId>();
            return Ok(About::Message(id));
        }
        let filter = self.topic.as_deref().unwrap_or_default();
        Ok(About::Trace {
            filter: TopicFilter::new(filter).with_context(|| format!("--topic: found {filter:?}"))?,
            max: self.messages,
            within_ms: u64::try_from(self.within.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Prints an answer as JSON or as people like it.
    pub(crate) fn show(&self, answer: &Value) {
        if self.form.is_text() {
            print!("{}", words(answer));
        } else {
            println!("{answer:#}");
        }
    }
}

/// Asks, and prints the answer.
pub(crate) async fn run(options: Options) -> Result<()> {
    let Options { target, wanted } = options;
    let answer = target.ask(wanted.about()?).await?;
    wanted.show(&answer);
    Ok(())
}
