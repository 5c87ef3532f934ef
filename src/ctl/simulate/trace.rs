//! Which prompts come when: read from a file or made up.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::Context;

/// One prompt.
#[derive(Clone, Debug)]
pub struct Request {
    /// ms since the trace began.
    pub at: u64,
    /// Its blocks from the root, numbered from 0 over the trace. A number stands for the block and
    /// all before it.
    pub chain: Vec<u32>,
}

/// Prompts in the order they come.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What to call it.
    pub name: String,
    /// The prompts.
    pub requests: Vec<Request>,
    /// Distinct blocks.
    pub blocks: u32,
}

impl Trace {
    /// Reads a trace in Mooncake's format: an object a line with `timestamp` (ms) and `hash_ids`.
    pub fn read(path: &Path) -> anyhow::Result<Trace> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut numbers: HashMap<u64, u32> = HashMap::new();
        let mut requests = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let request = parse(line, &mut numbers);
            requests.push(request.with_context(|| format!("{}, line {}", path.display(), at + 1))?);
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Trace::new(name, requests))
    }

    /// A trace of requests whose blocks are numbered from 0.
    pub fn new(name: String, mut requests: Vec<Request>) -> Trace {
        requests.sort_by_key(|r| r.at);
        let blocks = requests.iter().flat_map(|r| &r.chain).max().map_or(0, |b| b + 1);
        Trace { name, requests, blocks }
    }

    /// Blocks asked for.
    pub fn accesses(&self) -> u64 {
        self.requests.iter().map(|r| r.chain.len() as u64).sum()
    }
}

fn parse(line: &str, numbers: &mut HashMap<u64, u32>) -> anyhow::Result<Request> {
    let value: serde_json::Value = serde_json::from_str(line)?;
    let at = value["timestamp"].as_f64().context("no timestamp")? as u64;
    let ids = value["hash_ids"].as_array().context("no hash_ids")?;
    let mut chain = Vec::with_capacity(ids.len());
    for id in ids {
        let id = id.as_u64().context("a hash id is no number")?;
        let next = numbers.len() as u32;
        chain.push(*numbers.entry(id).or_insert(next));
    }
    Ok(Request { at, chain })
}
