//! What does an engine call the blocks of a prompt?
//!
//! For who has to know whether an event spoke of a prompt: events name blocks by the engine's hashes.

use kvproto::hash::canonical::{Namespace, PromptExtras, prompt_hashes};
use kvproto::hash::vllm;
use kvproto::{EngineHash, SeqHash};

use crate::forest::{Forest, Guard, Place, ROOT, Slot, Step, pin, words};
use crate::pool::{CANONICAL, Member, Pool};
use crate::profile::Profile;
use crate::types::{HolderId, Prompt, Query};
use crate::walk::Tokens;
use crate::{Index, in_blocks};

/// A block of a prompt by the name that the engines of one hash domain have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Position in the prompt, from 0, in blocks of the engine.
    pub block: u32,
    /// The name.
    pub name: EngineHash,
    /// Whether the holder asked about has the block, in any tier or group.
    pub held: bool,
}

impl Index {
    /// What engines call the blocks of the query's prompt, as `holder` cuts it: those it holds, and
    /// those that it or others held and are still remembered. A block may have a name in each of several
    /// hash domains. In order of their position within one domain.
    pub fn named(&self, query: &Query<'_>, holder: HolderId) -> Vec<Named> {
        let query = &in_blocks(query);
        let Some((pool, member)) = self.member(holder) else { return Vec::new() };
        let profile = member.profile.read().clone();
        let block_size = profile.block_size_for(query.block_size);
        if block_size == 0 {
            return Vec::new();
        }
        let most = query.max_blocks.map_or(usize::MAX, |n| n as usize);
        let guard = pin();
        let mut names = Names { pool: &pool, member: &member, guard: &guard, out: Vec::new() };
        match query.prompt {
            Prompt::Tokens { tokens, lora, cache_salt, items } => {
                if let Some(own) = own_hashes(&member, &profile, query, block_size) {
                    names.by_names(&own[..own.len().min(most)]);
                    return names.out;
                }
                let seed = Namespace { salt: &member.spec.salt, model: query.model, lora }.seed();
                let extras = PromptExtras { cache_salt, items, form: profile.form };
                let mut chain = Tokens::new(seed, tokens, block_size, extras, query.max_blocks, Vec::new());
                names.in_domains(|forest, guard, each| {
                    forest.by_locals(guard, Place { strand: ROOT, offset: 0 }, &mut chain, each);
                });
                if pool.forests.has_canonical() {
                    let seqs: Vec<u64> =
                        prompt_hashes(seed, tokens, block_size, extras).take(most).map(|s| s.0).collect();
                    names.in_canonical(&seqs);
                }
            }
            Prompt::Local(locals) => {
                let locals = words(&locals[..locals.len().min(most)]);
                names.in_domains(|forest, guard, each| {
                    forest.by_locals(guard, Place { strand: ROOT, offset: 0 }, &mut &*locals, each);
                });
            }
            Prompt::Canonical(seqs) => {
                let seqs: &[SeqHash] = &seqs[..seqs.len().min(most)];
                names.in_domains(|forest, guard, each| forest.by_seqs(guard, seqs, each));
                if pool.forests.has_canonical() {
                    names.in_canonical(words(seqs));
                }
            }
            Prompt::Llmd(keys) => {
                let keys: Vec<u64> = keys.iter().take(most).map(|k| k.0).collect();
                names.in_domains(|forest, guard, each| forest.by_keys(guard, &keys, each));
            }
            Prompt::Engine(hashes) => names.by_names(&hashes[..hashes.len().min(most)]),
        }
        names.out
    }
}

/// The engine's own hashes of the prompt, where its blocks are looked up by those.
fn own_hashes(
    member: &Member,
    profile: &Profile,
    query: &Query<'_>,
    block_size: u32,
) -> Option<Vec<EngineHash>> {
    let Prompt::Tokens { tokens, lora: None, cache_salt, items: [] } = query.prompt else { return None };
    let hashing = member.spec.hashing.as_ref().filter(|_| !profile.has_full_group())?;
    let mut out = Vec::new();
    let seed = hashing.seed.as_deref();
    vllm::prompt_hashes(hashing.algo, seed, tokens, block_size, cache_salt, &mut out).ok()?;
    Some(out)
}

struct Names<'p> {
    pool: &'p Pool,
    member: &'p Member,
    guard: &'p Guard,
    out: Vec<Named>,
}

impl<'p> Names<'p> {
    /// Follows the prompt in every domain of named blocks.
    fn in_domains(
        &mut self,
        mut follow: impl FnMut(&'p Forest, &'p Guard, &mut dyn FnMut(Step<'p>) -> bool),
    ) {
        for d in self.pool.forests.domains() {
            let forest = self.pool.forests.get(d);
            follow(forest, self.guard, &mut |step| self.take(forest, &step));
        }
    }

    fn in_canonical(&mut self, seqs: &[u64]) {
        let forest = self.pool.forests.get(CANONICAL);
        forest.by_names(self.guard, seqs, |step| self.take(forest, &step));
    }

    /// Of names that are given, which the holder has.
    fn by_names(&mut self, hashes: &[EngineHash]) {
        let mut held = vec![false; hashes.len()];
        let names: Vec<u64> = hashes.iter().map(|h| h.0).collect();
        for (_, forest) in self.pool.forests.iter() {
            forest.by_names(self.guard, &names, |step| {
                each_held(self.member, &step, |block| held[block as usize] = true);
                true
            });
        }
        let named = hashes.iter().zip(held).zip(0..);
        self.out.extend(named.map(|((&name, held), block)| Named { block, name, held }));
    }

    fn take(&mut self, forest: &Forest, step: &Step<'_>) -> bool {
        let first = self.out.len();
        let names = forest.names(step.look).iter().skip(step.offset as usize).take(step.n as usize);
        self.out.extend((step.from..).zip(names).map(|(block, &name)| Named {
            block,
            name: EngineHash(name),
            held: false,
        }));
        let new = &mut self.out[first..];
        each_held(self.member, step, |block| {
            if let Some(named) = new.get_mut((block - step.from) as usize) {
                named.held = true;
            }
        });
        true
    }
}

/// Calls `held` with the position of each block of `step` that `member` has.
fn each_held(member: &Member, step: &Step<'_>, mut held: impl FnMut(u32)) {
    let Ok(own) = Slot::try_from(member.slot) else { return };
    let (lo, hi) = (step.offset, step.offset + step.n);
    step.look.each(|_, slot, (from, to)| {
        if slot == own {
            (from.max(lo)..to.min(hi)).for_each(|at| held(step.from + at - lo));
        }
    });
}
