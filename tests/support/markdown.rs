//! Code blocks of the documentation.
#![allow(dead_code, reason = "every user compiles this and uses a part of it")]

/// The fenced blocks whose info string is `info`.
pub fn blocks(text: &str, info: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(opened) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if opened == info {
            found.push(block.join("\n") + "\n");
        }
    }
    found
}

/// What is below this heading, `## Limits`, up to the next of its rank.
pub fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let below = text.split_once(&format!("\n{heading}\n")).map(|(_, below)| below);
    let below = below.unwrap_or_else(|| panic!("no heading '{heading}'"));
    let (rank, _) = heading.split_once(' ').expect("its rank and its words");
    below.split_once(&format!("\n{rank} ")).map_or(below, |(section, _)| section)
}
