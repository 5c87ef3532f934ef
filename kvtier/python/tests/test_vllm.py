"""KvTier under vLLM's own tiering manager, in each version there is, and under the contract.

Each version runs in a process of its own: `python test_vllm.py run FOLDER` (or `contract`).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import time
import types
import unittest
from collections.abc import Iterable
from typing import Any

import engines
from support import BLOCK, Agent, key, mapping, payload, run_again

GROUPS = 2
CHUNKS = 96


class Versions(unittest.TestCase):
    """Runs what is below once for each."""

    def run_in(self, where: str) -> None:
        run_again(self, __file__, where)

    def test_under_the_contract_as_written_down(self) -> None:
        self.run_in("contract")

    def test_under_the_vllm_that_is_installed(self) -> None:
        if importlib.util.find_spec("vllm") is None:
            self.skipTest("no vLLM is installed beside this Python")
        self.run_in("installed")

    def test_under_vllms_own_manager(self) -> None:
        folders = [folder for folder in engines.fetched() if folder.name.startswith("vllm")]
        if not folders:
            self.skipTest("vLLM's own classes did not run: set KVTIER_ENGINES (see engines.py)")
        for folder in folders:
            with self.subTest(folder.name):
                self.run_in(str(folder))


def load_tests(loader: unittest.TestLoader, tests: object, pattern: object) -> unittest.TestSuite:
    """Here only `Versions`: the rest needs a `vllm`."""
    return loader.loadTestsFromTestCase(Versions)


def spec(number: int = 0) -> Any:
    """What vLLM tells a tier, as far as it is read, in the words of all versions."""
    group = types.SimpleNamespace(tokens_per_block=16, layer_names=("l0", "l1"), group_id=0)
    sizes = dict.fromkeys(("tp_size", "pp_size", "pcp_size", "dcp_size", "world_size"), 1)
    parallel = types.SimpleNamespace(rank=0, is_parallelism_agnostic=False, **sizes)
    config = types.SimpleNamespace(
        groups=(group,) * GROUPS,
        model=types.SimpleNamespace(name=f"org/model-{number}", dtype="float16", max_model_len=0),
        cache=types.SimpleNamespace(tokens_per_hash=16, hash_block_size=16, blocks_per_chunk=1),
        parallel=parallel,
        replicated_layout=False,
        canonical_layout=False,
        kv_cache_layout=None,
    )
    old_group = types.SimpleNamespace(kv_cache_spec=types.SimpleNamespace(block_size=16), layer_names=("l0", "l1"))
    degrees = {f"{name}_parallel_size": 1 for name in ("tensor", "pipeline", "prefill_context", "decode_context")}
    vllm_config = types.SimpleNamespace(
        model_config=types.SimpleNamespace(model=f"org/model-{number}", revision=None, quantization=None),
        cache_config=types.SimpleNamespace(cache_dtype="auto", block_size=16),
        parallel_config=types.SimpleNamespace(rank=0, **degrees),
    )
    kv_cache_config = types.SimpleNamespace(kv_cache_groups=[old_group] * GROUPS)
    events = types.SimpleNamespace(enable_kv_cache_events=False)
    return types.SimpleNamespace(
        config=config,
        vllm_config=vllm_config,
        kv_cache_config=kv_cache_config,
        kv_events_config=events,
        blocks_per_chunk=1,
        block_size_factor=1,
        hash_block_size=16,
        gpu_block_size=(16,) * GROUPS,
    )


def fitting(call: Any, **offered: Any) -> Any:
    """Calls with those of the arguments that it has."""
    wanted = inspect.signature(call).parameters
    return call(**{name: value for name, value in offered.items() if name in wanted})


class Vllm:
    """The scheduler's side of one engine: vLLM's manager over a region as vLLM makes it."""

    made = 0

    def __init__(self, agent: Agent, number: int = 0, **options: Any) -> None:
        base = importlib.import_module("vllm.v1.kv_offload.base")
        factory = importlib.import_module("vllm.v1.kv_offload.tiering.factory").SecondaryTierFactory
        managers = importlib.import_module("vllm.v1.kv_offload.tiering.manager")
        self.base = base
        Vllm.made += 1
        path = f"/dev/shm/vllm_offload_test-{os.getpid()}-{Vllm.made}.mmap"
        self.memory = mapping(path, CHUNKS * BLOCK)
        os.unlink(path)
        view = memoryview(self.memory).cast("B", (CHUNKS, BLOCK))
        region = types.SimpleNamespace(create_kv_memoryview=lambda: view, cleanup=lambda: None)
        primary = fitting(
            managers.CPUPrimaryTierOffloadingManager, num_chunks=CHUNKS, num_blocks=CHUNKS, mmap_region=region
        )
        config = {"type": "KvTier", "module_path": "kvtier.vllm", "socket": agent.socket}
        # What is tested must not depend on how busy the machine is.
        config |= {"patience_ms": 10_000, **options}
        create = factory.create_secondary_tier
        view = primary.get_kv_memoryview()
        try:
            self.tier = create(config, view, spec(number))
        except ValueError as error:
            if "Unknown secondary tier" not in str(error):
                raise
            # What the plug-in does where there is no module_path yet.
            importlib.import_module("kvtier.plugin").register()
            self.tier = create(config, view, spec(number))
        self.manager = managers.TieringOffloadingManager(primary_tier=primary, secondary_tiers=[self.tier])

    def request(self, name: str, keys: Iterable[bytes] = ()) -> Any:
        """A request that begins."""
        context = self.base.ReqContext(req_id=name)
        if hasattr(context, "set_offload_key_position"):
            for at, one in enumerate(keys):
                context.set_offload_key_position(one, 16 * (at + 1))
        if hasattr(self.manager, "on_new_request"):
            self.manager.on_new_request(context)
        return context

    def finish(self, context: Any) -> None:
        """A request that ends."""
        if hasattr(self.manager, "on_request_finished"):
            self.manager.on_request_finished(context)

    def step(self) -> None:
        """The end of a scheduler step."""
        if hasattr(self.manager, "on_schedule_end"):
            context = getattr(self.base, "ScheduleEndContext", None)
            self.manager.on_schedule_end(context(new_req_ids=(), preempted_req_ids=()) if context else None)
        list(self.manager.take_events())

    def store(self, numbers: list[int], context: Any) -> None:
        """Chunks come from the GPU and go on to the tier."""
        output = self.manager.prepare_store([key(n, n % GROUPS) for n in numbers], context)
        for chunk, stored in zip(output.store_spec.block_ids, output.keys_to_store):
            number = next(n for n in numbers if key(n, n % GROUPS) == stored)
            self.memory[chunk * BLOCK : (chunk + 1) * BLOCK] = payload(number)
        self.manager.complete_store(output.keys_to_store, context)

    def look(self, numbers: list[int], context: Any, steps: int = 400) -> list[bool]:
        """Looks chunks up as the scheduler does, step by step until none is to be retried."""
        for _ in range(steps):
            results = [self.manager.lookup(key(n, n % GROUPS), context) for n in numbers]
            self.step()
            names = [getattr(result, "name", {True: "HIT", False: "MISS", None: "RETRY"}.get(result)) for result in results]
            if all(name in ("HIT", "MISS") for name in names):
                return [name == "HIT" for name in names]
            time.sleep(0.002)
        raise AssertionError(f"still {names} after {steps} steps")

    def check(self, numbers: list[int], context: Any) -> None:
        """The bytes of chunks that were found."""
        keys = [key(n, n % GROUPS) for n in numbers]
        for number, chunk in zip(numbers, self.manager.prepare_load(keys, context).block_ids):
            if self.memory[chunk * BLOCK : (chunk + 1) * BLOCK] != payload(number):
                raise AssertionError(f"chunk {number} has other bytes")
        self.manager.complete_load(keys, context)

    def settle(self) -> None:
        """Steps until no job is left."""
        for _ in range(2000):
            self.step()
            if not self.tier.has_pending_work():
                # Once more, so that vLLM hears of the last.
                self.step()
                return
            time.sleep(0.002)
        raise AssertionError("jobs do not end")


class KvTierUnderVllm(unittest.TestCase):
    """Whatever is in `vllm` now."""

    def setUp(self) -> None:
        self.agent = Agent("ram=0", "disk=16MiB")
        self.addCleanup(self.agent.close)

    def test_chunks_come_back_in_another_engine_of_the_same_model_only(self) -> None:
        numbers = list(range(24))
        one = Vllm(self.agent)
        context = one.request("a", [key(n, n % GROUPS) for n in numbers])
        self.assertEqual(one.look(numbers, context), [False] * 24)
        one.store(numbers[8:], context)
        one.store(numbers[:8], context)
        one.settle()
        one.finish(context)
        one.manager.shutdown()

        two = Vllm(self.agent)
        context = two.request("b")
        self.assertEqual(two.look([*numbers, 99], context), [True] * 24 + [False])
        two.check(numbers, context)
        two.manager.touch([key(n, n % GROUPS) for n in numbers], context)
        two.finish(context)
        stats = two.tier._client.stats()
        self.assertEqual((stats["stored_blocks"], stats["loaded_blocks"]), (24, 24))
        self.assertEqual((stats["pool_disk_blocks"], stats["pool_copied_bytes"]), (24, 0))
        self.assertEqual(stats["touch_keys"], 24)

        other = Vllm(self.agent, number=1)
        context = other.request("c")
        self.assertEqual(other.look(numbers, context), [False] * 24)
        other.manager.shutdown()
        two.manager.shutdown()

    def test_lookups_of_a_step_are_one_frame(self) -> None:
        engine = Vllm(self.agent)
        engine.look([0], engine.request("w"))
        before = engine.tier._client.stats()
        numbers = list(range(100, 150))
        self.assertEqual(engine.look(numbers, engine.request("a")), [False] * 50)
        after = engine.tier._client.stats()
        self.assertEqual(after["lookup_keys"] - before["lookup_keys"], 50)
        # One for the lookup, one for these numbers.
        self.assertEqual(after["frames"] - before["frames"], 2)
        engine.manager.shutdown()

    def test_an_engine_goes_on_without_its_agent_and_with_the_next(self) -> None:
        engine = Vllm(self.agent)
        context = engine.request("a")
        numbers = list(range(16))
        engine.store(numbers, context)
        engine.settle()
        time.sleep(0.3)
        engine.store([50, 51], context)
        self.agent.kill()
        engine.settle()
        began = time.monotonic()
        self.assertEqual(engine.look(list(range(200, 260)), context), [False] * 60)
        engine.store(list(range(60, 70)), context)
        engine.settle()
        self.assertLess(time.monotonic() - began, 9.0)
        self.agent.start()
        self.assertTrue(engine.tier._client.connect(10))
        engine.store(list(range(70, 80)), context)
        engine.settle()
        # Its own memory has these; another engine gets them from the agent.
        other = Vllm(self.agent)
        context = other.request("b")
        found = other.look([*numbers, *range(70, 80)], context)
        self.assertEqual(found, [True] * 26)
        other.check([*numbers, *range(70, 80)], context)
        other.manager.shutdown()
        engine.manager.shutdown()

    def test_an_engine_begins_without_an_agent(self) -> None:
        self.agent.stop()
        engine = Vllm(self.agent, connect_s=0.1)
        context = engine.request("a")
        self.assertEqual(engine.look([1, 2], context), [False, False])
        self.agent.start()
        self.assertTrue(engine.tier._client.connect(10))
        engine.store([1, 2], context)
        engine.settle()
        self.assertEqual(engine.tier._client.stats()["stored_blocks"], 2)
        engine.manager.shutdown()

    def test_drained_jobs_have_ended(self) -> None:
        engine = Vllm(self.agent)
        context = engine.request("a")
        engine.store(list(range(40)), context)
        engine.tier.drain_jobs()
        self.assertEqual(engine.tier._client.stats()["stored_blocks"], 40)
        engine.settle()
        engine.manager.shutdown()

    def test_hashes_of_another_length_are_found_out(self) -> None:
        engine = Vllm(self.agent)
        short = b"\x07" * 16 + (0).to_bytes(4, "big")
        context = engine.request("a")
        for _ in range(300):
            result = engine.manager.lookup(short, context)
            engine.step()
            time.sleep(0.002)
        self.assertIn(getattr(result, "name", result), ("MISS", False))
        self.assertGreater(engine.tier._client.stats()["lookup_keys"], 0)
        engine.manager.shutdown()


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        where = sys.argv[2]
        if where == "contract":
            importlib.import_module("contract").install()
        elif where != "installed":
            engines.stand_in(where)
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(KvTierUnderVllm)
        result = unittest.TextTestRunner(stream=sys.stdout).run(suite)
        print(f"KvTier under {os.path.basename(where)}: {result.testsRun} tests, {len(result.skipped)} skipped")
        sys.exit(not result.wasSuccessful())
    unittest.main()
