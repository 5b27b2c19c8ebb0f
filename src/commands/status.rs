//! `foreshore status`: how everything stands, with reasons, evidence and next steps.

use std::path::PathBuf;

use anyhow::Result;

use super::up::ask;
use crate::admin::Request;

/// What to show.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Data directory of the `foreshore up` to ask.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
}

/// How to show it.
#[derive(clap::Args)]
pub(crate) struct Form {
    /// Form: text for people, or json with everything that is known.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Form {
    /// Whether people read it.
    pub(crate) fn is_text(&self) -> bool {
        self.output == Output::Text
    }
}

/// Asks and prints.
pub(crate) async fn run(options: Options) -> Result<()> {
    let data = options.data.map_or_else(super::default_data_directory, Ok)?;
    let text = options.form.is_text();
    let answer = ask(&data, &Request::Status { text }).await?;
    match answer.as_str() {
        Some(text) => print!("{text}"),
        None => println!("{answer:#}"),
    }
    Ok(())
}
