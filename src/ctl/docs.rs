//! Can what documents tell to type be typed, and do translations say the same?

use std::fs;

use clap::Parser;

use super::Cli;
use crate::args;

fn read(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Blocks of code, each with its language.
fn blocks(text: &str) -> Vec<&str> {
    text.split("\n```").skip(1).step_by(2).collect()
}

fn headings(text: &str) -> Vec<usize> {
    let mut fenced = false;
    let mut levels = Vec::new();
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        if !fenced && line.starts_with('#') {
            levels.push(line.chars().take_while(|c| *c == '#').count());
        }
    }
    levels
}

#[test]
fn commands_in_the_guides_can_be_typed() {
    let mut typed = 0;
    for path in ["docs/troubleshooting.md", "docs/operations.md"] {
        for block in blocks(&read(path)).iter().filter_map(|b| b.strip_prefix("sh\n")) {
            for line in block.lines() {
                let words = line.split_whitespace();
                let error = match words.clone().next() {
                    Some("kvctl") => Cli::try_parse_from(words).err(),
                    Some("kvd") => args::Cli::try_parse_from(words).err(),
                    Some("curl") => continue,
                    other => panic!("{path}: {other:?} is no command of kvd"),
                };
                assert!(error.is_none(), "{path}: {line}: {}", error.unwrap());
                typed += 1;
            }
        }
    }
    assert!(typed > 20, "{typed}");
}

#[test]
fn commands_in_the_table_of_symptoms_can_be_typed() {
    let text = read("docs/troubleshooting.md");
    let rows = text.lines().filter(|l| l.starts_with("| [")).filter(|l| l.matches('|').count() == 4);
    let mut seen = 0;
    for row in rows {
        let command = row.rsplit('`').nth(1).unwrap();
        let words = command.split_whitespace();
        match command.split(' ').next() {
            Some("kvctl") => drop(Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{command}: {e}"))),
            Some("kvd") => {
                drop(args::Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{command}: {e}")))
            }
            Some("curl") => {}
            _ => panic!("{row}"),
        }
        seen += 1;
    }
    assert!(seen >= 15, "{seen}");
}

#[test]
fn every_finding_of_the_doctor_is_in_a_guide() {
    let guides = read("docs/troubleshooting.md") + &read("docs/outcomes.md");
    let source = read("src/outcome/finding.rs");
    let names = source.lines().filter_map(|l| l.trim().strip_prefix("Problem::")?.split('"').nth(1));
    let mut seen = 0;
    for name in names {
        assert!(guides.contains(&format!("`{name}`")), "{name}");
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn translations_have_the_same_parts_and_the_same_commands() {
    for (path, translated) in
        [("README.md", "README.zh-CN.md"), ("docs/operations.md", "docs/operations.zh-CN.md")]
    {
        let (text, other) = (read(path), read(translated));
        assert_eq!(headings(&text), headings(&other), "headings of {path} and {translated}");
        assert_eq!(blocks(&text), blocks(&other), "code of {path} and {translated}");
    }
}
