"""The contract of vLLM's secondary tiers as this project understands it, for where vLLM is not.

It has the names and calls of 0.33 and a manager that does with a tier what vLLM's does: ask, retry,
promote through slots, cascade.
"""

from __future__ import annotations

import abc
import enum
import sys
import types
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np


class Medium(enum.Enum):
    CPU = "CPU"
    STORAGE = "STORAGE"


class Locality(enum.Enum):
    LOCAL = "LOCAL"
    REMOTE = "REMOTE"


class LookupResult(enum.Enum):
    MISS = enum.auto()
    HIT = enum.auto()
    HIT_PENDING = enum.auto()
    RETRY = enum.auto()


@dataclass
class ReqContext:
    req_id: str
    _positions: dict[bytes, int] = field(default_factory=dict)

    def set_offload_key_position(self, key: bytes, end_token: int) -> None:
        self._positions[key] = end_token

    def get_offload_key_position(self, key: bytes) -> int | None:
        return self._positions.get(key)


@dataclass
class RequestOffloadingContext:
    pass


@dataclass
class TransferJob:
    job_id: int
    keys: Collection[bytes]
    chunk_ids: np.ndarray[Any, Any]
    is_promotion: bool
    req_context: ReqContext


@dataclass
class JobResult:
    job_id: int
    success: bool
    successful_keys: Collection[bytes] | None = None
    transfer_time: float | None = None
    transfer_bytes: int | None = None


class SecondaryTierManager(abc.ABC):
    medium: ClassVar[Medium | None] = None

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
    ) -> None:
        self.tier_type = tier_type
        self.locality: Locality | None = None

    @abc.abstractmethod
    def lookup(self, key: bytes, req_context: ReqContext) -> LookupResult: ...
    @abc.abstractmethod
    def submit_store(self, job_metadata: TransferJob) -> None: ...
    @abc.abstractmethod
    def submit_load(self, job_metadata: TransferJob) -> None: ...
    @abc.abstractmethod
    def get_finished_jobs(self) -> Iterable[JobResult]: ...
    @abc.abstractmethod
    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext: ...
    @abc.abstractmethod
    def drain_jobs(self) -> None: ...
    def on_schedule_end(self, context: Any) -> None: ...
    def on_request_finished(self, req_context: ReqContext) -> None: ...
    def touch(self, keys: Collection[bytes], req_context: ReqContext) -> None: ...
    def shutdown(self) -> None: ...


class SecondaryTierFactory:
    @classmethod
    def create_secondary_tier(cls, tier_config: dict[str, Any], view: memoryview, spec: Any) -> Any:
        config = dict(tier_config)
        tier_type, module = config.pop("type"), __import__("importlib").import_module(config.pop("module_path"))
        tier = getattr(module, tier_type)
        assert issubclass(tier, SecondaryTierManager)
        return tier(
            offloading_spec=spec, primary_kv_view=view, tier_type=tier_type, backpressure_detector=None, **config
        )


class FileMapper:
    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    @classmethod
    def from_offloading_spec(cls, root_dir: str, offloading_spec: Any, parallel_agnostic: bool = False) -> FileMapper:
        return cls({"model_name": offloading_spec.config.model.name})

    def get_run_config(self) -> dict[str, Any]:
        return self.fields


@dataclass
class _Stored:
    keys_to_store: list[bytes]
    store_spec: Any


class CPUPrimaryTierOffloadingManager:
    """Slots for chunks; the least recently stored goes first."""

    def __init__(self, num_chunks: int, mmap_region: Any) -> None:
        self.view = mmap_region.create_kv_memoryview()
        self.free = list(range(num_chunks))
        self.held: dict[bytes, int] = {}
        self.pending: set[bytes] = set()

    def get_kv_memoryview(self) -> memoryview:
        return self.view

    def take(self, key: bytes) -> int | None:
        if not self.free:
            old = next((k for k in self.held if k not in self.pending), None)
            if old is None:
                return None
            self.free.append(self.held.pop(old))
        self.held[key] = slot = self.free.pop()
        self.pending.add(key)
        return slot

    def drop(self, key: bytes) -> None:
        self.pending.discard(key)
        self.free.append(self.held.pop(key))


class TieringOffloadingManager:
    """One primary, one secondary tier."""

    def __init__(self, primary_tier: CPUPrimaryTierOffloadingManager, secondary_tiers: list[Any]) -> None:
        self.primary, (self.tier,) = primary_tier, secondary_tiers
        self.jobs: dict[int, TransferJob] = {}
        self.promotions: dict[bytes, ReqContext] = {}

    def _job(self, keys: list[bytes], is_promotion: bool, context: ReqContext) -> TransferJob:
        slots = np.array([self.primary.held[key] for key in keys], dtype=np.int32)
        job = TransferJob(len(self.jobs) + 1, keys, slots, is_promotion, context)
        self.jobs[job.job_id] = job
        return job

    def lookup(self, key: bytes, context: ReqContext) -> LookupResult:
        if key in self.primary.held:
            return LookupResult.HIT_PENDING if key in self.primary.pending else LookupResult.HIT
        result: LookupResult = self.tier.lookup(key, context)
        if result is not LookupResult.HIT:
            return result
        if self.primary.take(key) is None:
            return LookupResult.MISS
        self.promotions[key] = context
        return LookupResult.HIT_PENDING

    def prepare_load(self, keys: Collection[bytes], context: ReqContext) -> Any:
        return types.SimpleNamespace(block_ids=[self.primary.held[key] for key in keys])

    def complete_load(self, keys: Collection[bytes], context: ReqContext) -> None: ...

    def touch(self, keys: Collection[bytes], context: ReqContext) -> None:
        self.tier.touch(keys, context)

    def prepare_store(self, keys: Collection[bytes], context: ReqContext) -> _Stored:
        new = [key for key in keys if key not in self.primary.held and self.primary.take(key) is not None]
        return _Stored(new, types.SimpleNamespace(block_ids=[self.primary.held[key] for key in new]))

    def complete_store(self, keys: Collection[bytes], context: ReqContext, success: bool = True) -> None:
        self.tier.submit_store(self._job(list(keys), False, context))

    def on_new_request(self, context: ReqContext) -> Any:
        return self.tier.on_new_request(context)

    def on_request_finished(self, context: ReqContext) -> None:
        self.tier.on_request_finished(context)

    def on_schedule_end(self, step: Any) -> None:
        for result in self.tier.get_finished_jobs():
            job = self.jobs[result.job_id]
            good = job.keys if result.success else result.successful_keys or ()
            for key in job.keys:
                if job.is_promotion and key not in good:
                    self.primary.drop(key)
                self.primary.pending.discard(key)
        promotions, self.promotions = self.promotions, {}
        for key, context in promotions.items():
            self.tier.submit_load(self._job([key], True, context))
        self.tier.on_schedule_end(step)

    def take_events(self) -> Iterable[Any]:
        return ()

    def shutdown(self) -> None:
        self.tier.shutdown()


def install() -> None:
    """Puts these where vLLM has them."""
    here = sys.modules[__name__]
    for name in (
        "vllm",
        "vllm.v1",
        "vllm.v1.kv_offload",
        "vllm.v1.kv_offload.base",
        "vllm.v1.kv_offload.file_mapper",
        "vllm.v1.kv_offload.tiering",
        "vllm.v1.kv_offload.tiering.base",
        "vllm.v1.kv_offload.tiering.factory",
        "vllm.v1.kv_offload.tiering.manager",
    ):
        module = types.ModuleType(name)
        module.__path__ = []
        vars(module).update({key: value for key, value in vars(here).items() if key[0].isupper()})
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
