//! The recordings and what is to be said of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvindex::reference::Reference;
use kvindex::{EngineHashing, HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::engine::{Engine, decode};
use kvproto::hash::canonical::MmItem;
use kvproto::hash::vllm::Algo;
use serde_json::Value;

use crate::replant;
use crate::shadow::Shadow;

fn captures() -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    crates.map(|c| c.join("tests/fixtures/captures")).find(|d| d.is_dir()).expect("the committed captures")
}

/// One recorded message: topic, sequence number, payload.
struct Message {
    topic: Vec<u8>,
    seq: u64,
    payload: Vec<u8>,
}

fn messages(path: &Path) -> Vec<Message> {
    type Record<'a> = (&'a [u8], &'a [u8], &'a [u8], u64);
    let data = std::fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    let mut rest = data.as_slice();
    let mut out = Vec::new();
    while !rest.is_empty() {
        let mut de = rmp_serde::Deserializer::from_read_ref(rest);
        let (topic, seq, payload, _): Record<'_> = serde::Deserialize::deserialize(&mut de)
            .unwrap_or_else(|e| panic!("record {} of {}: {e}", out.len(), path.display()));
        let used = 1 + [topic, seq, payload].iter().map(|b| head(b.len()) + b.len()).sum::<usize>() + 9;
        let seq = u64::from_be_bytes(seq.try_into().expect("8 bytes of sequence number"));
        out.push(Message { topic: topic.to_vec(), seq, payload: payload.to_vec() });
        rest = &rest[used..];
    }
    out
}

/// Bytes of a msgpack `bin` header.
fn head(len: usize) -> usize {
    match len {
        0..=0xff => 2,
        0x100..=0xffff => 3,
        _ => 5,
    }
}

/// A run: its publishers, in the order that steps name them.
struct Run {
    doc: Value,
    streams: Vec<Vec<Message>>,
    topics: Option<Vec<Vec<u8>>>,
}

impl Run {
    fn load(json: &Path) -> Option<Run> {
        let doc: Value = serde_json::from_slice(&std::fs::read(json).expect("read")).expect("valid JSON");
        let files = doc.get("streams")?.as_array()?;
        let streams = files.iter().map(|f| messages(&captures().join(f.as_str().expect("a name")))).collect();
        let topics = doc
            .get("kv_events_configs")
            .and_then(Value::as_array)
            .map(|cs| cs.iter().map(|c| c["topic"].as_str().expect("a topic").as_bytes().to_vec()).collect());
        Some(Run { doc, streams, topics })
    }

    fn engines(&self) -> usize {
        self.topics.as_ref().map_or(self.streams.len(), Vec::len)
    }

    fn engine_of(&self, step: &Value) -> Option<usize> {
        if let Some(s) = step.get("stream").and_then(Value::as_u64) {
            return Some(s as usize);
        }
        if let Some(topics) = &self.topics {
            let topic = step.get("engine_topic")?.as_str()?;
            return topics.iter().position(|t| t == topic.as_bytes());
        }
        if self.streams.len() > 1 {
            return step.get("data_parallel_rank_asked")?.as_u64().map(|r| r as usize);
        }
        Some(0)
    }

    /// Messages of `engine`'s stream that had arrived before the step.
    fn cut(&self, step: &Value, engine: usize) -> Option<usize> {
        let before = step.get("msgs_before")?.as_array()?;
        let at = if self.topics.is_some() { 0 } else { engine };
        before.get(at).or(before.first())?.as_u64().map(|n| n as usize)
    }

    fn spec(&self, engine: usize) -> HolderSpec {
        let mut spec = HolderSpec::new("default", "m", &format!("engine{engine}"), engine as u32);
        spec.attention_chunk = self.doc["attention_chunk_size"].as_u64().map(|n| n as u32);
        if self.is_sglang() {
            spec.offload_chunk = Some(1);
        }
        if self.doc.get("needs_hash").is_some() {
            let r = &self.doc["resolved"];
            let algo = Algo::from_name(r["hash_algo"].as_str().expect("an algorithm")).expect("known");
            spec.hashing =
                Some(EngineHashing { algo, seed: r["none_hash_seed"].as_str().map(str::to_owned) });
        }
        spec
    }

    fn is_sglang(&self) -> bool {
        self.doc["engine"].as_str().is_some_and(|e| e.starts_with("sglang"))
    }

    /// Steps that no index outside the engine can be exact about, and why.
    fn exclusions(&self) -> HashMap<usize, &'static str> {
        let mut out = HashMap::new();
        let mut waiting: HashMap<usize, (&'static str, usize)> = HashMap::new();
        let mut paths: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (i, step) in self.steps().iter().enumerate() {
            let op = step["op"].as_str().unwrap_or("");
            let engines = match step.get("stream").and_then(Value::as_u64) {
                Some(s) => s as usize..s as usize + 1,
                None => 0..self.engines(),
            };
            let delay = if op.contains("reset_prefix_cache")
                && step["ok"].as_bool().unwrap_or(true)
                && step["status"].as_u64().unwrap_or(200) == 200
            {
                Some("reset delay")
            } else if op == "engine-restart" {
                Some("restart delay")
            } else {
                None
            };
            if let Some(why) = delay {
                for e in engines {
                    waiting.insert(e, (why, self.cut(step, e).unwrap_or(0)));
                }
            }
            if !is_probe(step) {
                continue;
            }
            let lora = lora_of(step);
            if let (Some(name), Some(path)) = (lora, step["lora"]["path"].as_str()) {
                paths.entry(name.to_owned()).or_default().insert(path.to_owned());
            }
            let why = match self.engine_of(step) {
                None => Some("rank not known"),
                Some(_) if step["concurrent"].as_bool() == Some(true) => Some("concurrent"),
                Some(_) if step["together"].as_u64().unwrap_or(1) > 1 => Some("concurrent"),
                Some(_) if step.get("prompt_logprobs").is_some_and(|v| !v.is_null()) => {
                    Some("prompt_logprobs")
                }
                Some(e) => match waiting.get(&e) {
                    Some(&(why, at)) if self.cut(step, e).unwrap_or(0) <= at => Some(why),
                    _ if lora.is_some_and(|n| paths.get(n).is_some_and(|p| p.len() > 1)) => {
                        Some("adapters of one name")
                    }
                    _ => None,
                },
            };
            if let Some(why) = why {
                out.insert(i, why);
            }
        }
        out
    }

    fn steps(&self) -> &[Value] {
        self.doc["steps"].as_array().map_or(&[], Vec::as_slice)
    }
}

fn is_probe(step: &Value) -> bool {
    step["prompt_token_ids"].is_array()
        && step["cached_tokens"].is_u64()
        && step["status"].as_u64().unwrap_or(200) == 200
}

fn lora_of(step: &Value) -> Option<&str> {
    match &step["lora"] {
        Value::String(s) => Some(s),
        Value::Object(o) => o.get("name").or(o.get("lora_name"))?.as_str(),
        _ => None,
    }
}

/// Exact and compared requests of a run, and what differed. Where `every` is not 0, the index is put back
/// from a snapshot of itself before each so manieth step.
fn check(run: &Run, every: usize, shadow: &mut dyn Shadow) -> (usize, usize, Vec<String>) {
    let mut index = Arc::new(Index::new(IndexConfig::default()));
    let specs: Vec<HolderSpec> = (0..run.engines()).map(|e| run.spec(e)).collect();
    let mut ids: Vec<HolderId> = specs.iter().map(|s| index.attach(s.clone())).collect();
    specs.iter().zip(&ids).for_each(|(spec, id)| shadow.attach(*id, spec));
    let mut references: Vec<Reference> = specs.into_iter().map(Reference::new).collect();
    let mut position = vec![0usize; run.engines()];
    let mut last: Vec<Option<u64>> = vec![None; run.engines()];
    let excluded = run.exclusions();
    let decoder = if run.is_sglang() { Engine::Sglang } else { Engine::Vllm };
    let (mut exact, mut total, mut wrong) = (0, 0, vec![]);
    for (i, step) in run.steps().iter().enumerate() {
        if every > 0 && i % every == every / 2 {
            (index, ids) = replant::replant(&index, &ids);
        }
        for e in 0..run.engines() {
            let stream = &run.streams[if run.topics.is_some() { 0 } else { e }];
            let Some(cut) = run.cut(step, e) else { continue };
            while position[e] < cut.min(stream.len()) {
                let m = &stream[position[e]];
                position[e] += 1;
                if run.topics.as_ref().is_some_and(|t| t[e] != m.topic) {
                    continue;
                }
                if last[e].is_some_and(|l| m.seq <= l) {
                    index.clear(ids[e]);
                    shadow.clear(ids[e]);
                    references[e].clear();
                }
                last[e] = Some(m.seq);
                let batch = decode(decoder, &m.payload).expect("a recorded batch");
                assert_eq!(batch.skipped, Default::default(), "nothing recorded is skipped");
                index.apply(ids[e], &batch);
                shadow.apply(ids[e], &batch);
                if every == 0 {
                    references[e].apply(&batch);
                }
            }
        }
        if !is_probe(step) || excluded.contains_key(&i) {
            continue;
        }
        let e = run.engine_of(step).expect("known, or excluded");
        let tokens: Vec<u32> = numbers(&step["prompt_token_ids"]);
        let mm = step["mm_features"].as_array().cloned().unwrap_or_default();
        let items: Vec<MmItem<'_>> = mm
            .iter()
            .map(|m| MmItem {
                identifier: m["identifier"].as_str().expect("an identifier"),
                offset: m["offset"].as_u64().expect("an offset") as u32,
                length: m["length"].as_u64().expect("a length") as u32,
            })
            .collect();
        let lora = lora_of(step);
        let cache_salt = step["cache_salt"].as_str();
        let prompt = Prompt::Tokens { tokens: &tokens, lora, cache_salt, items: &items };
        let query = Query::new("default", "m", prompt);
        let answer = index.query(&query);
        wrong.extend(shadow.compare(&query, &answer).err().map(|e| format!("step {i}: {e}")));
        let got = answer.scores.iter().find(|s| s.holder == ids[e]).expect("a candidate").cached_tokens;
        let want = step["cached_tokens"].as_u64().expect("checked");
        total += 1;
        if every == 0 {
            assert_eq!(references[e].expect(&query).cached_tokens, want, "the reference itself, step {i}");
        }
        if got == want {
            exact += 1;
        } else {
            wrong.push(format!("step {i}: {} tokens, predicted {got}, engine said {want}", tokens.len()));
        }
    }
    ids.into_iter().for_each(|id| shadow.detach(id));
    (exact, total, wrong)
}

fn numbers(v: &Value) -> Vec<u32> {
    v.as_array().map_or(vec![], |a| a.iter().filter_map(Value::as_u64).map(|n| n as u32).collect())
}

/// Checks every recording, put back from a snapshot before each `every`th step where that is not 0.
pub fn check_all(every: usize, shadow: &mut dyn Shadow) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(captures())
        .expect("the committed captures")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|x| x == "json"))
        .collect();
    files.sort();
    let (mut exact, mut total, mut runs, mut report) = (0, 0, 0, String::new());
    for file in files {
        let Some(run) = Run::load(&file) else { continue };
        if !run.steps().iter().any(is_probe) {
            continue;
        }
        runs += 1;
        let (e, t, wrong) = check(&run, every, shadow);
        exact += e;
        total += t;
        for w in wrong {
            report += &format!("{}: {w}\n", file.file_stem().expect("a name").display());
        }
    }
    assert!(report.is_empty(), "{exact} of {total} exact\n{report}");
    // What the recordings hold: a file gone missing must not pass for exactness.
    assert_eq!((runs, total), (40, 1046));
}
