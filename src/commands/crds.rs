//! `foreshore crds`: the custom resource definitions, for `kubectl apply -f -`.

use anyhow::{Context, Result};
use foreshore_crds::generate;

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
        let files: Vec<(String, String)> = manifests
            .into_iter()
            .map(|(file, text)| (format!("crds/manifests/{file}"), text))
            .collect();
        println!("{}", serde_json::to_string(&files)?);
        return Ok(());
    }
    for (_, text) in manifests {
        print!("---\n{text}");
    }
    Ok(())
}
