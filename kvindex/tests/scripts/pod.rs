//! What does an engine of a script send? Its hashes and its events, from a line's words.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use kvindex::reference::Reference;
use kvindex::{EngineHashing, HolderId, HolderSpec, Index};
use kvproto::event::{BatchBuilder, Content, StoredFields};
use kvproto::hash::canonical::{Namespace, prompt_hashes};
use kvproto::hash::vllm::{self, Algo};
use kvproto::{EngineHash, ExtraKey};

use crate::Shadow;
use crate::args::{Args, TOKENS_PER_LABEL, number, tier, tokens_of};

/// What tells which blocks an event is about.
const BLOCKS: &str = "after tier group lora lora_path salt sglang_salt mm mm_bare keep every size canonical";
/// What else a store may say.
const STORE: &str = "kind described bare based";

/// One engine and the reference model of it.
pub struct Pod {
    pub id: HolderId,
    pub spec: HolderSpec,
    pub reference: Reference,
    /// Whether everything about this engine is within what the reference models.
    pub modelled: bool,
    /// Labels up to each block it spoke of, by hash.
    names: HashMap<EngineHash, String>,
    block: u32,
    /// What its hashes start from.
    pub seed: u64,
}

/// The blocks an event is about.
struct Blocks<'x> {
    parent: Option<EngineHash>,
    tokens: Vec<u32>,
    hashes: Vec<EngineHash>,
    extras: Vec<Vec<ExtraKey<'x>>>,
}

impl Pod {
    /// Attaches the pod that `text` describes, as `w1 block=4 seed=7`.
    pub fn attach(text: &str, index: &Index) -> Result<Pod, String> {
        let (name, options) = text.split_once(' ').ok_or("a pod needs a name and a block size")?;
        let spec = HolderSpec::new("t", "m", name, 0);
        let mut pod = Pod {
            id: HolderId(0),
            reference: Reference::new(spec.clone()),
            spec,
            modelled: true,
            names: HashMap::new(),
            block: 0,
            seed: 0,
        };
        pod.set(
            options,
            &["block", "seed", "salt", "lora", "chunk", "attention_chunk", "hash", "node", "tiers_of"],
        )?;
        if pod.block == 0 {
            return Err("a pod needs a block size".to_owned());
        }
        pod.reference = Reference::new(pod.spec.clone());
        pod.id = index.attach(pod.spec.clone());
        Ok(pod)
    }

    /// Loses all it holds and comes up again, with other `options` if any are given.
    pub fn restart(&mut self, options: &str, index: &Index) -> Result<(), String> {
        self.set(options, &["block", "seed"])?;
        index.clear(self.id);
        self.reference.clear();
        Ok(())
    }

    fn set(&mut self, options: &str, allowed: &[&str]) -> Result<(), String> {
        for word in options.split_whitespace() {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("`{word}` is not KEY=VALUE"))?;
            match key {
                _ if !allowed.contains(&key) => return Err(format!("no option `{key}` here")),
                "block" => self.block = number(value)?,
                "seed" => self.seed = number(value)?,
                "salt" => self.spec.salt = value.to_owned(),
                "node" => self.spec.node = Some(value.to_owned()),
                "tiers_of" => {
                    let instance = std::mem::take(&mut self.spec.instance);
                    self.spec = HolderSpec { instance, ..HolderSpec::tiers("t", "m", value) };
                }
                "lora" => self.spec.lora = Some(value.to_owned()),
                "chunk" => self.spec.offload_chunk = Some(number(value)?),
                "attention_chunk" => self.spec.attention_chunk = Some(number(value)?),
                _ => {
                    let (algo, seed) = value.split_once(':').ok_or("a hash is ALGO:SEED")?;
                    let algo = Algo::from_name(algo).ok_or_else(|| format!("no algorithm `{algo}`"))?;
                    self.spec.hashing = Some(EngineHashing { algo, seed: Some(seed.to_owned()) });
                    self.modelled = false;
                }
            }
        }
        Ok(())
    }

    /// Sends the events in `line`, parted by `;`, as one batch. Says what was odd about it.
    pub fn send(&mut self, line: &str, index: &Index, shadow: &mut dyn Shadow) -> Result<String, String> {
        let mut events = Vec::new();
        for text in line.split(';').map(str::trim) {
            let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
            let args = match verb {
                "store" => Args::parse(rest, &[BLOCKS, STORE])?,
                "remove" => Args::parse(rest, &[BLOCKS])?,
                "clear" => Args::default(),
                _ => return Err(format!("no event `{verb}`")),
            };
            events.push((verb, rest, args));
        }
        let mut batch = BatchBuilder::new(0.0, None);
        for (verb, rest, args) in &events {
            match *verb {
                "store" => self.store(args, &mut batch)?,
                "remove" => {
                    let group = args.number("group")?.unwrap_or(0);
                    batch.removed(&self.blocks(args)?.hashes, args.tier()?, group);
                }
                _ if rest.is_empty() => {
                    batch.cleared(None);
                }
                _ => {
                    batch.cleared(Some(tier(rest)?));
                }
            }
        }
        let batch = batch.build();
        self.reference.apply(&batch);
        shadow.apply(self.id, &batch);
        let done = index.apply(self.id, &batch);
        let odd =
            [("orphans", done.orphans), ("unknown_removed", done.unknown_removed), ("refused", done.refused)];
        Ok(odd.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!(" {what}={n}")).collect())
    }

    fn store<'x>(&mut self, a: &'x Args<'_>, batch: &mut BatchBuilder<'x>) -> Result<(), String> {
        let blocks = self.blocks(a)?;
        let bare = a.has("bare");
        let content = match (bare || a.has("described"), a.has("canonical")) {
            (true, _) => Content::HashOnly,
            (false, true) => Content::Canonical,
            (false, false) => Content::Complete,
        };
        // Such events leave the extra keys out; that is why they do not tell the content.
        let extras = if content == Content::HashOnly { Vec::new() } else { blocks.extras };
        let fields = StoredFields {
            parent: blocks.parent.filter(|_| !bare),
            block_size: if bare { 0 } else { a.number("size")?.unwrap_or(self.block) },
            tier: a.tier()?,
            group: a.number("group")?.unwrap_or(0),
            spec: a.spec,
            lora: a.text("lora"),
            cache_salt: a.text("sglang_salt"),
            content,
            base_block: a.has("based").then_some(a.after.len() as u32 * TOKENS_PER_LABEL / self.block),
        };
        let tokens = if bare { &[] } else { blocks.tokens.as_slice() };
        batch.stored(fields, &blocks.hashes, tokens, &extras);
        Ok(())
    }

    fn blocks<'x>(&mut self, a: &'x Args<'_>) -> Result<Blocks<'x>, String> {
        // The reference does not know identifiers without a place, groups of larger blocks, or
        // hashes that stand for themselves.
        self.modelled &= !["mm_bare", "size", "canonical"].iter().any(|o| a.has(o));
        let path = [a.after.as_slice(), &a.labels].concat();
        let tokens = tokens_of(&path);
        let skipped = a.after.len() as u32 * TOKENS_PER_LABEL;
        if a.labels.is_empty()
            || !skipped.is_multiple_of(self.block)
            || !(tokens.len() as u32).is_multiple_of(self.block)
        {
            return Err(format!("these labels are not whole blocks of {} tokens", self.block));
        }
        let (hashes, extras) = self.chain(a, &tokens);
        for (i, h) in hashes.iter().enumerate() {
            let labels = ((i as u32 + 1) * self.block).div_ceil(TOKENS_PER_LABEL) as usize;
            let name: Vec<String> = path[..labels].iter().map(u32::to_string).collect();
            self.names.insert(*h, name.join("/"));
        }
        let first = (skipped / self.block) as usize;
        let every = match a.number("size")? {
            Some(n) => n / self.block,
            None => a.number("every")?.unwrap_or(1),
        };
        let announced: Vec<usize> =
            (first..hashes.len()).filter(|i| (*i as u32 + 1).is_multiple_of(every)).collect();
        let keep = a.number("keep")?.map_or(announced.len(), |n| announced.len().min(n as usize));
        let announced = &announced[announced.len() - keep..];
        Ok(Blocks {
            parent: first.checked_sub(1).map(|i| hashes[i]),
            tokens: tokens[skipped as usize..].to_vec(),
            hashes: announced.iter().map(|&i| hashes[i]).collect(),
            extras: announced.iter().map(|&i| extras[i].clone()).collect(),
        })
    }

    /// The engine's hashes of all whole blocks of `tokens`, and their extra keys.
    pub fn chain<'x>(&self, a: &'x Args<'_>, tokens: &[u32]) -> (Vec<EngineHash>, Vec<Vec<ExtraKey<'x>>>) {
        let blocks = || tokens.chunks_exact(self.block as usize).enumerate();
        let keys_of = |i: usize| {
            let mut keys = Vec::new();
            a.extras().of_block(i as u64 * u64::from(self.block), self.block, &mut keys);
            keys
        };
        let extras: Vec<Vec<ExtraKey<'x>>> = blocks().map(|(i, _)| keys_of(i)).collect();
        let mut hashes = Vec::new();
        if let Some(h) = &self.spec.hashing {
            let (seed, salt) = (h.seed.as_deref(), a.text("salt"));
            vllm::prompt_hashes(h.algo, seed, tokens, self.block, salt, &mut hashes)
                .expect("a seed is given");
        } else if a.has("canonical") {
            let seed =
                Namespace { salt: &self.spec.salt, model: &self.spec.model, lora: a.text("lora") }.seed();
            hashes = prompt_hashes(seed, tokens, self.block, a.extras()).map(|s| EngineHash(s.0)).collect();
        } else {
            let names = [a.text("lora"), a.text("lora_path"), a.text("sglang_salt")];
            let mut last = self.seed;
            for (i, block) in blocks() {
                let mut h = DefaultHasher::new();
                (last, block, &names, &extras[i]).hash(&mut h);
                last = h.finish();
                hashes.push(EngineHash(last));
            }
        }
        (hashes, extras)
    }

    /// The labels up to the block of hash `h`.
    pub fn name_of(&self, h: EngineHash) -> &str {
        self.names.get(&h).map_or("?", String::as_str)
    }
}
