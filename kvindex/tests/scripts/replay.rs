//! Goes through a conversation line by line.

use std::path::{Path, PathBuf};

use crate::world::World;

/// The script with its answers as they are now, with something done to the world before each line, and how many
/// scores the reference confirmed.
pub fn replay_with(
    name: &str,
    text: &str,
    mut world: World,
    mut before: impl FnMut(&mut World),
) -> Result<(String, u32), String> {
    let mut out = String::new();
    let mut said: Vec<(&str, Vec<String>)> = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((n, line)) = lines.next() {
        out += line;
        out.push('\n');
        if line == "---" {
            if said.is_empty() {
                return Err(format!("{name}:{}: nothing was asked", n + 1));
            }
            out += &answers(&std::mem::take(&mut said));
            // The answers of last time.
            if lines.by_ref().any(|(_, l)| l.is_empty()) {
                out.push('\n');
            }
            continue;
        }
        let words = line.split('#').next().unwrap_or("").trim();
        if !words.is_empty() {
            before(&mut world);
            let lines = world.line(words).map_err(|e| format!("{name}:{}: {e}", n + 1))?;
            if !lines.is_empty() {
                said.push((words, lines));
            }
        }
    }
    match said.is_empty() {
        true => Ok((out, world.confirmed.get())),
        false => Err(format!("{name}: the last questions have no `---` after them")),
    }
}

/// The answers to the lines of one section.
fn answers(said: &[(&str, Vec<String>)]) -> String {
    let is_score = |line: &str| line.starts_with("score");
    let several = said.iter().filter(|(line, _)| is_score(line)).count() > 1;
    let mut out = String::new();
    for (line, lines) in said {
        if several && is_score(line) {
            out += &format!("> {line}\n");
        }
        out += &format!("{}\n", lines.join("\n"));
    }
    out
}

/// What is wrong with a script: its first line that differs.
pub fn difference(name: &str, expected: &str, got: &str) -> Option<String> {
    let (mut e, mut g) = (expected.lines(), got.lines());
    (1..).map(|n| (n, e.next(), g.next())).take_while(|(_, e, g)| e.is_some() || g.is_some()).find_map(
        |(n, e, g)| {
            let end = "the end of the file";
            (e != g).then(|| format!("{name}:{n}: expected {}\n  got {}", e.unwrap_or(end), g.unwrap_or(end)))
        },
    )
}

/// All conversations.
pub fn scripts() -> Vec<PathBuf> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let dir = crates.map(|c| c.join("tests/scripts")).find(|d| d.is_dir()).expect("the scripts");
    let mut files: Vec<_> =
        std::fs::read_dir(&dir).expect("the scripts").map(|e| e.expect("an entry").path()).collect();
    files.retain(|f| f.extension().is_some_and(|x| x == "txt"));
    files.sort();
    files
}
