"""A secondary tier for vLLM's tiering offload (0.22 to 0.33): `KvTier`.

    "secondary_tiers": [{"type": "KvTier", "module_path": "kvtier.vllm", "socket": "/run/kvtier/agent.sock"}]

All methods run in the scheduler process and must not wait. A lookup is asked for once per step, with
all keys of that step in one frame, sent when the step ends and answered while the model runs; until
then it is "retry". Loads and stores are told to the agent and polled. The agent moves bytes between
its disk and the rows of vLLM's own shared memory.

The contract changed between versions: methods and fields are probed, never the version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import logging
import os
import time
from array import array
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from vllm.v1.kv_offload import base as _base
from vllm.v1.kv_offload.tiering import base as _tiering
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from .client import Client, Ended
from .frames import FRAME_KEYS, GROUP_BYTES, Hello, Outcome, Place
from .region import Region

if TYPE_CHECKING:
    from typing import TypeAlias

    Key: TypeAlias = bytes
    Verdict: TypeAlias = bool | None

logger = logging.getLogger(__name__)

_NO_SUCH: Final = object()
_LookupResult: Any = getattr(_base, "LookupResult", None)
_RESULT_FIELDS: Final = {field.name for field in dataclasses.fields(JobResult)}
_BASE_PARAMETERS: Final = set(inspect.signature(SecondaryTierManager.__init__).parameters)

# A verdict is asked for again after so many seconds; that of a block that failed to load, later.
_FRESH: Final = 1.0
_FAILED: Final = 5.0
# A node that has just begun says "unknown" for so long at most; then it is a miss.
_RECOVERY: Final = 10.0
_MOST_VERDICTS: Final = 1 << 17
_MOST_CHAINS: Final = 4096


def _answer(verdict: Verdict) -> Any:
    """A verdict in the words of this vLLM: an enum, or a bool or None (0.22)."""
    if _LookupResult is None:
        return verdict
    if verdict is None:
        return _LookupResult.RETRY
    return _LookupResult.HIT if verdict else _LookupResult.MISS


def _result(job: int, good: Collection[Key], keys: Collection[Key], ok: bool, seconds: float, size: int) -> JobResult:
    """How a job ended, with as much detail as this vLLM takes."""
    more: dict[str, Any] = {}
    if "successful_keys" in _RESULT_FIELDS and not ok and good:
        more["successful_keys"] = tuple(good)
    if "transfer_time" in _RESULT_FIELDS:
        more["transfer_time"] = seconds
    if "transfer_bytes" in _RESULT_FIELDS:
        more["transfer_bytes"] = len(keys) * size
    return JobResult(job_id=job, success=ok, **more)


def describe(spec: Any) -> tuple[str, dict[str, Any], tuple[int, ...]]:
    """The model's name, all that makes its blocks' bytes what they are, and tokens per block of
    each group."""
    mapper = importlib.import_module("vllm.v1.kv_offload.file_mapper").FileMapper
    fields = dict(mapper.from_offloading_spec("", spec, parallel_agnostic=True).get_run_config())
    config = getattr(spec, "config", None)
    per_chunk = getattr(spec, "blocks_per_chunk", None) or getattr(spec, "block_size_factor", 1)
    if config is not None:
        tokens = tuple(group.tokens_per_block * per_chunk for group in config.groups)
    else:
        groups = spec.kv_cache_config.kv_cache_groups
        tokens = tuple(group.kv_cache_spec.block_size * per_chunk for group in groups)
    fields["blocks_per_chunk"] = per_chunk
    # What the file mapper leaves out. Absent where this vLLM's offloading does not say.
    model = getattr(getattr(spec, "vllm_config", None), "model_config", None)
    fields["revision"] = str(getattr(model, "revision", None))
    fields["quantization"] = str(getattr(model, "quantization", None))
    return str(fields["model_name"]), fields, tokens


def fingerprint(fields: dict[str, Any]) -> bytes:
    """16 bytes that differ where any of the fields does."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).digest()[:16]


@dataclasses.dataclass
class _Job:
    """A job of vLLM's, made of one or more of the agent's."""

    keys: list[Key]
    is_load: bool
    began: float
    left: int = 0
    good: list[Key] = dataclasses.field(default_factory=list)
    bad: list[Key] = dataclasses.field(default_factory=list)


class KvTier(SecondaryTierManager):  # type: ignore[misc]
    """Blocks in the RAM and on the disk of a node's kvtier agent."""

    if hasattr(_base, "Medium"):
        medium: ClassVar[Any] = _base.Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        *,
        socket: str = "/run/kvtier/agent.sock",
        salt: str = "",
        fingerprint_extra: str = "",
        hash_bytes: int = 32,
        patience_ms: float = 50.0,
        connect_s: float = 5.0,
        locality: str | None = "LOCAL",
        module_path: str = "",
    ) -> None:
        """
        Args:
            socket: Where the agent listens.
            salt: Whose quota counts beside the model's. Hashes carry vLLM's own salts already.
            fingerprint_extra: Anything that changes the blocks and that vLLM does not tell, such
                as a version of the weights.
            hash_bytes: Bytes of a block hash. What another hash needs is found out with the
                first key.
            patience_ms: Longest wait for an answer; without one, the agent counts as gone.
            connect_s: Longest wait for the agent when the engine begins. It begins without, too.
            locality: LOCAL or REMOTE, for versions that filter tiers by it.
            module_path: Of no use here; older versions pass it on.
        """
        arguments: dict[str, Any] = {
            "offloading_spec": offloading_spec,
            "primary_kv_view": primary_kv_view,
            "tier_type": tier_type,
        }
        if "backpressure_detector" in _BASE_PARAMETERS:
            arguments["backpressure_detector"] = backpressure_detector
        super().__init__(**arguments)
        del module_path
        if locality is not None and hasattr(_base, "Locality"):
            self.locality = _base.Locality(locality)

        if primary_kv_view.strides is None:
            raise ValueError("primary_kv_view has no strides")
        self._bytes: int = primary_kv_view.strides[0]
        self._region = Region.of(primary_kv_view)
        model, fields, tokens = describe(offloading_spec)
        fields |= {"block_bytes": self._bytes, "extra": fingerprint_extra}
        # Without a seed, hashes of different processes do not agree and nothing is found; blocks
        # of another seed must not be.
        fields["hash_seed"] = os.environ.get("PYTHONHASHSEED", "")
        self._hello = Hello(
            model=model,
            fingerprint=fingerprint(fields),
            block_bytes=self._bytes,
            groups=tokens or (1,),
            hash_bytes=hash_bytes,
            salt=salt,
            engine=f"vllm:{os.getpid()}",
            features=0,
        )
        self._client = Client(socket, self._hello, self._region, patience=patience_ms / 1000)
        if not self._client.connect(connect_s):
            logger.warning("no kvtier agent at %s yet; going on without", socket)

        # Verdicts, with the time until which they hold; None while one is asked for.
        self._verdicts: dict[Key, tuple[Verdict, float]] = {}
        self._asked: list[Key] = []
        self._in_flight = False
        self._unknown_since = 0.0
        # The agent's jobs: which of vLLM's, and which of its keys.
        self._parts: dict[int, tuple[int, list[Key]]] = {}
        self._jobs: dict[int, _Job] = {}
        # The last block stored of each request and group, which the next one follows.
        self._chains: dict[tuple[str, int], Key] = {}

    # Lookups.

    def lookup(self, key: Key, req_context: Any) -> Any:
        """Whether a chunk is here. "Retry" until the step that asks is over."""
        if self._in_flight:
            self._in_flight = False
            self._client.settle()
        now = time.monotonic()
        verdict, until = self._verdicts.get(key, (_NO_SUCH, 0.0))
        if verdict is None:
            # Asked for in this step, or answered "unknown" in the last.
            if until >= now:
                return _answer(None)
        elif verdict is not _NO_SUCH and until >= now:
            return _answer(bool(verdict))
        if self._client.welcome is None:
            return _answer(False)
        if len(key) != self._hello.hash_bytes + GROUP_BYTES:
            self._learn(len(key) - GROUP_BYTES)
            return _answer(False)
        self._verdicts.pop(key, None)
        self._verdicts[key] = (None, now + _RECOVERY)
        self._asked.append(key)
        return _answer(None)

    def _learn(self, hash_bytes: int) -> None:
        """Hashes are of another length than was said."""
        if not 1 <= hash_bytes <= 32:
            raise ValueError(f"block hashes of {hash_bytes} bytes")
        logger.info("block hashes have %d bytes", hash_bytes)
        self._hello = dataclasses.replace(self._hello, hash_bytes=hash_bytes)
        self._client.reintroduce(self._hello)

    def _flush(self) -> None:
        """Asks for all that this step wanted to know. Does not wait for the answer."""
        if not self._asked:
            return
        keys, self._asked = self._asked, []
        self._in_flight = True
        self._client.lookup_later(b"".join(keys), lambda places: self._learned(keys, places))
        self._trim()

    def _learned(self, keys: list[Key], places: bytes) -> None:
        now = time.monotonic()
        if Place.UNKNOWN not in places:
            self._unknown_since = 0.0
        elif self._unknown_since == 0.0:
            self._unknown_since = now
        patient = now - self._unknown_since < _RECOVERY
        for key, place in zip(keys, places):
            if place == Place.UNKNOWN and patient:
                # Until the next lookup, which asks again.
                self._verdicts[key] = (None, 0.0)
            else:
                self._verdicts[key] = (place not in (Place.NOWHERE, Place.UNKNOWN), now + _FRESH)

    def _trim(self) -> None:
        """Forgets the oldest verdicts; they would be asked for again."""
        for key in list(self._verdicts)[: max(0, len(self._verdicts) - _MOST_VERDICTS)]:
            if self._verdicts[key][0] is not None:
                del self._verdicts[key]

    # Jobs.

    def submit_store(self, job_metadata: Any) -> None:
        """Offers chunks to the agent, each group's as one chain."""
        context = job_metadata.req_context
        job = self._begin(job_metadata, is_load=False)
        for group, chain in self._chains_of(job_metadata).items():
            place = (context.req_id, group)
            after = self._chains.pop(place, b"")
            for begin in range(0, len(chain), FRAME_KEYS):
                part = chain[begin : begin + FRAME_KEYS]
                keys = [key for key, _ in part]
                slots = array("I", [slot for _, slot in part]).tobytes()
                self._part(job_metadata.job_id, job, keys, self._client.store(after, b"".join(keys), slots))
                after = keys[-1]
            self._chains[place] = after
        while len(self._chains) > _MOST_CHAINS:
            del self._chains[next(iter(self._chains))]

    def submit_load(self, job_metadata: Any) -> None:
        """Lets the agent read chunks to their slots."""
        job = self._begin(job_metadata, is_load=True)
        pairs = list(zip(job.keys, self._slots(job_metadata)))
        for begin in range(0, len(pairs), FRAME_KEYS):
            part = pairs[begin : begin + FRAME_KEYS]
            keys = [key for key, _ in part]
            slots = array("I", [slot for _, slot in part]).tobytes()
            self._part(job_metadata.job_id, job, keys, self._client.load(b"".join(keys), slots))

    def _begin(self, metadata: Any, *, is_load: bool) -> _Job:
        job = _Job([bytes(key) for key in metadata.keys], is_load, time.monotonic())
        self._jobs[metadata.job_id] = job
        wrong = [key for key in job.keys if len(key) != self._hello.hash_bytes + GROUP_BYTES]
        if wrong:
            self._learn(len(wrong[0]) - GROUP_BYTES)
        return job

    def _part(self, job_id: int, job: _Job, keys: list[Key], part: int) -> None:
        job.left += 1
        self._parts[part] = (job_id, keys)

    @staticmethod
    def _slots(metadata: Any) -> list[int]:
        ids = getattr(metadata, "chunk_ids", None)
        if ids is None:
            ids = metadata.block_ids
        return [int(slot) for slot in ids]

    def _chains_of(self, metadata: Any) -> dict[int, list[tuple[Key, int]]]:
        """A job's keys and slots by group, each in the order of the prompt."""
        position = getattr(metadata.req_context, "get_offload_key_position", None)
        chains: dict[int, list[tuple[Key, int]]] = {}
        for key, slot in zip(metadata.keys, self._slots(metadata)):
            chains.setdefault(int.from_bytes(key[-GROUP_BYTES:], "big"), []).append((bytes(key), slot))
        if position is not None:
            for chain in chains.values():
                if all(position(key) is not None for key, _ in chain):
                    chain.sort(key=lambda pair: position(pair[0]))
        return chains

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """All jobs that have ended since the last call."""
        if not hasattr(SecondaryTierManager, "on_schedule_end"):
            # Called once at the beginning of a step: what the last one asked is answered in time.
            self._flush()
        results: list[JobResult] = []
        if self._parts:
            for ended in self._client.poll():
                results.extend(self._ended(ended))
        return results

    # As it was called until 0.25.
    get_finished = get_finished_jobs

    def _ended(self, ended: Ended) -> Iterable[JobResult]:
        job_id, keys = self._parts.pop(ended.job)
        job = self._jobs[job_id]
        job.left -= 1
        # What the agent does not want to keep is no failure.
        fine = (Outcome.OK,) if job.is_load else (Outcome.OK, Outcome.KNOWN, Outcome.REFUSED)
        for key, outcome in zip(keys, ended.outcomes):
            (job.good if outcome in fine else job.bad).append(key)
        now = time.monotonic()
        if job.is_load:
            for key in job.bad:
                # Or the scheduler would promote it again and again.
                self._verdicts[key] = (False, now + _FAILED)
        elif ended.ok:
            # So that a block is not said to be missing once it is here.
            for key in keys:
                self._verdicts.pop(key, None)
        if job.left:
            return
        del self._jobs[job_id]
        yield _result(job_id, job.good, job.keys, not job.bad, now - job.began, self._bytes)

    def has_pending_work(self) -> bool:
        """Whether the engine must go on stepping for this tier."""
        return bool(self._parts)

    def drain_jobs(self) -> None:
        """Waits for all jobs. They are told by the next `get_finished_jobs`."""
        kept: list[Ended] = []
        while len(kept) < len(self._parts):
            kept.extend(self._client.poll())
            if len(kept) < len(self._parts):
                self._client.wait(0.5)
        self._client.give_back(kept)

    # Requests.

    def on_new_request(self, req_context: Any) -> Any:
        """Chunks are offered as they come."""
        context = getattr(_base, "RequestOffloadingContext", None) or getattr(_tiering, "RequestOffloadingContext", None)
        return context() if context is not None else None

    def touch(self, keys: Collection[Key], req_context: Any) -> None:
        """A request wants these chunks: they count as used, and come up to the agent's RAM."""
        groups: dict[int, list[Key]] = {}
        for key in keys:
            if len(key) == self._hello.hash_bytes + GROUP_BYTES:
                groups.setdefault(int.from_bytes(key[-GROUP_BYTES:], "big"), []).append(bytes(key))
        for chain in groups.values():
            self._client.touch(b"".join(chain))

    def on_schedule_end(self, context: Any) -> None:
        """Asks for what this step wanted to know."""
        self._flush()

    def on_request_finished(self, req_context: Any) -> None:
        """Its chain does not go on."""
        for group in range(len(self._hello.groups)):
            self._chains.pop((req_context.req_id, group), None)

    def shutdown(self) -> None:
        """Leaves the agent. It keeps the blocks."""
        self._client.close()
        self._region.close()
