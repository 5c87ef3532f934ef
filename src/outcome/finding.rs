//! What is wrong, how sure is that, and what is to be done?

use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Answers are worse than they could be.
    Warning,
    /// Answers are wrong or missing.
    Error,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Problem {
    /// Nobody is registered.
    NoPublisher,
    /// Registered, and nothing ever came.
    NeverHeard,
    /// The engine serves requests and its stream says nothing.
    NoEvents,
    /// Not connected.
    Unreachable,
    /// Taken for dead.
    Dead,
    /// Part of what the engine holds is not known.
    PartialHistory,
    /// Batches were lost and could not be fetched again.
    Gaps,
    /// Messages were dropped because a queue was full.
    Dropped,
    /// Messages or events cannot be read.
    Unreadable,
    /// Batches wait longer than they should.
    Lagging,
    /// The events' block size is not the registered one.
    BlockSizeDiffers,
    /// Events of another data-parallel rank than the registered one.
    RankDiffers,
    /// Blocks are refused or dropped to stay within a limit.
    MemoryLimit,
    /// Messages come on a shared socket that belong to nobody.
    Unclaimed,
    /// Reports come for requests that were not scored here.
    Unmatched,
    /// The engine never finds anything.
    CachingOff,
    /// The engine counts in blocks of another size.
    BlockSize,
    /// Prompts are asked about with other tokens than the engine sees.
    Tokens,
    /// The cache salt is not the same on both sides.
    Salt,
    /// The adapter is not the same on both sides.
    Adapter,
    /// Prompts are cut or hashed otherwise than the engine does.
    Hashes,
    /// Another endpoint's prediction fits.
    Endpoint,
    /// Another rank's prediction fits.
    Rank,
    /// Blocks leave the engine without an event.
    RemovalsMissing,
    /// Blocks come into the engine without an event.
    StoresMissing,
    /// Events come later than the requests that profit from them.
    EventsLate,
    /// Blocks do not count because reports contradicted them.
    Distrusted,
}

impl Problem {
    /// Its name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Problem::NoPublisher => "no_publisher",
            Problem::NeverHeard => "never_heard",
            Problem::NoEvents => "no_events",
            Problem::Unreachable => "unreachable",
            Problem::Dead => "dead",
            Problem::PartialHistory => "partial_history",
            Problem::Gaps => "gaps",
            Problem::Dropped => "dropped",
            Problem::Unreadable => "unreadable",
            Problem::Lagging => "lagging",
            Problem::BlockSizeDiffers => "block_size_differs",
            Problem::RankDiffers => "rank_differs",
            Problem::MemoryLimit => "memory_limit",
            Problem::Unclaimed => "unclaimed",
            Problem::Unmatched => "unmatched_reports",
            Problem::CachingOff => "prefix_caching_off",
            Problem::BlockSize => "wrong_block_size",
            Problem::Tokens => "token_mismatch",
            Problem::Salt => "salt_mismatch",
            Problem::Adapter => "adapter_mismatch",
            Problem::Hashes => "hash_mismatch",
            Problem::Endpoint => "wrong_endpoint",
            Problem::Rank => "wrong_rank",
            Problem::RemovalsMissing => "removals_missing",
            Problem::StoresMissing => "stores_missing",
            Problem::EventsLate => "events_late",
            Problem::Distrusted => "blocks_distrusted",
        }
    }
}

/// Whom a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    /// Tenant.
    pub tenant: String,
    /// Model.
    pub model: String,
    /// Instance.
    pub instance: String,
    /// Data-parallel rank.
    pub rank: u32,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rank {}", self.instance, self.rank)
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What.
    pub problem: Problem,
    /// How bad.
    pub severity: Severity,
    /// Whom it is about; `None` = kvd as a whole.
    pub who: Option<Who>,
    /// How sure, 0 to 1. What was counted directly is sure.
    pub confidence: f64,
    /// What was seen.
    pub evidence: String,
    /// What to do about it.
    pub remedy: String,
}

/// How sure `hits` of `of` make that it is the rule: the lower end of Wilson's interval at 95 %. Few
/// cases make nobody sure.
pub fn confidence(hits: usize, of: usize) -> f64 {
    if of == 0 {
        return 0.0;
    }
    const Z: f64 = 1.96;
    let (n, p) = (of as f64, hits as f64 / of as f64);
    let z2 = Z * Z / n;
    let middle = p + z2 / 2.0;
    let half = Z * (p * (1.0 - p) / n + z2 / (4.0 * n)).sqrt();
    ((middle - half) / (1.0 + z2)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_cases_make_nobody_sure() {
        assert_eq!(confidence(0, 0), 0.0);
        assert!(confidence(4, 4) < 0.52);
        assert!(confidence(50, 50) > 0.92);
        assert!(confidence(5, 10) < 0.3);
        assert!(confidence(0, 10) < 1e-9);
    }
}
