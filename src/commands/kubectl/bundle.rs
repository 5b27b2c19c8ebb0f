//! `kubectl foreshore support-bundle`: one archive with what a support case needs, without Secrets.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::PathBuf,
};

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use foreshore_operator::kubernetes::access::{Access, evidence::Evidence};
use jiff::Timestamp;

use super::{ledger, status};

/// Where to put it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The archive; foreshore-support-TIME.tar.gz where it is left out.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Collects and writes.
pub(super) async fn run(access: &Access, options: Options) -> Result<()> {
    let now = Timestamp::now();
    let name = format!("foreshore-support-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let output = options.output.unwrap_or_else(|| format!("{name}.tar.gz").into());
    let mut evidence = access.evidence().await;
    let version = format!("kubectl-foreshore {}\n{now}\n", env!("CARGO_PKG_VERSION"));
    evidence
        .files
        .push(("version.txt".to_owned(), version.into_bytes()));
    let text = status(access, true).await;
    let text = text.map(|text| text.as_str().unwrap_or_default().as_bytes().to_vec());
    evidence.add("status.txt", text.map_err(|error| format!("{error:#}")));
    let full = status(access, false)
        .await
        .map(|status| format!("{status:#}\n").into_bytes());
    evidence.add("status.json", full.map_err(|error| format!("{error:#}")));
    let ledger = ledger(access)
        .await
        .and_then(|ledger| Ok(serde_json::to_vec_pretty(&ledger)?));
    evidence.add("ledger.json", ledger.map_err(|error| format!("{error:#}")));

    let Evidence { mut files, missing } = evidence;
    for line in &missing {
        eprintln!("not collected: {line}");
    }
    files.push(("not-collected.txt".to_owned(), missing.join("\n").into_bytes()));
    let count = files.len();
    write(&output, &name, files, now).with_context(|| format!("write {}", output.display()))?;
    println!(
        "{count} files in {}; read it before you hand it on: it names your machines",
        output.display()
    );
    Ok(())
}

fn write(output: &PathBuf, folder: &str, files: Vec<(String, Vec<u8>)>, now: Timestamp) -> Result<()> {
    let file = BufWriter::new(File::create_new(output)?);
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len().try_into()?);
        header.set_mode(0o600);
        header.set_mtime(now.as_second().try_into()?);
        archive.append_data(&mut header, format!("{folder}/{path}"), content.as_slice())?;
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(())
}
