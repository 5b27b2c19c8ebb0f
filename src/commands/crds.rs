//! `foreshore crds`: the custom resource definitions, for `kubectl apply -f -`.

use std::io::Write as _;

use anyhow::{Context, Result};
use foreshore_crds::generate;
use foreshore_operator::status::remedy;

/// What to print.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Print all generated files as a JSON array of path and text, for `cargo xtask generate`.
    #[arg(long, hide = true)]
    json: bool,
}

/// Prints the definitions.
pub(crate) fn run(options: &Options) -> Result<()> {
    let manifests = generate::manifests().context("generate the definitions")?;
    if options.json {
        let mut files: Vec<(String, String)> = manifests
            .into_iter()
            .map(|(file, text)| (format!("crds/manifests/{file}"), text))
            .collect();
        let rules = generate::rules_page().context("generate the page of rules")?;
        files.push(("docs/errors/rules.md".to_owned(), rules));
        files.push(("docs/errors/reasons.md".to_owned(), remedy::page()));
        return print(&serde_json::to_string(&files)?);
    }
    let texts: String = manifests
        .into_iter()
        .map(|(_, text)| format!("---\n{text}"))
        .collect();
    print(&texts)
}

/// Prints; whoever reads may have enough before the end.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("print"),
        _ => Ok(()),
    }
}
