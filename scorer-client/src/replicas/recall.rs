//! What is said when no replica answers in time: what kvd answered to the same question a moment ago,
//! or a guess from where prompts that begin alike were routed.
//!
//! Pure: questions, answers and routings come in with the time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvproto::Tier;
use kvproto::rpc::kv;

use super::chain::{self, Chain};
use super::prefix::PrefixMemory;
use crate::{Endpoint, EndpointScore, Freshness, Scores};

/// How much is remembered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RecallRule {
    /// Tokens per block of prompts that are given by tokens.
    pub block_tokens: u32,
    /// Blocks of a prompt that are looked at.
    pub most_blocks: usize,
    /// Blocks per endpoint.
    pub room: usize,
    /// How long an answer is good for.
    pub answers_for: Duration,
    /// What a block that is guessed to be there counts.
    pub weight: f64,
}

/// Answers that are kept at most.
const ANSWERS: usize = 512;
/// Endpoints that routings are remembered of at most.
const ENDPOINTS: usize = 4096;

pub(crate) struct Recall {
    rule: RecallRule,
    routed: PrefixMemory<Endpoint>,
    answers: HashMap<u128, (Instant, Arc<Scores>)>,
    /// Oldest first; entries that a newer answer replaced are skipped.
    order: VecDeque<(Instant, u128)>,
}

impl Recall {
    pub(crate) fn new(rule: RecallRule) -> Recall {
        Recall { rule, routed: PrefixMemory::new(rule.room), answers: HashMap::new(), order: VecDeque::new() }
    }

    /// kvd answered this.
    pub(crate) fn answered(&mut self, question: u128, scores: Arc<Scores>, now: Instant) {
        self.answers.insert(question, (now, scores));
        self.order.push_back((now, question));
        while let Some((at, oldest)) = self.order.front().copied()
            && (self.order.len() > ANSWERS || now.duration_since(at) > self.rule.answers_for)
        {
            self.order.pop_front();
            if self.answers.get(&oldest).is_some_and(|(newest, _)| *newest == at) {
                self.answers.remove(&oldest);
            }
        }
    }

    /// What kvd answered to the same question, and how long ago.
    pub(crate) fn last(&self, question: u128, now: Instant) -> Option<(Duration, Arc<Scores>)> {
        let (at, scores) = self.answers.get(&question)?;
        let age = now.duration_since(*at);
        (age <= self.rule.answers_for).then(|| (age, Arc::clone(scores)))
    }

    /// A prompt went to these.
    pub(crate) fn routed(&mut self, call: &kv::RecordRoutingRequest) {
        let Some(chain) = call
            .prompt
            .as_ref()
            .and_then(|prompt| self.chain(&call.tenant_id, &call.model, prompt, call.block_size))
        else {
            return;
        };
        for e in &call.endpoints {
            let endpoint = Endpoint { instance: e.instance_id.clone(), rank: e.dp_rank };
            self.routed.note(&endpoint, &chain.blocks);
        }
        // Instances come and go under ever new names; nobody tells which are gone for good.
        if self.routed.servers() > ENDPOINTS {
            self.routed = PrefixMemory::new(self.rule.room);
        }
    }

    /// What the candidates would have of a prompt if they kept all that was routed to them.
    pub(crate) fn guess(&self, request: &kv::ScoreRequest) -> Scores {
        let chain = request
            .prompt
            .as_ref()
            .and_then(|prompt| self.chain(&request.tenant_id, &request.model, prompt, request.block_size))
            .unwrap_or(Chain { blocks: Vec::new(), block_size: request.block_size, tokens: None });
        let most = request.options.as_ref().map_or(0, |o| o.max_blocks);
        let units = Units::new(&chain, request.block_size, most);
        let weight = self.weight(request);
        let score = |endpoint: &Endpoint, depth: usize| units.score(endpoint.clone(), depth, &chain, weight);
        let mut endpoints: Vec<EndpointScore> = Vec::new();
        if request.candidates.is_empty() {
            let all = self.routed.depths(.., &chain.blocks);
            endpoints.extend(all.filter(|(_, depth)| *depth > 0).map(|(e, depth)| score(e, depth)));
        }
        for candidate in &request.candidates {
            let from = Endpoint { instance: candidate.clone(), rank: 0 };
            let to = Endpoint { instance: candidate.clone(), rank: u32::MAX };
            let before = endpoints.len();
            endpoints.extend(self.routed.depths(from.clone()..=to, &chain.blocks).map(|(e, d)| score(e, d)));
            if endpoints.len() == before {
                endpoints.push(score(&from, 0));
            }
        }
        let best = request.options.as_ref().map_or(0, |o| o.top_k as usize);
        if best > 0 {
            endpoints.sort_by_key(|e| std::cmp::Reverse(e.cached_blocks));
            endpoints.truncate(best);
        }
        Scores {
            request_id: request.request_id.clone(),
            total_blocks: units.total,
            block_size: units.block_size,
            endpoints,
            degraded: true,
            ..Scores::default()
        }
    }

    fn chain(&self, tenant: &str, model: &str, prompt: &kv::Prompt, block_size: u32) -> Option<Chain> {
        chain::of(tenant, model, prompt, block_size, self.rule.block_tokens, self.rule.most_blocks)
    }

    /// Blocks are taken to be where engines put them first.
    fn weight(&self, request: &kv::ScoreRequest) -> f64 {
        let asked = request.options.iter().flat_map(|o| &o.tier_weights);
        asked.filter(|w| w.tier() == kv::Tier::Gpu).map(|w| w.weight).next_back().unwrap_or(self.rule.weight)
    }
}

/// What counts are given in.
struct Units {
    block_size: u32,
    total: u32,
    /// Blocks that may count at most.
    most: u32,
}

impl Units {
    /// Blocks of the size asked for, otherwise of the chain's own.
    fn new(chain: &Chain, asked: u32, most: u32) -> Units {
        let block_size = if asked == 0 { chain.block_size } else { asked };
        let tokens = chain.tokens.unwrap_or(chain.blocks.len() as u64 * u64::from(chain.block_size));
        let total = u32::try_from(tokens / u64::from(block_size.max(1))).unwrap_or(u32::MAX);
        Units { block_size, total, most: if most == 0 { u32::MAX } else { most } }
    }

    fn score(&self, endpoint: Endpoint, depth: usize, chain: &Chain, weight: f64) -> EndpointScore {
        let tokens = depth as u64 * u64::from(chain.block_size);
        let blocks = u32::try_from(tokens / u64::from(self.block_size.max(1))).unwrap_or(u32::MAX);
        let blocks = blocks.min(self.most);
        // Every engine computes the last token.
        let most = chain.tokens.map_or(u64::MAX, |n| n.saturating_sub(1));
        let weighted = f64::from(blocks) * weight;
        EndpointScore {
            endpoint,
            block_size: self.block_size,
            cached_blocks: blocks,
            by_tier: [0; Tier::ALL.len()],
            cumulative_by_tier: [0; Tier::ALL.len()],
            weighted_blocks: weighted,
            match_blocks: weighted as u32,
            cached_tokens: (u64::from(blocks) * u64::from(self.block_size)).min(most),
            speculative_blocks: 0,
            mm_match_blocks: 0,
            suspect_blocks: 0,
            distrusted_blocks: 0,
            freshness: Freshness::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Prompt, RoutingCall, ScoreCall};

    const RULE: RecallRule = RecallRule {
        block_tokens: 4,
        most_blocks: 100,
        room: 1000,
        answers_for: Duration::from_secs(10),
        weight: 1.0,
    };

    fn pod(instance: &str, rank: u32) -> Endpoint {
        Endpoint { instance: instance.into(), rank }
    }

    fn routed(recall: &mut Recall, tokens: &[u32], to: Endpoint) {
        recall.routed(&RoutingCall::new("r", "m", Prompt::tokens(tokens)).to([to]).wire);
    }

    fn guess(recall: &Recall, call: ScoreCall) -> Vec<(String, u32, u32, u64)> {
        let scores = recall.guess(&call.wire);
        assert!(scores.degraded && scores.coverage == 0.0);
        let of = |e: EndpointScore| (e.endpoint.instance, e.endpoint.rank, e.cached_blocks, e.cached_tokens);
        scores.endpoints.into_iter().map(of).collect()
    }

    #[test]
    fn what_was_routed_somewhere_is_taken_to_be_there() {
        let mut r = Recall::new(RULE);
        let tokens: Vec<u32> = (0..16).collect();
        routed(&mut r, &tokens[..8], pod("a", 1));
        routed(&mut r, &tokens, pod("b", 0));
        let call = || ScoreCall::new("m", Prompt::tokens(&tokens)).candidates(["c", "b", "a"]);
        let want = |blocks: [u32; 3], tokens: [u64; 3]| {
            vec![
                ("c".to_owned(), 0, blocks[0], tokens[0]),
                ("b".to_owned(), 0, blocks[1], tokens[1]),
                ("a".to_owned(), 1, blocks[2], tokens[2]),
            ]
        };
        assert_eq!(guess(&r, call()), want([0, 4, 2], [0, 15, 8]));
        // In the caller's blocks, whole ones, and no more than it looks at.
        assert_eq!(guess(&r, call().block_size(16)), want([0, 1, 0], [0, 15, 0]));
        assert_eq!(guess(&r, call().max_blocks(3)), want([0, 3, 2], [0, 12, 8]));
        assert_eq!(guess(&r, call().top_k(1)), [("b".to_owned(), 0, 4, 15)]);
        let all = guess(&r, ScoreCall::new("m", Prompt::tokens(&tokens)));
        assert_eq!(all, [("a".to_owned(), 1, 2, 8), ("b".to_owned(), 0, 4, 15)]);
        let other = guess(&r, ScoreCall::new("n", Prompt::tokens(&tokens)).candidates(["b"]));
        assert_eq!(other, [("b".to_owned(), 0, 0, 0)]);
    }

    #[test]
    fn a_prompt_that_nothing_is_known_of_has_an_answer_too() {
        let r = Recall::new(RULE);
        let got = guess(&r, ScoreCall::new("m", Prompt::scored("x")).candidates(["a"]));
        assert_eq!(got, [("a".to_owned(), 0, 0, 0)]);
    }

    #[test]
    fn a_guess_counts_blocks_by_the_weight_that_was_asked_for() {
        let mut r = Recall::new(RULE);
        routed(&mut r, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9], pod("a", 0));
        let call = ScoreCall::new("m", Prompt::tokens(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9]));
        let scores = r.guess(&call.tier_weight(Tier::Gpu, 0.5).wire);
        assert_eq!((scores.endpoints[0].weighted_blocks, scores.endpoints[0].match_blocks), (1.5, 1));
        assert_eq!((scores.total_blocks, scores.block_size), (3, 4));
    }

    #[test]
    fn an_answer_is_remembered_for_its_time_and_the_newest_counts() {
        let mut r = Recall::new(RULE);
        let now = Instant::now();
        let s = |n| Arc::new(Scores { total_blocks: n, ..Scores::default() });
        let last = |r: &Recall, at| r.last(1, now + Duration::from_secs(at)).map(|(_, s)| s.total_blocks);
        r.answered(1, s(1), now);
        assert_eq!((last(&r, 10), last(&r, 11)), (Some(1), None));
        r.answered(1, s(2), now + Duration::from_secs(6));
        r.answered(2, s(3), now + Duration::from_secs(12));
        assert_eq!((last(&r, 16), last(&r, 17)), (Some(2), None));
    }

    #[test]
    fn answers_are_bounded_in_number() {
        let mut r = Recall::new(RULE);
        let now = Instant::now();
        for i in 0..2000 {
            r.answered(i, Arc::default(), now);
        }
        assert!(r.answers.len() <= ANSWERS && r.order.len() <= ANSWERS);
        assert!(r.last(1999, now).is_some() && r.last(0, now).is_none());
    }
}
