//! How many bytes do tokens `k..n` of a prompt take, and how much work are they?
//!
//! A group is a set of layers whose cache is kept alike. What has to move for a stretch of
//! tokens differs: full attention needs every token, a sliding window only the last ones, and a
//! recurrent state is one piece however long the prompt is.

pub use kvproto::GroupKind;

/// Layers whose cache is kept alike. Bytes are those of all layers and all ranks together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// How it attends.
    pub kind: GroupKind,
    /// Layers in it.
    pub layers: u32,
    /// Bytes per token; 0 for a recurrent state.
    pub token_bytes: u64,
    /// Bytes however long the prompt is: a recurrent state.
    pub state_bytes: u64,
    /// Tokens a sliding window looks back, or of a chunk.
    pub window: Option<u32>,
    /// Heads the cache is split by among tensor-parallel ranks. Ranks beyond that keep the
    /// same again; 1 = every rank keeps all of it, as MLA does.
    pub heads: u32,
}

/// The shape of a model's cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// Its groups; never empty.
    pub groups: Vec<Group>,
    /// Context length at which attention costs a token as much as everything else.
    pub attention_parity: f64,
}

/// What a model is taken for whose `config.json` does not tell: attention matters from some tens
/// of thousands of tokens on. Llama-3 8B comes to 26,600.
pub const USUAL_PARITY: f64 = 32_768.0;

impl Geometry {
    /// A model of full attention alone, of so many bytes per token.
    pub fn uniform(token_bytes: u64) -> Geometry {
        let group =
            Group { kind: GroupKind::Full, layers: 1, token_bytes, state_bytes: 0, window: None, heads: 1 };
        Geometry { groups: vec![group], attention_parity: USUAL_PARITY }
    }

    /// Bytes that a pod lacks which has the first `from` tokens and needs the first `to`.
    ///
    /// The sum over all ranks, each head once: what crosses the network when both sides are split
    /// alike.
    pub fn bytes(&self, from: u32, to: u32) -> u64 {
        if to <= from {
            return 0;
        }
        self.groups.iter().map(|g| g.bytes(from, to)).fold(0, u64::saturating_add)
    }

    /// Bytes per token where nothing is windowed: what a long prompt grows by at its root.
    pub fn token_bytes(&self) -> u64 {
        self.groups.iter().map(|g| g.token_bytes).fold(0, u64::saturating_add)
    }

    /// Bytes per token that one of `ranks` tensor-parallel ranks keeps.
    pub fn token_bytes_per_rank(&self, ranks: u32) -> u64 {
        self.groups.iter().map(|g| g.token_bytes.div_ceil(u64::from(g.split(ranks)))).sum()
    }

    /// Work of computing tokens `from..to`, in tokens at the start of a prompt.
    ///
    /// A token at context `x` costs `1 + x / parity` of one at 0; this is the integral.
    pub fn work(&self, from: u32, to: u32) -> f64 {
        if to <= from {
            return 0.0;
        }
        let (from, to) = (f64::from(from), f64::from(to));
        (to - from) * (1.0 + (from + to) / (2.0 * self.attention_parity))
    }
}

impl Group {
    /// Bytes of this group that tokens `from..to` add.
    fn bytes(&self, from: u32, to: u32) -> u64 {
        let tokens = match (self.kind, self.window) {
            (GroupKind::Full | GroupKind::Other, _)
            | (GroupKind::SlidingWindow | GroupKind::ChunkedLocal, None) => to - from,
            (GroupKind::SlidingWindow, Some(window)) => to - from.max(to.saturating_sub(window)),
            // The chunk that the next token lies in.
            (GroupKind::ChunkedLocal, Some(chunk)) => to - from.max(to - to % chunk.max(1)),
            (GroupKind::Mamba, _) => 0,
        };
        u64::from(tokens).saturating_mul(self.token_bytes).saturating_add(self.state_bytes)
    }

    /// Into how many different parts `ranks` ranks split it.
    fn split(&self, ranks: u32) -> u32 {
        ranks.min(self.heads).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(kind: GroupKind, token_bytes: u64, window: Option<u32>) -> Group {
        Group { kind, layers: 1, token_bytes, state_bytes: 0, window, heads: 8 }
    }

    #[test]
    fn full_attention_needs_every_token_that_is_lacking() {
        let g = Geometry::uniform(10);
        assert_eq!(
            (g.bytes(0, 100), g.bytes(60, 100), g.bytes(100, 100), g.bytes(120, 100)),
            (1000, 400, 0, 0)
        );
    }

    #[test]
    fn a_window_needs_its_last_tokens_and_no_more() {
        let g = group(GroupKind::SlidingWindow, 10, Some(32));
        assert_eq!((g.bytes(0, 100), g.bytes(80, 100), g.bytes(0, 20)), (320, 200, 200));
    }

    #[test]
    fn a_chunk_needs_what_its_next_token_looks_at() {
        let g = group(GroupKind::ChunkedLocal, 10, Some(64));
        assert_eq!((g.bytes(0, 100), g.bytes(90, 100), g.bytes(0, 64)), (360, 100, 0));
    }

    #[test]
    fn a_state_moves_whole_or_not_at_all() {
        let mamba = Group { state_bytes: 500, ..group(GroupKind::Mamba, 0, None) };
        let g = Geometry { groups: vec![mamba], attention_parity: USUAL_PARITY };
        assert_eq!((g.bytes(0, 100_000), g.bytes(99, 100), g.bytes(100, 100)), (500, 500, 0));
    }

    #[test]
    fn ranks_beyond_the_heads_keep_the_same_again() {
        let g = Geometry { groups: vec![group(GroupKind::Full, 800, None)], attention_parity: USUAL_PARITY };
        assert_eq!([1, 2, 8, 16].map(|ranks| g.token_bytes_per_rank(ranks)), [800, 400, 100, 100]);
    }

    #[test]
    fn work_in_two_parts_is_the_work_of_the_whole() {
        let g = Geometry { attention_parity: 1000.0, ..Geometry::uniform(1) };
        assert!((g.work(0, 1000) - 1500.0).abs() < 1e-9, "the second half costs more than the first");
        assert!((g.work(0, 400) + g.work(400, 1000) - g.work(0, 1000)).abs() < 1e-9);
    }
}
