"""A HiCache storage backend for SGLang: `KvTierStorage`.

    --hicache-storage-backend dynamic --hicache-storage-backend-extra-config
      '{"backend_name": "kvtier", "module_path": "kvtier.sglang", "class_name": "KvTierStorage",
        "interface_v1": 1, "socket": "/run/kvtier/agent.sock"}'

SGLang calls it from threads of its own, which may wait. Where the host pool's memory has a file
(its `shm` allocator), the agent reads and writes it in place; each part of a page (K and V, say) is a
block then. Where it is anonymous, which is SGLang's default, pages go through memory of this module's
own: one copy.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import queue
import threading
from array import array
from collections.abc import Sequence
from typing import Any, Final

from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

from .client import Client, Ended
from .frames import FRAME_KEYS, Hello, Outcome, Place
from .region import Region, RegionNotFound

logger = logging.getLogger(__name__)

_PAGE: Final = 4096
# More parts than this make one block, through this module's memory.
_MOST_PARTS: Final = 8

# The parts of a page: where each is, and its bytes.
Parts = list[tuple[int, int]]


def _name(key: str) -> bytes:
    """A page's hash, as 32 bytes. SGLang's own are SHA-256 in hex."""
    try:
        name = bytes.fromhex(key)
    except ValueError:
        name = b""
    return name if len(name) == 32 else hashlib.sha256(key.encode()).digest()


class KvTierStorage(HiCacheStorage):  # type: ignore[misc]
    """Pages in the RAM and on the disk of a node's kvtier agent."""

    def __init__(self, storage_config: Any, kwargs: Any = None) -> None:
        del kwargs
        extra: dict[str, Any] = dict(getattr(storage_config, "extra_config", None) or {})
        self._config = storage_config
        self._socket = str(extra.get("socket", "/run/kvtier/agent.sock"))
        self._staging_bytes = int(extra.get("staging_bytes", 256 << 20))
        self._patience = float(extra.get("patience_ms", 100)) / 1000
        self._connect_s = float(extra.get("connect_s", 5.0))
        self._salt = str(extra.get("salt", ""))
        self._extra = str(extra.get("fingerprint_extra", ""))
        self._whole_pages = not extra.get("interface_v1")
        # MLA keeps the same bytes on all ranks; one of them writes.
        self._writes = bool(getattr(storage_config, "is_storage_writer", True))
        self._client: Client | None = None
        self._region: Region | None = None
        self._done: dict[int, Ended] = {}
        self._lock = threading.Lock()

    # The host pool, and the memory that the agent sees.

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Finds out how pages lie in memory, and says hello."""
        super().register_mem_pool_host(mem_pool_host)
        self._pool = mem_pool_host
        self._page = int(mem_pool_host.page_size)
        if self._whole_pages:
            sizes = [_bytes_of(mem_pool_host.get_dummy_flat_data_page())]
        else:
            parts = self._parts_of(_first_page(mem_pool_host))[0]
            sizes = [size for _, size in parts]
        self._base = 0
        in_place = not self._whole_pages and len(set(sizes)) == 1 and len(sizes) <= _MOST_PARTS
        if not (in_place and self._share(mem_pool_host, parts)):
            self._stage(sum(sizes))
            sizes = [sum(sizes)]
        self._size, self._groups = sizes[0], len(sizes)
        hello = Hello(
            model=str(self._config.model_name or ""),
            fingerprint=self._fingerprint(),
            block_bytes=self._size,
            groups=(self._page,) * self._groups,
            salt=self._salt,
            engine="sglang",
            features=0,
        )
        self._client = Client(self._socket, hello, self._region, patience=self._patience)
        if not self._client.connect(self._connect_s):
            logger.warning("no kvtier agent at %s yet; going on without", self._socket)

    def _share(self, pool: Any, parts: Parts) -> bool:
        """Uses the host pool's own memory, if that has a file and parts lie in rows."""
        buffer, size = pool.kv_buffer, parts[0][1]
        try:
            base, total = int(buffer.data_ptr()), _bytes_of(buffer)
            view = memoryview((ctypes.c_char * total).from_address(base)).cast("B")
            region = Region.of(view.cast("B", (total // size, size)))
        except (RegionNotFound, AttributeError, TypeError) as why:
            logger.info("pages are copied on their way to the agent: %s", why)
            return False
        if region.offset % _PAGE or any((pointer - base) % size for pointer, _ in parts):
            region.close()
            return False
        self._base, self._region = base, region
        return True

    def _stage(self, size: int) -> None:
        stride = -(-size // _PAGE) * _PAGE
        count = max(2, self._staging_bytes // stride)
        self._region, memory = Region.make(count, stride)
        self._memory = memory
        self._stage_at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(count):
            self._free.put(slot)
        self._stride = stride
        # Two threads that each hold some and wait for more would wait for ever.
        self._turn = threading.Semaphore(max(1, count // FRAME_KEYS))

    def _fingerprint(self) -> bytes:
        config, pool = self._config, self._pool
        fields = {
            field: str(getattr(config, field, None))
            for field in ("model_name", "is_mla_model", "pp_rank", "pp_size", "attn_cp_rank", "attn_cp_size", "dcp_rank", "dcp_size")
        }
        if not getattr(config, "is_mla_model", False):
            fields |= {field: str(getattr(config, field, None)) for field in ("tp_rank", "tp_size")}
        fields |= {field: str(getattr(pool, field, None)) for field in ("dtype", "layout", "page_size", "layer_num")}
        shape = {"bytes": self._size, "parts": self._groups, "whole": self._whole_pages}
        fields |= {name: str(value) for name, value in shape.items()} | {"extra": self._extra}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()[:16]

    def _parts_of(self, host_indices: Any) -> list[Parts]:
        """The parts of each page."""
        pointers, sizes = self._pool.get_page_buffer_meta(host_indices)
        pages = len(host_indices) // self._page
        each = len(pointers) // pages
        pairs = list(zip(pointers, sizes))
        return [pairs[at * each : (at + 1) * each] for at in range(pages)]

    # Questions.

    def _keys(self, keys: Sequence[str], group: int) -> bytes:
        ending = group.to_bytes(4, "big")
        return b"".join(_name(key) + ending for key in keys)

    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        """How many pages from the first on are there."""
        if self._client is None or not keys:
            return 0
        hits = len(keys)
        for group in range(self._groups):
            places = self._client.lookup(self._keys(keys[:hits], group))
            missing = (at for at, place in enumerate(places) if place in (Place.NOWHERE, Place.UNKNOWN))
            hits = next(missing, hits)
        if hits:
            # SGLang asks once per request: its pages count as used, and come up to RAM.
            for group in range(self._groups):
                self._client.touch(self._keys(keys[:hits], group))
        return hits

    def exists(self, key: str) -> bool:
        """Whether a page is there."""
        return self.batch_exists([key]) == 1

    # Pages in the host pool.

    def batch_get_v1(self, keys: list[str], host_indices: Any, extra_info: Any = None) -> list[bool]:
        """Reads pages to the host pool. Whether each came."""
        return self._move(keys, self._parts_of(host_indices), None, load=True)

    def batch_set_v1(self, keys: list[str], host_indices: Any, extra_info: Any = None) -> list[bool]:
        """Offers pages of the host pool. Whether each is kept, or is of no interest."""
        if not self._writes:
            return [True] * len(keys)
        prefix = getattr(extra_info, "prefix_keys", None)
        return self._move(keys, self._parts_of(host_indices), prefix[-1] if prefix else None, load=False)

    # Pages in tensors of their own (`interface_v1` not set).

    def batch_get(self, keys: list[str], target_locations: Any = None, target_sizes: Any = None) -> list[Any]:
        """Reads pages to tensors. None for what did not come."""
        targets = list(target_locations or [])
        came = self._move(keys, [[(t.data_ptr(), _bytes_of(t))] for t in targets], None, load=True)
        return [target if good else None for target, good in zip(targets, came)]

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        """Reads a page to a tensor."""
        return self.batch_get([key], [target_location])[0] if target_location is not None else None

    def batch_set(self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None) -> bool:
        """Offers pages in tensors. Whether all are kept, or of no interest."""
        if not self._writes:
            return True
        values = [value.contiguous() for value in values]
        return all(self._move(keys, [[(v.data_ptr(), _bytes_of(v))] for v in values], None, load=False))

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        """Offers a page in a tensor."""
        return value is not None and self.batch_set([key], [value])

    # Moving.

    def _move(self, keys: Sequence[str], pages: list[Parts], after: str | None, *, load: bool) -> list[bool]:
        if self._client is None or any(sum(n for _, n in parts) != self._size * self._groups for parts in pages):
            return [False] * len(keys)
        results: list[bool] = []
        step = FRAME_KEYS if self._base else min(FRAME_KEYS, self._region.slots) if self._region else 1
        for begin in range(0, len(keys), step):
            part, where = keys[begin : begin + step], pages[begin : begin + step]
            move = self._move_in_place if self._base else self._move_staged
            results += move(part, where, after, load)
            after = part[-1]
        return results

    def _move_in_place(self, keys: Sequence[str], pages: list[Parts], after: str | None, load: bool) -> list[bool]:
        jobs = []
        for group in range(self._groups):
            slots = array("I", [(parts[group][0] - self._base) // self._size for parts in pages])
            jobs.append(self._begin(keys, group, after, slots, load))
        good = [True] * len(keys)
        for ended in self._await(jobs):
            good = [a and b for a, b in zip(good, _good(ended, load))]
        return good

    def _move_staged(self, keys: Sequence[str], pages: list[Parts], after: str | None, load: bool) -> list[bool]:
        with self._turn:
            slots = array("I", [self._free.get() for _ in keys])
            try:
                if not load:
                    for slot, parts in zip(slots, pages):
                        self._copy(slot, parts, load)
                (ended,) = self._await([self._begin(keys, 0, after, slots, load)])
                good = _good(ended, load)
                if load:
                    for slot, parts, came in zip(slots, pages, good):
                        if came:
                            self._copy(slot, parts, load)
                return good
            finally:
                for slot in slots:
                    self._free.put(slot)

    def _copy(self, slot: int, parts: Parts, load: bool) -> None:
        at = self._stage_at + slot * self._stride
        for pointer, size in parts:
            if load:
                ctypes.memmove(pointer, at, size)
            else:
                ctypes.memmove(at, pointer, size)
            at += size

    def _begin(self, keys: Sequence[str], group: int, after: str | None, slots: Any, load: bool) -> int:
        assert self._client is not None
        packed = self._keys(keys, group)
        if load:
            return self._client.load(packed, slots.tobytes())
        return self._client.store(self._keys([after], group) if after else b"", packed, slots.tobytes())

    def _await(self, jobs: list[int]) -> list[Ended]:
        """Waits until the jobs have ended. Until then the agent may touch their memory."""
        assert self._client is not None
        while True:
            with self._lock:
                for ended in self._client.poll():
                    self._done[ended.job] = ended
                if all(job in self._done for job in jobs):
                    return [self._done.pop(job) for job in jobs]
            # Another thread may be told of this one's jobs, so not for long.
            self._client.wait(0.01)

    # The rest.

    def clear(self) -> None:
        """The node's blocks are not one engine's to clear."""
        logger.warning("clear: blocks stay with the kvtier agent; evict them there")

    def get_stats(self) -> Any:
        """SGLang's own kind of statistics is not made here; `kvctl tiers` has them."""
        return None

    def close(self) -> None:
        """Leaves the agent. It keeps the pages."""
        if self._client is not None:
            self._client.close()
        if self._region is not None:
            self._region.close()


def _good(ended: Ended, load: bool) -> list[bool]:
    fine = (Outcome.OK,) if load else (Outcome.OK, Outcome.KNOWN, Outcome.REFUSED)
    return [outcome in fine for outcome in ended.outcomes]


def _bytes_of(tensor: Any) -> int:
    return int(tensor.numel()) * int(tensor.element_size())


class _Indices(list[int]):
    """Indices of a page, for a pool that wants a tensor."""

    def tolist(self) -> list[int]:
        return list(self)


def _first_page(pool: Any) -> Any:
    return _Indices(range(int(pool.page_size)))
