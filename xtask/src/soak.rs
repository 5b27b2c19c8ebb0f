//! `cargo xtask soak`: the broker under everything at once, for a long time.

use anyhow::Result;

use crate::{bench, e2e, shell};

/// How long, and what.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Time under load, such as 2m or 20m.
    #[arg(long = "for", value_name = "TIME", default_value = "20m")]
    duration: String,
    /// The debug build, as the tests have it, instead of the release build.
    #[arg(long)]
    debug: bool,
}

/// Builds the broker and what loads it, and runs that.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.debug {
        e2e::build()?;
        soak("debug", &options.duration)
    } else {
        bench::build()?;
        soak("release", &options.duration)
    }
}

/// The soak among the tests, of what was built for these: two minutes of it, or all.
pub(crate) fn of_tests(full: bool) -> Result<()> {
    soak("debug", if full { "20m" } else { "2m" })
}

fn soak(profile: &str, duration: &str) -> Result<()> {
    let program = shell::built(profile)?.join("foreshore-bench");
    let mut command = shell::command(&program.to_string_lossy(), &["soak", "--for", duration]);
    shell::run("soak", &mut command)
}
