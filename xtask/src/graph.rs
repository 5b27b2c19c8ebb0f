//! The crate arrows as a Mermaid diagram.

use std::fmt::Write as _;

use anyhow::Result;

use crate::arrows;

/// Prints the diagram.
pub(crate) fn print() -> Result<()> {
    println!("{}", mermaid()?);
    Ok(())
}

/// Draws crates by layer, without the arrows that others imply.
pub(crate) fn mermaid() -> Result<String> {
    let arrows = arrows::read()?;
    let mut text = String::from("flowchart BT\n");
    for (index, (name, crates)) in arrows::layers().enumerate() {
        writeln!(text, "  subgraph layer{index} [{name}]")?;
        for name in crates.iter().filter(|name| arrows.contains_key(**name)) {
            writeln!(text, "    {}", short(name))?;
        }
        writeln!(text, "  end")?;
    }
    for (from, dependencies) in &arrows {
        let ours: Vec<&String> = dependencies
            .iter()
            .filter(|to| arrows.contains_key(*to))
            .collect();
        for to in &ours {
            let implied = ours.iter().any(|via| via != to && reaches(&arrows, via, to));
            if !implied {
                writeln!(text, "  {} --> {}", short(from), short(to))?;
            }
        }
    }
    Ok(text)
}

fn reaches(arrows: &arrows::Arrows, from: &str, to: &str) -> bool {
    let Some(dependencies) = arrows.get(from) else {
        return false;
    };
    dependencies.contains(to)
        || dependencies
            .iter()
            .filter(|via| arrows.contains_key(*via))
            .any(|via| reaches(arrows, via, to))
}

fn short(name: &str) -> &str {
    name.strip_prefix("foreshore-").unwrap_or(name)
}
