"""An answer in the form that llm-d's endpoint picker keeps per endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kvd_scorer._rpc import kv_pb2 as kv

_TIERS = {
    kv.TIER_GPU: "gpu",
    kv.TIER_CPU: "cpu",
    kv.TIER_DISK: "disk",
    kv.TIER_SHARED: "shared_storage",
}


@dataclass(frozen=True)
class MatchInfo:
    """What llm-d's ``PrefixCacheMatchInfo`` says of one endpoint, in blocks of ``block_size_tokens``."""

    match_blocks: int
    total_blocks: int
    block_size_tokens: int
    cached_blocks: int
    cached_by_tier: dict[str, int] = field(default_factory=dict)
    mm_match_blocks: int = 0


def match_infos(scores: kv.ScoreResponse) -> Iterator[tuple[str, int, MatchInfo]]:
    """Instance, rank and what it holds, for every endpoint of an answer."""
    tokens = scores.total_blocks * scores.block_size_tokens
    for e in scores.endpoints:
        by_tier = {_TIERS.get(t.tier, "unknown"): t.blocks for t in e.by_tier if t.blocks}
        if e.speculative_blocks:
            by_tier["speculative"] = e.speculative_blocks
        yield e.instance_id, e.dp_rank, MatchInfo(
            match_blocks=e.match_blocks,
            total_blocks=tokens // e.block_size_tokens if e.block_size_tokens else 0,
            block_size_tokens=e.block_size_tokens,
            cached_blocks=e.cached_blocks,
            cached_by_tier=by_tier,
            mm_match_blocks=e.mm_match_blocks,
        )
