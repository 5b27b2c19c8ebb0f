//! `foreshore status`: how everything stands, with reasons, evidence and next steps.

use std::path::PathBuf;

use anyhow::Result;

use super::up::{Request, ask};

/// What to show.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Data directory of the `foreshore up` to ask.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Form: text for people, or json with everything that is known.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Asks and prints.
pub(crate) async fn run(options: Options) -> Result<()> {
    let data = options.data.map_or_else(super::default_data_directory, Ok)?;
    let answer = ask(
        &data,
        &Request::Status {
            text: options.output == Output::Text,
        },
    )
    .await?;
    match answer.as_str() {
        Some(text) => println!("{text}"),
        None => println!("{}", serde_json::to_string_pretty(&answer)?),
    }
    Ok(())
}
