//! What has a conversation brought about? Does what each line says and gives the answers.

use std::cell::Cell;
use std::sync::Arc;

use crate::Shadow;
use crate::args::{Args, number, tokens_of};
use crate::pod::Pod;
use crate::replant::replant;
use kvindex::reference::Expected;
use kvindex::{Index, IndexConfig, Prompt, Query, Score};
use kvproto::hash::canonical::{Namespace, prompt_hashes};
use kvproto::{EngineHash, SeqHash, Tier};

const PROMPT: &str = "tail lora salt mm block deployment only max_blocks speculative hashes_of canonical";

/// Everything a conversation has brought about.
pub struct World {
    index: Arc<Index>,
    pods: Vec<Pod>,
    limited: bool,
    /// Whether routings were announced, which no snapshot has.
    routed: bool,
    /// Another index that is told and asked the same.
    shadow: Box<dyn Shadow>,
    /// Scores that the reference confirmed.
    pub confirmed: Cell<u32>,
}

impl World {
    /// An index that nobody is attached to.
    pub fn new(shadow: Box<dyn Shadow>) -> World {
        let index = Arc::new(Index::new(IndexConfig::default()));
        World { index, pods: Vec::new(), limited: false, routed: false, shadow, confirmed: Cell::new(0) }
    }

    /// Goes on with an index that got all it has from a snapshot of this one. False where that would
    /// lose what is no snapshot's.
    pub fn replant(&mut self) -> bool {
        if self.routed {
            return false;
        }
        let ids: Vec<_> = self.pods.iter().map(|p| p.id).collect();
        let (index, ids) = replant(&self.index, &ids);
        self.index = index;
        self.pods.iter_mut().zip(ids).for_each(|(p, id)| p.id = id);
        true
    }

    /// Does what a line says; returns the answers.
    pub fn line(&mut self, line: &str) -> Result<Vec<String>, String> {
        let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
        if let Some(name) = head.strip_suffix(':') {
            return self.pod_line(name, rest);
        }
        match head {
            "limits" => self.limit(rest).map(|()| vec![]),
            "pod" => {
                let pod = Pod::attach(rest, &self.index)?;
                self.shadow.attach(pod.id, &pod.spec);
                self.pods.retain(|p| p.spec.instance != pod.spec.instance);
                self.pods.push(pod);
                Ok(vec![])
            }
            "score" => {
                let a = Args::parse(rest, &[PROMPT])?;
                self.ask(&a, |q| self.scores(q, &a))?
            }
            "locate" => self.ask(&Args::parse(rest, &[PROMPT])?, |q| self.placements(q)),
            "route" => {
                self.routed = true;
                let (request, rest) = rest.split_once(' ').ok_or("a route needs a request's name")?;
                let a = Args::parse(rest, &[PROMPT, "to until"])?;
                let to = a.to.iter().map(|p| Ok(self.pod(p)?.id)).collect::<Result<Vec<_>, String>>()?;
                let until = a.number("until")?.ok_or("a route needs an `until`")?;
                let blocks = self.ask(&a, |q| self.index.to_come(q, &to))?;
                self.shadow.announce(request, &blocks, u64::from(until));
                let noted = self.index.announce_blocks(request, blocks, u64::from(until));
                Ok(vec![format!("{request}: {noted} noted")])
            }
            "forget" => {
                self.shadow.forget(rest);
                let known = if self.index.forget(rest) { "forgotten" } else { "not known" };
                Ok(vec![format!("{rest}: {known}")])
            }
            "expire" => {
                let now = number(rest)?;
                self.shadow.expire(now);
                Ok(vec![format!("{} expired", self.index.expire(now))])
            }
            "names" => {
                let (pod, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let holder = self.pod(pod)?.id;
                self.ask(&Args::parse(rest, &[PROMPT])?, |q| vec![names(&self.index.named(q, holder))])
            }
            "dump" => self.dump(self.pod(rest)?),
            "stats" => self.stats(rest),
            _ => Err(format!("no command `{head}`")),
        }
    }

    fn pod_line(&mut self, name: &str, rest: &str) -> Result<Vec<String>, String> {
        let at = self
            .pods
            .iter()
            .position(|p| p.spec.instance == name)
            .ok_or_else(|| format!("no pod `{name}`"))?;
        let pod = &mut self.pods[at];
        if let Some(options) = rest.strip_prefix("restart") {
            pod.restart(options, &self.index)?;
            self.shadow.clear(pod.id);
            return Ok(vec![]);
        }
        if rest == "gone" {
            self.index.detach(pod.id);
            self.shadow.detach(pod.id);
            self.pods.remove(at);
            return Ok(vec![]);
        }
        let odd = pod.send(rest, &self.index, &mut *self.shadow)?;
        Ok(if odd.is_empty() { vec![] } else { vec![format!("{name}:{odd}")] })
    }

    fn pod(&self, name: &str) -> Result<&Pod, String> {
        self.pods.iter().find(|p| p.spec.instance == name).ok_or_else(|| format!("no pod `{name}`"))
    }

    fn limit(&mut self, options: &str) -> Result<(), String> {
        if !self.pods.is_empty() {
            return Err("limits come before the first pod".to_owned());
        }
        let mut config = IndexConfig::default();
        for word in options.split_whitespace() {
            match word.split_once('=') {
                Some(("blocks", n)) => config.max_blocks_per_holder = number(n)?,
                Some(("speculative", n)) => config.max_speculative = number(n)?,
                _ => return Err(format!("no limit `{word}`")),
            }
        }
        self.index = Arc::new(Index::new(config));
        self.limited = true;
        Ok(())
    }

    /// Puts together the query that a line's words make.
    fn ask<T>(&self, a: &Args<'_>, then: impl FnOnce(&Query<'_>) -> T) -> Result<T, String> {
        let mut tokens = tokens_of(&a.labels);
        tokens.extend((0..a.number("tail")?.unwrap_or(0)).map(|i| 9000 + i));
        let (engine, canonical): (Vec<EngineHash>, Vec<SeqHash>);
        let (lora, block_size) = (a.text("lora"), a.number("block")?);
        let prompt = match a.text("hashes_of") {
            Some(pod) => {
                engine = self.pod(pod)?.chain(a, &tokens).0;
                Prompt::Engine(&engine)
            }
            None if a.has("canonical") => {
                let seed = Namespace { salt: a.text("deployment").unwrap_or(""), model: "m", lora }.seed();
                let block = block_size.filter(|&n| n > 0).ok_or("`canonical` needs a `block`")?;
                canonical = prompt_hashes(seed, &tokens, block, a.extras()).collect();
                Prompt::Canonical(&canonical)
            }
            None => Prompt::Tokens { tokens: &tokens, lora, cache_salt: a.text("salt"), items: &a.items },
        };
        let only = a.text("only");
        let mut query = Query::new("t", "m", prompt);
        query.block_size = block_size;
        query.instances = only.as_slice();
        query.salt = a.text("deployment");
        query.max_blocks = a.number("max_blocks")?;
        query.speculative = a.has("speculative");
        Ok(then(&query))
    }

    fn scores(&self, query: &Query<'_>, a: &Args<'_>) -> Result<Vec<String>, String> {
        let answer = self.index.query(query);
        self.shadow.compare(query, &answer)?;
        if answer.unknown_model {
            return Ok(vec!["unknown model".to_owned()]);
        }
        if answer.scores.is_empty() && answer.block_size_mismatch.is_empty() {
            return Ok(vec!["no candidates".to_owned()]);
        }
        let by_id = |id| self.pods.iter().find(|p| p.id == id).ok_or("a score of a pod that has gone");
        let mut lines = Vec::new();
        for s in &answer.scores {
            let pod = by_id(s.holder)?;
            let name = &pod.spec.instance;
            if self.index.explain(query, pod.id).is_none_or(|e| e.score != *s) {
                return Err(format!("{name}: the explanation is of another score"));
            }
            let modelled = pod.modelled && !self.limited && query.max_blocks.is_none();
            if modelled && matches!(query.prompt, Prompt::Tokens { .. }) {
                let tiers: Vec<_> = self.pods.iter().filter(|p| p.spec.tiers).map(|p| &p.reference).collect();
                let kin: Vec<_> = self
                    .pods
                    .iter()
                    .filter(|p| !p.spec.tiers && p.seed == pod.seed)
                    .map(|p| &p.reference)
                    .collect();
                let reached = pod.reference.within_reach(&tiers, &kin);
                let (got, want) = (rounded(numbers(s)), rounded(reached.expect(query)));
                if got != want {
                    return Err(format!("{name}: the index says\n  {got:?}\nand the reference\n  {want:?}"));
                }
                self.confirmed.set(self.confirmed.get() + 1);
            }
            lines.push(format!("{name}={}{}", s.cached, show(s, query, a)));
        }
        for id in answer.block_size_mismatch {
            lines.push(format!("{} has blocks of another size", by_id(id)?.spec.instance));
        }
        Ok(lines)
    }

    fn placements(&self, query: &Query<'_>) -> Vec<String> {
        let mut lines = Vec::new();
        for (i, p) in self.index.locate(query).iter().enumerate() {
            let mut line = format!("block {i}:");
            for pod in &self.pods {
                if let Some((_, tiers)) = p.holders.iter().find(|(id, _)| *id == pod.id) {
                    let tiers: Vec<&str> = tiers.iter().map(Tier::name).collect();
                    line += &format!(" {}={}", pod.spec.instance, tiers.join(","));
                }
            }
            lines.push(line);
        }
        lines
    }

    /// All rows by the labels they stand for; read in pages of two, which must make no difference.
    fn dump(&self, pod: &Pod) -> Result<Vec<String>, String> {
        let all = self.index.dump(pod.id, None, usize::MAX);
        let mut paged = Vec::new();
        while let page =
            self.index.dump(pod.id, paged.last().map(|r: &kvindex::DumpRow| (r.block, r.tier)), 2)
            && !page.is_empty()
        {
            paged.extend(page);
        }
        if paged != all {
            return Err("a dump read in pages has other rows".to_owned());
        }
        let mut lines: Vec<String> = all
            .iter()
            .map(|r| {
                let depth = r.depth.map_or("?".to_owned(), |d| d.to_string());
                let parent = r.parent.map_or(String::new(), |p| format!(" parent={}", pod.name_of(p)));
                let block = pod.name_of(r.block);
                format!("{block} {} depth={depth}{parent} block_size={}", r.tier.name(), r.block_size)
            })
            .collect();
        lines.sort();
        Ok(lines)
    }

    fn stats(&self, pod: &str) -> Result<Vec<String>, String> {
        if pod.is_empty() {
            let s = self.index.stats();
            let (holders, blocks, entries, speculative) = (s.holders, s.blocks, s.entries, s.speculative);
            return Ok(vec![format!(
                "pods={holders} blocks={blocks} entries={entries} speculative={speculative}"
            )]);
        }
        let s = self.index.holder_stats(self.pod(pod)?.id).ok_or("a pod without counts")?;
        let tiers: String = Tier::ALL
            .into_iter()
            .zip(s.by_tier)
            .filter(|(_, n)| *n > 0)
            .map(|(t, n)| format!(" {}={n}", t.name()))
            .collect();
        let (unplaced, refused) = (s.unplaced, s.refused);
        let block_size = s.block_size;
        Ok(vec![format!(
            "{pod}: blocks={}{tiers} unplaced={unplaced} refused={refused} block_size={block_size}",
            s.blocks
        )])
    }
}

fn numbers(s: &Score) -> Expected {
    Expected {
        cached: s.cached,
        by_tier: s.by_tier,
        cumulative: s.cumulative,
        below_ram: s.below_ram,
        weighted: s.weighted,
        cached_tokens: s.cached_tokens,
    }
}

/// Weights added up in another order differ in the last digits.
fn rounded(e: Expected) -> Expected {
    Expected { weighted: (e.weighted * 1e6).round() / 1e6, ..e }
}

/// What follows the matched blocks in a score's line.
fn show(s: &Score, query: &Query<'_>, a: &Args<'_>) -> String {
    let mut line = format!(" cached_tokens={}", s.cached_tokens);
    if s.by_tier != [s.cached, 0, 0, 0, 0] {
        let mut before = 0;
        for (tier, (alone, upto)) in Tier::ALL.into_iter().zip(s.by_tier.into_iter().zip(s.cumulative)) {
            if alone > 0 || upto > before {
                line += &format!(" {}={alone}/{upto}", tier.name());
            }
            before = upto;
        }
        if s.below_ram > 0 {
            line += &format!(" below_ram={}", s.below_ram);
        }
        line += &format!(" weighted={:.1}", s.weighted);
    }
    if query.speculative {
        line += &format!(" speculative={}", s.speculative);
    }
    if !a.items.is_empty() {
        line += &format!(" with_items={}", s.mm_matched);
    }
    line
}

/// Positions whose names are known, those that the pod has in brackets.
fn names(named: &[kvindex::Named]) -> String {
    let position = |n: &kvindex::Named| if n.held { format!("[{}]", n.block) } else { n.block.to_string() };
    let all: Vec<String> = named.iter().map(position).collect();
    if all.is_empty() { "no names".to_owned() } else { all.join(" ") }
}
