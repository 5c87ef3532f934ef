//! What does each pod hold of the prompt, and what else does a plan depend on?

use kvindex::HolderId;
use kvproto::Tier;
use rustc_hash::FxHashMap;

use super::plan::PlanAsk;
use super::pods::Described;
use super::prompts::Source;
use super::{TransferError, Transfers, convert};
use crate::publisher::PublisherState;
use crate::serve::prompt::PromptKey;
use crate::serve::{Service, endpoint};
use crate::transfer::ledger::Record;
use crate::transfer::types::{Candidate, Choice, Endpoint, Held, LegKind, Load, Question, Roles};

/// Pods that may be used, with what the index knows of them.
pub(super) struct Asked {
    pods: Vec<Pod>,
    prompt_tokens: u32,
}

/// What the index knows of a pod.
#[derive(Clone, Copy, Default)]
struct Known {
    holder: Option<HolderId>,
    held: Held,
    block_size: u32,
    dead: bool,
}

struct Pod {
    endpoint: Endpoint,
    said: Described,
    load: Load,
    known: Known,
}

/// A pod of a plan, and what that counts on there.
pub(super) struct TakingPart {
    pub holder: Option<HolderId>,
    pub block_size: u32,
    /// Tokens of the prompt that its engine is to find, on its device or below.
    pub cached: u32,
}

/// Pods that are not to be used, because that has just failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Without {
    /// Not to prefill on or read from.
    pub sources: Vec<Endpoint>,
    /// Not to be used at all, although the caller may have asked for it.
    pub decode: Option<Endpoint>,
}

impl Asked {
    /// Pods that take part in a transfer, each once.
    pub fn taking_part(&self, record: &Record) -> impl Iterator<Item = TakingPart> {
        let all = self.pods.iter().filter(|pod| record.touches(&pod.endpoint));
        all.map(|Pod { known: Known { holder, block_size, held, .. }, .. }| TakingPart {
            holder: *holder,
            block_size: *block_size,
            cached: held.cached.max(held.cpu_alone),
        })
    }

    /// What `choice` wants to read before anything is computed.
    pub fn source(&self, choice: &Choice) -> Option<Source> {
        let leg = choice.legs.iter().find(|l| l.kind == LegKind::Pull)?;
        let held = |e: &Endpoint| self.pods.iter().find(|p| p.endpoint == *e).map(|p| p.known.held);
        let has = in_tier(&held(&leg.from)?, leg.tier);
        let lacks_from = held(&leg.to).map_or(0, |h| h.cached);
        let tokens = has.min(lacks_from.saturating_add(leg.tokens).max(leg.tokens));
        Some(Source { from: leg.from.clone(), tier: leg.tier, tokens })
    }
}

/// Tokens that can be read from `tier`, where it goes on from those above it.
fn in_tier(held: &Held, tier: Tier) -> u32 {
    match tier {
        Tier::Gpu => held.gpu,
        Tier::Cpu => held.cpu.max(held.cpu_alone),
        Tier::Disk => held.disk,
        Tier::Shared | Tier::Unknown => held.shared,
    }
}

impl Service {
    /// Asks the index about every pod that may be used.
    pub(super) fn holdings(&self, ask: &PlanAsk) -> Result<Asked, TransferError> {
        let mut names: Vec<&str> = ask.pods.iter().map(|(e, ..)| &*e.instance).collect();
        names.sort_unstable();
        names.dedup();
        let answer = ask.prompt.lend(|prompt| {
            self.ask(&kvindex::Query {
                tenant: &ask.tenant,
                model: &ask.model,
                prompt,
                block_size: ask.prompt.block_size,
                instances: &names,
                salt: None,
                max_blocks: None,
                speculative: false,
                weights: self.weights,
            })
        })?;
        let block_size = ask.prompt.block_size.or_else(|| answer.answer.scores.first().map(|s| s.block_size));
        let prompt_tokens = match &ask.prompt.key {
            PromptKey::Tokens(tokens) => tokens.len() as u64,
            PromptKey::Canonical(_) | PromptKey::Engine(_) | PromptKey::Llmd(_) => {
                let whole = ask.prompt.key.len() as u64 * u64::from(block_size.unwrap_or(0));
                whole.max(u64::from(ask.prompt_tokens))
            }
        };
        let prompt_tokens = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
        let own = self.held_by_themselves(ask, &names)?;
        let mut known = FxHashMap::default();
        for (score, view) in answer.answer.scores.iter().zip(&answer.holders) {
            let tokens = |blocks: u32| blocks.saturating_mul(score.block_size).min(prompt_tokens);
            let [gpu, cpu, disk, shared, _] = score.cumulative.map(tokens);
            let held = Held {
                gpu,
                cpu,
                disk,
                shared,
                cached: u32::try_from(score.cached_tokens).unwrap_or(u32::MAX).min(prompt_tokens),
                // What a node has below its engines no engine gives to another.
                cpu_alone: tokens(own.as_ref().map_or(score.by_tier[Tier::Cpu as usize], |own| {
                    own.get(&score.holder).copied().unwrap_or(0)
                })),
                fresh: view.freshness.state == PublisherState::Live && view.freshness.complete,
            };
            let endpoint = Endpoint { instance: view.instance().into(), rank: view.spec.rank };
            let dead = view.freshness.state == PublisherState::Dead;
            let holder = Some(score.holder);
            known.insert(endpoint, Known { holder, held, block_size: score.block_size, dead });
        }
        Ok(Asked { pods: self.joined(ask, known), prompt_tokens })
    }

    /// Blocks of the prompt that each engine has in host memory of its own, where nodes have tiers below them.
    fn held_by_themselves(
        &self,
        ask: &PlanAsk,
        names: &[&str],
    ) -> Result<Option<FxHashMap<HolderId, u32>>, TransferError> {
        if !self.index.has_tiers(&ask.tenant, &ask.model) {
            return Ok(None);
        }
        let answer = ask.prompt.lend(|prompt| {
            let query = kvindex::Query {
                block_size: ask.prompt.block_size,
                instances: names,
                ..kvindex::Query::new(&ask.tenant, &ask.model, prompt)
            };
            self.prepared(&query, |q| self.index.query_own(q))
        })?;
        let own = answer.scores.iter().map(|score| (score.holder, score.by_tier[Tier::Cpu as usize]));
        Ok(Some(own.collect()))
    }

    /// Joins what was said of pods to what the index knows of them. Who is taken for dead is left out, but
    /// whoever names it knows more: it may decode, and nothing is read from it.
    fn joined(&self, ask: &PlanAsk, known: FxHashMap<Endpoint, Known>) -> Vec<Pod> {
        let described = self.transfers.as_ref().map(|t| t.pods.read());
        let said_of = |e: &Endpoint| described.as_ref().map(|d| d.get(e)).unwrap_or_default();
        if ask.pods.is_empty() {
            let mut pods: Vec<Pod> = known
                .into_iter()
                .filter(|(_, known)| !known.dead)
                .map(|(endpoint, known)| {
                    let said = said_of(&endpoint);
                    Pod { endpoint, said, load: Load::default(), known }
                })
                .collect();
            // A plan has to depend on the question alone, not on a table's order.
            pods.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
            return pods;
        }
        let each = ask.pods.iter().map(|(endpoint, said, load)| {
            let known = known.get(endpoint).copied().unwrap_or_default();
            let mut said = said.clone().or(said_of(endpoint));
            if known.dead {
                let decode = said.roles.is_none_or(|r| r.decode);
                said.roles = Some(Roles { prefill: false, decode, source: false });
            }
            Pod { endpoint: endpoint.clone(), said, load: *load, known }
        });
        each.collect()
    }
}

impl Transfers {
    /// The question that the planner is asked, with what the book has reserved now.
    pub(super) fn question(&self, ask: &PlanAsk, asked: &Asked, without: &Without) -> Question {
        let book = self.book.lock();
        let reserved = book.reservations();
        let pods: Vec<Candidate> = asked
            .pods
            .iter()
            .filter(|pod| without.decode.as_ref() != Some(&pod.endpoint))
            .map(|pod| Candidate {
                endpoint: pod.endpoint.clone(),
                roles: pod.said.roles.unwrap_or(Roles { prefill: true, decode: true, source: true }),
                class: pod.said.class.clone(),
                place: pod.said.place.clone(),
                wire: pod.said.wire.clone(),
                held: pod.known.held,
                block_size: pod.known.block_size,
                load: pod.load,
                reserved: reserved.pod(&pod.endpoint),
            })
            .collect();
        let places: FxHashMap<&Endpoint, usize> =
            pods.iter().enumerate().map(|(i, p)| (&p.endpoint, i)).collect();
        let links = reserved
            .links()
            .filter_map(|(from, to, flow)| Some((*places.get(from)?, *places.get(to)?, flow)));
        let links = links.collect();
        let caps = *book.caps();
        drop(book);
        let avoid = pods.iter().enumerate().filter(|(_, p)| without.sources.contains(&p.endpoint));
        Question {
            purpose: ask.purpose,
            model: ask.model.clone(),
            connector: ask.connector,
            prompt_tokens: asked.prompt_tokens,
            decode: ask.decode.as_ref().and_then(|d| {
                pods.iter().position(|p| {
                    p.endpoint.rank == d.rank && endpoint::same(&p.endpoint.instance, &d.instance)
                })
            }),
            links,
            caps,
            constraints: ask.constraints,
            avoid: avoid.map(|(i, _)| i).collect(),
            pods,
        }
    }
}

impl Service {
    /// How much `source` still has of what a plan wants to read from it. `None` = not known.
    pub(super) fn still_held(&self, ask: &PlanAsk, source: &Source) -> Option<u32> {
        let instances = [&*source.from.instance];
        let answer = ask.prompt.lend(|prompt| {
            self.prepared(
                &kvindex::Query {
                    tenant: &ask.tenant,
                    model: &ask.model,
                    prompt,
                    block_size: ask.prompt.block_size,
                    instances: &instances,
                    salt: None,
                    max_blocks: None,
                    speculative: false,
                    weights: self.weights,
                },
                |q| self.index.query_own(q),
            )
        });
        let answer = answer.ok()?;
        answer.scores.iter().find_map(|score| {
            let spec = self.index.spec(score.holder)?;
            let blocks = convert::held_in(&score.cumulative, &score.by_tier, source.tier);
            (spec.rank == source.from.rank).then(|| blocks.saturating_mul(score.block_size))
        })
    }
}
