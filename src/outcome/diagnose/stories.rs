//! Tells the stories in `stories/` and compares what is found.
//!
//! Lines above a `---` tell what happened; those below it are the findings. `UPDATE_SCRIPTS=1 cargo test
//! -p kvd stories` writes them, to be reviewed as a diff.
//!
//! ```text
//! publisher [adapter NAME] [own_hashes]         how it is registered
//! events [stored N] [roots N] [salted N] [adapters N NAME,NAME]
//! N x run PROMPT predicted P reported R [now W] [found F] [left] [salt] [lora heard|unheard]
//!         [hashes] [counted TOKENS] [fits INSTANCE/RANK] [lagging]
//! distrusted N
//! ```
//!
//! All numbers are tokens; blocks are of 16. `160+32` grows by 32 with every run of its line. What is not
//! said is as it should be: the index holds all of a prompt when the engine has run it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use kvindex::HolderId;

use super::*;
use crate::outcome::account::AskedBy;
use crate::outcome::judge::{Case, Left, judge};
use crate::outcome::trail::Trail;

const BLOCK: u64 = 16;

#[derive(Default)]
struct Story {
    statement: Statement,
    adapter: Option<String>,
    by_engine_hash: bool,
    others: HashMap<HolderId, Who>,
}

impl Story {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["publisher", ref rest @ ..] => self.publisher(rest),
            ["events", ref rest @ ..] => self.events(rest),
            ["distrusted", n] => number(n, 0).map(|n| self.statement.distrusted = n as usize),
            [times, "x", "run", ref rest @ ..] => {
                (0..number(times, 0)?).try_for_each(|nth| self.run(rest, nth))
            }
            _ => Err(format!("no line `{line}`")),
        }
    }

    fn publisher(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            [] => Ok(()),
            ["adapter", name, rest @ ..] => {
                self.adapter = Some((*name).to_owned());
                self.publisher(rest)
            }
            ["own_hashes", rest @ ..] => {
                self.by_engine_hash = true;
                self.publisher(rest)
            }
            [word, ..] => Err(format!("no word `{word}`")),
        }
    }

    fn events(&mut self, words: &[&str]) -> Result<(), String> {
        let heard = &mut self.statement.heard;
        match words {
            [] => return Ok(()),
            ["adapters", n, names, rest @ ..] => {
                heard.with_adapter = number(n, 0)?;
                heard.adapters = names.split(',').map(Into::into).collect();
                return self.events(rest);
            }
            ["stored", n, ..] => heard.stored = number(n, 0)?,
            ["roots", n, ..] => heard.roots = number(n, 0)?,
            ["salted", n, ..] => heard.salted_roots = number(n, 0)?,
            [word, ..] => return Err(format!("no word `{word}`")),
        }
        self.events(&words[2..])
    }

    fn run(&mut self, words: &[&str], nth: u64) -> Result<(), String> {
        let [prompt, "predicted", predicted, "reported", reported, rest @ ..] = words else {
            return Err("a run has a prompt, predicted and reported".to_owned());
        };
        let [prompt, predicted, reported] =
            [number(prompt, nth)?, number(predicted, nth)?, number(reported, nth)?];
        let whole = prompt / BLOCK * BLOCK;
        let mut c = Comparison {
            verdict: Verdict::Unclear,
            predicted,
            now: prompt.saturating_sub(1) / BLOCK * BLOCK,
            reported,
            block_size: BLOCK as u32,
            whole,
            found: whole,
            extra_tokens: None,
            asked_by: AskedBy::Tokens,
            salted: false,
            adapter_heard: None,
            fits: Default::default(),
            disturbed: false,
        };
        let (mut left, mut lagging) = (Left::No, false);
        let mut rest = rest.iter();
        while let Some(word) = rest.next() {
            let mut next = || rest.next().ok_or(format!("`{word}` wants a value"));
            match *word {
                "now" => c.now = number(next()?, nth)?,
                "found" => c.found = number(next()?, nth)?,
                "counted" => c.extra_tokens = Some(number(next()?, nth)? as i64 - prompt as i64),
                "lora" => c.adapter_heard = Some(*next()? == "heard"),
                "salt" => c.salted = true,
                "hashes" => c.asked_by = AskedBy::Hashes,
                "left" => (left, c.disturbed) = (Left::Yes, true),
                "lagging" => (lagging, c.disturbed) = (true, true),
                "fits" => c.fits.push(self.other(next()?)?),
                _ => return Err(format!("no word `{word}`")),
            }
        }
        let trail = Trail::new(1);
        c.verdict = judge(&Case {
            predicted,
            now: c.now,
            reported,
            vouched: true,
            lagging,
            offload_in_doubt: false,
            since: &trail.since(Instant::now()),
            left,
        });
        self.statement.window.push(c);
        Ok(())
    }

    fn other(&mut self, name: &str) -> Result<HolderId, String> {
        let (instance, rank) = name.split_once('/').ok_or("another is INSTANCE/RANK")?;
        let other = who(instance, number(rank, 0)? as u32);
        if let Some((known, _)) = self.others.iter().find(|(_, w)| **w == other) {
            return Ok(*known);
        }
        let id = HolderId(1 + self.others.len() as u32);
        self.others.insert(id, other);
        Ok(id)
    }

    fn findings(&self) -> String {
        let found = diagnose(&About {
            who: &who("a", 0),
            statement: &self.statement,
            adapter: self.adapter.as_deref(),
            by_engine_hash: self.by_engine_hash,
            others: &self.others,
        });
        if found.is_empty() {
            return "nothing\n".to_owned();
        }
        let line = |f: &Finding| {
            format!("{} {:?} {:.0} %\n  {}\n", f.problem.name(), f.severity, 100.0 * f.confidence, f.evidence)
        };
        found.iter().map(line).collect()
    }
}

fn who(instance: &str, rank: u32) -> Who {
    Who { tenant: "t".into(), model: "m".into(), instance: instance.into(), rank }
}

fn number(word: &str, nth: u64) -> Result<u64, String> {
    let (first, step) = word.split_once('+').unwrap_or((word, "0"));
    let parse = |w: &str| w.parse::<u64>().map_err(|_| format!("`{w}` is no number"));
    Ok(parse(first)? + nth * parse(step)?)
}

/// A file's stories with their findings as they are now.
fn tell(text: &str) -> Result<String, String> {
    let mut out = String::new();
    for told in text.split("\n\n") {
        let told = told.split("---").next().unwrap_or_default().trim();
        let mut story = Story::default();
        for line in told.lines().filter(|l| !l.starts_with('#')) {
            story.line(line)?;
        }
        out += &format!("{told}\n---\n{}\n", story.findings());
    }
    out.pop();
    Ok(out)
}

#[test]
fn stories_end_as_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/outcome/diagnose/stories");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let told = tell(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        if std::env::var_os("UPDATE_SCRIPTS").is_some() {
            std::fs::write(&file, told).unwrap();
        } else {
            assert_eq!(told, text, "{}", file.display());
        }
    }
}
