"""KvTierStorage with a host pool as SGLang's, under SGLang's own base class and factory where they are.

Runs in a process of its own, like test_vllm.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import mmap
import os
import sys
import types
import unittest
from typing import Any

import engines
from support import Agent, payload, run_again

LAYERS, PAGE, PAGES = 2, 16, 40
PART = LAYERS * PAGE * 128


class Versions(unittest.TestCase):
    """Runs what is below once for each."""

    def run_in(self, where: str) -> None:
        run_again(self, __file__, where)

    def test_under_the_contract_as_written_down(self) -> None:
        self.run_in("contract")

    def test_under_sglangs_own_classes(self) -> None:
        folders = [folder for folder in engines.fetched() if folder.name.startswith("sglang")]
        if not folders:
            self.skipTest("SGLang's own classes did not run: set KVTIER_ENGINES (see engines.py)")
        for folder in folders:
            self.run_in(str(folder))


def load_tests(loader: unittest.TestLoader, tests: object, pattern: object) -> unittest.TestSuite:
    """Here only `Versions`: the rest needs an `sglang`."""
    return loader.loadTestsFromTestCase(Versions)


class Tensor:
    """As much of a tensor as is used: bytes somewhere."""

    def __init__(self, address: int, count: int, keep: Any) -> None:
        self.address, self.count, self.keep = address, count, keep

    def data_ptr(self) -> int:
        return self.address

    def numel(self) -> int:
        return self.count

    def element_size(self) -> int:
        return 1

    def contiguous(self) -> Tensor:
        return self

    def bytes(self) -> bytes:
        return ctypes.string_at(self.address, self.count)


def tensor(content: bytes) -> Tensor:
    """A tensor with memory of its own."""
    memory = ctypes.create_string_buffer(content, len(content))
    return Tensor(ctypes.addressof(memory), len(content), memory)


class Indices(list[int]):
    """As much of an index tensor as is used."""

    def tolist(self) -> list[int]:
        return list(self)


class Pool:
    """A host pool of layout page_first: all pages' K, then all pages' V."""

    page_size, layout, dtype, layer_num = PAGE, "page_first", "fp8", LAYERS

    def __init__(self, shared: bool) -> None:
        size = 2 * PAGES * PART
        if shared:
            fd = os.memfd_create("sglang")
            os.ftruncate(fd, size)
            self.memory = mmap.mmap(fd, size)
            os.close(fd)
        else:
            self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.kv_buffer = Tensor(base, size, self.memory)

    def get_page_buffer_meta(self, indices: Any) -> tuple[list[int], list[int]]:
        pointers = []
        for index in indices.tolist()[::PAGE]:
            key = self.kv_buffer.address + index // PAGE * PART
            pointers += [key, key + PAGES * PART]
        return pointers, [PART] * len(pointers)

    def get_dummy_flat_data_page(self) -> Tensor:
        return tensor(bytes(2 * PART))

    def indices(self, pages: list[int]) -> Indices:
        return Indices(page * PAGE + at for page in pages for at in range(PAGE))

    def put(self, page: int, content: bytes) -> None:
        for part in range(2):
            at = part * PAGES * PART + page * PART
            self.memory[at : at + PART] = content[part * PART : (part + 1) * PART]

    def get(self, page: int) -> bytes:
        at = page * PART
        return self.memory[at : at + PART] + self.memory[PAGES * PART + at : PAGES * PART + at + PART]


def name(number: int) -> str:
    """A page's hash."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def content(number: int) -> bytes:
    """A page's bytes."""
    return payload(number, 2 * PART)


class Storage(unittest.TestCase):
    """Whatever is in `sglang` now."""

    def setUp(self) -> None:
        self.agent = Agent("ram=0", "disk=16MiB")
        self.addCleanup(self.agent.close)

    def backend(self, pool: Pool, **options: Any) -> Any:
        extra = {
            "backend_name": "kvtier",
            "module_path": "kvtier.sglang",
            "class_name": "KvTierStorage",
            "interface_v1": 1,
            "socket": self.agent.socket,
            "staging_bytes": 1 << 17,
            "patience_ms": 10_000,
            **{key: value for key, value in options.items() if key in ("interface_v1", "connect_s")},
        }
        rank = {"tp_rank": options.get("tp_rank", 0), "tp_size": 2, "pp_rank": 0, "pp_size": 1}
        base = importlib.import_module("sglang.srt.mem_cache.hicache_storage")
        config = base.HiCacheStorageConfig(
            **rank,
            attn_cp_rank=0,
            attn_cp_size=1,
            is_mla_model=options.get("is_mla_model", False),
            enable_storage_metrics=False,
            is_page_first_layout=True,
            model_name="org/model",
            extra_config=extra,
        )
        factory = importlib.import_module("sglang.srt.mem_cache.storage.backend_factory").StorageBackendFactory
        backend = factory.create_backend("dynamic", config, pool)
        backend.register_mem_pool_host(pool)
        self.addCleanup(backend.close)
        return backend

    def pages_come_back(self, shared: bool) -> Any:
        pool, other = Pool(shared), Pool(shared)
        one, two = self.backend(pool), self.backend(other)
        numbers = list(range(PAGES))
        names = [name(number) for number in numbers]
        self.assertEqual(one.batch_exists(names), 0)
        for number in numbers:
            pool.put(number, content(number))
        info = types.SimpleNamespace(prefix_keys=[])
        self.assertEqual(one.batch_set_v1(names[:30], pool.indices(numbers[:30]), info), [True] * 30)
        info.prefix_keys = names[:30]
        self.assertEqual(one.batch_set_v1(names[30:], pool.indices(numbers[30:]), info), [True] * 10)
        self.assertEqual(two.batch_exists([*names, name(99)]), PAGES)
        self.assertEqual(two.batch_exists([name(99), *names]), 0)
        self.assertTrue(two.exists(names[3]) and not two.exists(name(98)))
        backwards = numbers[::-1]
        self.assertEqual(two.batch_get_v1(names, other.indices(backwards)), [True] * PAGES)
        for number, page in zip(numbers, backwards):
            self.assertEqual(other.get(page), content(number))
        came = two.batch_get_v1([names[0], name(99)], other.indices([0, 1]))
        self.assertEqual(came, [True, False])
        # The other rank's pages are not this one's.
        self.assertEqual(self.backend(Pool(shared), tp_rank=1).batch_exists(names), 0)
        return two

    def test_pages_of_shared_memory_are_moved_in_place(self) -> None:
        backend = self.pages_come_back(shared=True)
        stats = backend._client.stats()
        self.assertNotEqual(backend._base, 0)
        self.assertEqual((stats["stored_blocks"], stats["pool_copied_bytes"]), (2 * PAGES, 0))

    def test_pages_of_anonymous_memory_are_copied_once(self) -> None:
        backend = self.pages_come_back(shared=False)
        self.assertEqual(backend._base, 0)
        self.assertEqual(backend._client.stats()["stored_blocks"], PAGES)

    def test_pages_in_tensors_come_back(self) -> None:
        backend = self.backend(Pool(False), interface_v1=0)
        names = [name(number) for number in range(12)]
        self.assertTrue(backend.batch_set(names, [tensor(content(number)) for number in range(12)]))
        targets = [backend.mem_pool_host.get_dummy_flat_data_page() for _ in range(13)]
        came = backend.batch_get([*names, name(99)], targets)
        self.assertIsNone(came[12])
        for number in range(12):
            self.assertEqual(came[number].bytes(), content(number))
        self.assertTrue(backend.set(name(50), tensor(content(50))))
        self.assertEqual(backend.get(name(50), tensor(bytes(2 * PART))).bytes(), content(50))
        self.assertIsNone(backend.get(name(51), tensor(bytes(2 * PART))))
        self.assertFalse(backend.set(name(52), tensor(bytes(PART))))

    def test_of_replicated_pages_one_rank_writes(self) -> None:
        pool = Pool(True)
        second = self.backend(pool, is_mla_model=True, tp_rank=1)
        self.assertEqual(second.batch_set_v1([name(1)], pool.indices([1])), [True])
        first = self.backend(pool, is_mla_model=True)
        self.assertFalse(first.exists(name(1)))
        pool.put(1, content(1))
        self.assertEqual(first.batch_set_v1([name(1)], pool.indices([1])), [True])
        self.assertTrue(second.exists(name(1)))

    def test_without_an_agent_nothing_is_found_and_nothing_hangs(self) -> None:
        for shared in (True, False):
            pool = Pool(shared)
            backend = self.backend(pool, connect_s=0.1)
            backend.batch_set_v1([name(1)], pool.indices([1]))
            self.agent.kill()
            self.assertEqual(backend.batch_exists([name(1)]), 0)
            self.assertEqual(backend.batch_get_v1([name(1)], pool.indices([1])), [False])
            self.assertEqual(backend.batch_set_v1([name(2)], pool.indices([1])), [False])
            self.agent.start()
            self.assertTrue(backend._client.connect(10))
            pool.put(5, content(5))
            self.assertEqual(backend.batch_set_v1([name(5)], pool.indices([5])), [True])


def contract() -> None:
    """SGLang's base class and factory as understood here, for where SGLang is not."""

    class HiCacheStorage:
        def register_mem_pool_host(self, mem_pool_host: Any) -> None:
            self.mem_pool_host = mem_pool_host

    class Config(types.SimpleNamespace):
        @property
        def is_storage_writer(self) -> bool:
            return not self.is_mla_model or self.tp_rank == 0

    class Factory:
        @classmethod
        def create_backend(cls, kind: str, config: Any, pool: Any, **kwargs: Any) -> Any:
            extra = config.extra_config
            return getattr(importlib.import_module(extra["module_path"]), extra["class_name"])(config, kwargs)

    for place in ("sglang", "sglang.srt", "sglang.srt.mem_cache", "sglang.srt.mem_cache.storage"):
        sys.modules[place] = types.ModuleType(place)
        sys.modules[place].__path__ = []
    base: Any = types.ModuleType("sglang.srt.mem_cache.hicache_storage")
    base.HiCacheStorage, base.HiCacheStorageConfig = HiCacheStorage, Config
    factory: Any = types.ModuleType("sglang.srt.mem_cache.storage.backend_factory")
    factory.StorageBackendFactory = Factory
    sys.modules[base.__name__], sys.modules[factory.__name__] = base, factory


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        where = sys.argv[2]
        if where == "contract":
            contract()
        else:
            engines.stand_in(where)
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(Storage)
        result = unittest.TextTestRunner(stream=sys.stdout).run(suite)
        print(f"KvTierStorage under {os.path.basename(where)}: {result.testsRun} tests, {len(result.skipped)} skipped")
        sys.exit(not result.wasSuccessful())
    unittest.main()
