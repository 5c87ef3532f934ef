"""What is said when no replica answers in time. Pure: questions, answers and routings come in with the time."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from kvd_scorer._rpc import kv_pb2 as kv

# Tokens per block of guesses, where nothing else is said.
GUESS_BLOCK = 64
_ANSWERS = 512
_ENDPOINTS = 4096


def tokens_le(tokens: Sequence[int]) -> bytes:
    """Token ids as little-endian u32, the form in which they are sent."""
    words = array("I", tokens)
    assert words.itemsize == 4
    if array("H", [1]).tobytes() != b"\x01\x00":
        words.byteswap()
    return words.tobytes()


class Recall:
    """The last answers to questions, and where prompts that begin alike were routed."""

    def __init__(self, room: int = 8192, answers_for: float = 10.0) -> None:
        self._room, self._answers_for = room, answers_for
        self._answers: OrderedDict[bytes, tuple[float, kv.ScoreResponse]] = OrderedDict()
        # By endpoint: names of blocks, the one used last at the end.
        self._routed: OrderedDict[tuple[str, int], OrderedDict[bytes, None]] = OrderedDict()

    def answered(self, request: kv.ScoreRequest, scores: kv.ScoreResponse, now: float) -> None:
        name = _question(request)
        self._answers[name] = (now, scores)
        self._answers.move_to_end(name)
        while len(self._answers) > _ANSWERS:
            self._answers.popitem(last=False)

    def last(self, request: kv.ScoreRequest, now: float) -> kv.ScoreResponse | None:
        """What kvd answered to the same question a moment ago."""
        at, scores = self._answers.get(_question(request), (0.0, None))
        return scores if scores is not None and now - at <= self._answers_for else None

    def routed(self, call: kv.RecordRoutingRequest) -> None:
        blocks, _ = _blocks(call.tenant_id, call.model, call.prompt, 0)
        for e in call.endpoints:
            key = (e.instance_id, e.dp_rank)
            recent: OrderedDict[bytes, None] = self._routed.setdefault(key, OrderedDict())
            self._routed.move_to_end(key)
            # The root is used last: without it, nothing after it counts.
            for block in reversed(blocks[: self._room]):
                recent[block] = None
                recent.move_to_end(block)
            while len(recent) > self._room:
                recent.popitem(last=False)
        while len(self._routed) > _ENDPOINTS:
            self._routed.popitem(last=False)

    def guess(self, request: kv.ScoreRequest) -> kv.ScoreResponse:
        """What the candidates would have if they kept all that was routed to them."""
        blocks, tokens = _blocks(request.tenant_id, request.model, request.prompt, request.options.max_blocks)
        size = request.block_size or GUESS_BLOCK
        out = kv.ScoreResponse(
            request_id=request.request_id, total_blocks=tokens // size, block_size_tokens=size, degraded=True
        )
        for instance, rank in self._endpoints(request.candidates):
            recent = self._routed.get((instance, rank), OrderedDict())
            depth = next((i for i, block in enumerate(blocks) if block not in recent), len(blocks))
            # Counts are in whole blocks of the size that was asked for.
            held = depth * GUESS_BLOCK // size
            if depth or request.candidates:
                out.endpoints.add(
                    instance_id=instance,
                    dp_rank=rank,
                    block_size_tokens=size,
                    cached_blocks=held,
                    weighted_blocks=held,
                    match_blocks=held,
                    # Every engine computes the last token.
                    cached_tokens=min(held * size, max(0, tokens - 1)),
                )
        return out

    def _endpoints(self, candidates: Iterable[str]) -> list[tuple[str, int]]:
        wanted = list(candidates)
        if not wanted:
            return sorted(self._routed)
        known: dict[str, list[int]] = {}
        for instance, rank in self._routed:
            known.setdefault(instance, []).append(rank)
        return [(c, rank) for c in wanted for rank in sorted(known.get(c, [0]))]


def _question(request: kv.ScoreRequest) -> bytes:
    """The same for whatever has the same answer."""
    nameless = kv.ScoreRequest()
    nameless.CopyFrom(request)
    nameless.request_id = ""
    return hashlib.blake2b(nameless.SerializeToString(deterministic=True), digest_size=16).digest()


def _blocks(tenant: str, model: str, prompt: kv.Prompt, most: int) -> tuple[list[bytes], int]:
    """Names of a prompt's blocks, each of which stands for it and all before it, and its tokens."""
    data = bytes(prompt.token_ids_le)
    extras = [(m.hash, m.offset, m.length) for m in prompt.mm_items]
    name = repr((tenant, model, prompt.lora_name, prompt.cache_salt, extras)).encode()
    step, out = 4 * GUESS_BLOCK, []
    for at in range(0, len(data) - step + 1, step):
        name = hashlib.blake2b(name + data[at : at + step], digest_size=8).digest()
        out.append(name)
        if len(out) == most:
            break
    return out, len(data) // 4
