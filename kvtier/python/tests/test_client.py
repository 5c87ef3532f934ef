"""The client against a real agent: what it returns, and what happens when either side dies."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import unittest

from support import BLOCK, HELLO, Agent, Engine, key, keys, mapping, payload, slots

from kvtier import Client, Outcome, Place, Region, RegionNotFound
from kvtier.frames import FRAME_KEYS


class WithAgent(unittest.TestCase):
    """A fresh agent for each test."""

    options: tuple[str, ...] = ("ram=8MiB", "disk=16MiB")

    def setUp(self) -> None:
        self.agent = Agent(*self.options)
        self.addCleanup(self.agent.close)

    def engine(self, **options: object) -> Engine:
        engine = Engine(self.agent, **options)  # type: ignore[arg-type]
        self.addCleanup(engine.close)
        return engine


class Blocks(WithAgent):
    """Both sides are well."""

    def test_what_one_engine_stores_another_loads(self) -> None:
        one, two = self.engine(), self.engine()
        one.put(list(range(40)))
        places = two.client.lookup(keys([0, 99, 39]))
        self.assertEqual([bool(place) for place in places], [True, False, True])
        job = two.client.load(keys(range(40)), slots(*reversed(range(40))))
        self.assertEqual(two.wait(job), bytes(40))
        for number in range(40):
            self.assertEqual(two.holds(39 - number), payload(number))
        self.assertEqual(two.wait(two.client.load(keys([99]), slots(0))), bytes([Outcome.MISS]))

    def test_lookups_of_any_length_are_answered_in_order(self) -> None:
        engine = self.engine()
        engine.put([5])
        count = 2 * FRAME_KEYS + 7
        places = engine.client.lookup(keys(range(count)))
        self.assertEqual([at for at, place in enumerate(places) if place], [5])
        self.assertEqual(len(places), count)
        self.assertEqual(engine.client.lookup(b""), b"")
        answers: list[tuple[str, bytes]] = []
        engine.client.lookup_later(key(5), lambda places: answers.append(("first", places)))
        engine.client.lookup_later(key(6), lambda places: answers.append(("second", places)))
        self.assertEqual(engine.client.stats()["stored_blocks"], 1)
        self.assertEqual([name for name, _ in answers], ["first", "second"])
        self.assertEqual([bool(places[0]) for _, places in answers], [True, False])

    def test_a_leased_block_is_read_in_the_agents_memory(self) -> None:
        engine = self.engine()
        engine.put([1, 2])
        leases = engine.client.lease(keys([2, 77, 1]))
        self.assertIsNone(leases[1])
        into = bytearray(BLOCK)
        for lease, number in ((leases[0], 2), (leases[2], 1)):
            assert lease is not None
            self.assertTrue(engine.client.read(lease, into))
            self.assertEqual(bytes(into), payload(number))
        held = [lease for lease in leases if lease is not None]
        engine.client.release(held + held)
        self.assertEqual(engine.client.stats()["leases_stale"], 2)

    def test_random_use_returns_only_right_bytes(self) -> None:
        engines = [self.engine() for _ in range(3)]
        chance = random.Random(7)
        loaded = 0
        for _ in range(150):
            engine = chance.choice(engines)
            numbers = chance.sample(range(120), 8)
            places = chance.sample(range(64), 8)
            if chance.random() < 0.4:
                for slot, number in zip(places, numbers):
                    engine.fill(slot, number)
                engine.wait(engine.client.store(b"", keys(numbers), slots(*places)))
            else:
                outcomes = engine.wait(engine.client.load(keys(numbers), slots(*places)))
                for slot, number, outcome in zip(places, numbers, outcomes):
                    if outcome == Outcome.OK:
                        loaded += 1
                        self.assertEqual(engine.holds(slot), payload(number))
        self.assertGreater(loaded, 200)

    def test_threads_share_a_client(self) -> None:
        engine = self.engine()
        engine.put(list(range(16)))
        failures: list[str] = []

        def ask(first: int) -> None:
            for _ in range(200):
                places = engine.client.lookup(keys([first, 1000 + first]))
                if (bool(places[0]), bool(places[1])) != (True, False):
                    failures.append(f"{first}: {places!r}")

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])


class FromDisk(WithAgent):
    """A node without RAM: all is read from disk."""

    options = ("ram=0", "disk=16MiB")

    def test_nothing_is_copied_on_the_way_from_disk(self) -> None:
        engine = self.engine()
        engine.put(list(range(32)))
        engine.wait(engine.client.load(keys(range(32)), slots(*range(32, 64))))
        for number in range(32):
            self.assertEqual(engine.holds(32 + number), payload(number))
        stats = engine.client.stats()
        self.assertEqual((stats["pool_disk_blocks"], stats["pool_ram_blocks"]), (32, 0))
        self.assertEqual((stats["loaded_bytes"], stats["pool_copied_bytes"]), (32 * BLOCK, 0))

    def test_a_copy_would_be_counted(self) -> None:
        # The same, but slots that are on no page boundary.
        region, memory = Region.make(8, BLOCK + 512)
        client = Client(self.agent.socket, HELLO, region)
        self.addCleanup(client.close)
        self.assertTrue(client.connect(10))
        engine = Engine.__new__(Engine)
        engine.client = client
        stride = BLOCK + 512
        for slot in range(4):
            memory[slot * stride : slot * stride + BLOCK] = payload(slot)
        engine.wait(client.store(b"", keys(range(4)), slots(0, 1, 2, 3)))
        engine.wait(client.load(keys(range(4)), slots(4, 5, 6, 7)))
        for slot in range(4):
            at = (4 + slot) * stride
            self.assertEqual(memory[at : at + BLOCK], payload(slot))
        self.assertGreaterEqual(client.stats()["pool_copied_bytes"], 4 * BLOCK)

    def test_blocks_outlive_an_agent_that_is_killed(self) -> None:
        engine = self.engine()
        engine.put(list(range(16)))
        time.sleep(0.5)
        self.agent.kill()
        self.assertEqual(engine.client.lookup(keys(range(16))), bytes(16))
        # What is asked of nobody has failed, and does not wait.
        job = engine.client.load(keys([1]), slots(1))
        self.assertEqual([(e.job, e.outcomes) for e in engine.client.poll()], [(job, bytes([Outcome.FAILED]))])
        self.agent.start()
        self.assertTrue(engine.client.connect(10))
        self.assertEqual(engine.client.sessions, 2)
        end = time.monotonic() + 10
        while Place.UNKNOWN in engine.client.lookup(keys(range(16))) and time.monotonic() < end:
            time.sleep(0.01)
        self.assertEqual(engine.client.lookup(keys(range(16))), bytes([Place.DISK]) * 16)
        outcomes = engine.wait(engine.client.load(keys(range(16)), slots(*range(40, 56))))
        self.assertEqual(outcomes, bytes(16))
        for number in range(16):
            self.assertEqual(engine.holds(40 + number), payload(number))


class Deaths(WithAgent):
    """One side dies, or is as good as dead."""

    options = ("ram=4MiB", "disk=16MiB")

    def test_an_agent_killed_in_the_middle_ends_all_jobs(self) -> None:
        engine = self.engine()
        engine.put(list(range(64)))
        chance = random.Random(3)
        for _ in range(5):
            jobs = {}
            for at in range(8):
                numbers = chance.sample(range(64), 8)
                jobs[engine.client.load(keys(numbers), slots(*range(8 * at, 8 * at + 8)))] = numbers
            time.sleep(chance.random() / 500)
            self.agent.kill()
            ended: dict[int, bytes] = {}
            end = time.monotonic() + 20
            while len(ended) < len(jobs) and time.monotonic() < end:
                for one in engine.client.poll():
                    self.assertNotIn(one.job, ended)
                    ended[one.job] = one.outcomes
            self.assertEqual(set(ended), set(jobs))
            for at, (job, numbers) in enumerate(jobs.items()):
                for slot, (number, outcome) in enumerate(zip(numbers, ended[job])):
                    if outcome == Outcome.OK:
                        self.assertEqual(engine.holds(8 * at + slot), payload(number))
            self.agent.start()
            self.assertTrue(engine.client.connect(10))
            engine.put(list(range(64)))

    def test_a_silent_agents_jobs_do_not_end_while_it_may_still_write(self) -> None:
        engine = self.engine(patience=0.05)
        engine.put([1])
        self.agent.pause()
        job = engine.client.load(key(1), slots(9))
        began = time.monotonic()
        self.assertEqual(engine.client.lookup(key(1)), bytes(1))
        self.assertEqual(engine.client.lookup(key(1)), bytes(1))
        self.assertLess(time.monotonic() - began, 1.0)
        self.assertEqual(engine.client.poll(), [])
        self.assertEqual(engine.client.pending, 1)
        self.agent.resume()
        end = time.monotonic() + 20
        ended = []
        while not ended and time.monotonic() < end:
            ended = engine.client.poll()
        self.assertEqual([(one.job, one.outcomes) for one in ended], [(job, bytes([Outcome.FAILED]))])
        self.assertTrue(engine.client.connect(10))
        self.assertEqual(engine.wait(engine.client.load(key(1), slots(9))), bytes(1))
        self.assertEqual(engine.holds(9), payload(1))

    def test_engines_killed_in_the_middle_leave_nothing_behind(self) -> None:
        engine = self.engine()
        engine.put(list(range(64)))
        for _ in range(4):
            child = subprocess.Popen(
                [sys.executable, __file__, "victim", self.agent.socket], stdout=subprocess.PIPE
            )
            assert child.stdout is not None
            self.assertEqual(child.stdout.readline(), b"at it\n")
            time.sleep(0.05)
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
        end = time.monotonic() + 20
        stats = engine.client.stats()
        while (stats["jobs"] != stats["jobs_ended"] or stats["sessions_ended"] < 4) and time.monotonic() < end:
            stats = engine.client.stats()
        self.assertEqual(stats["jobs"], stats["jobs_ended"])
        self.assertEqual((stats["sessions"], stats["sessions_ended"]), (5, 4))
        # What they stored is what they said, and what was there is still right.
        places = engine.client.lookup(keys(range(200)))
        found = [number for number, place in enumerate(places) if place]
        for first in range(0, len(found), 32):
            numbers = found[first : first + 32]
            outcomes = engine.wait(engine.client.load(keys(numbers), slots(*range(len(numbers)))))
            for slot, (number, outcome) in enumerate(zip(numbers, outcomes)):
                if outcome == Outcome.OK:
                    self.assertEqual(engine.holds(slot), payload(number))

    def test_a_client_waits_longer_between_tries_and_then_comes_back(self) -> None:
        engine = self.engine(backoff=(0.02, 0.3))
        self.agent.stop()
        for _ in range(200):
            engine.client.lookup(key(1))
            time.sleep(0.002)
        self.assertGreater(engine.client._pause, 0.1)
        self.agent.start()
        self.assertTrue(engine.client.connect(5))


class Regions(unittest.TestCase):
    """The file behind a memory is found, or it is said that there is none."""

    def test_an_unlinked_file_is_found_by_its_address(self) -> None:
        path = f"/dev/shm/kvtier-test-{os.getpid()}.mmap"
        memory = mapping(path, 8 * BLOCK)
        os.unlink(path)
        # mmap keeps a descriptor of its own.
        view = memoryview(memory).cast("B", (8, BLOCK))
        region = Region.of(view)
        self.assertEqual((region.slots, region.stride, region.offset), (8, BLOCK, 0))
        os.pwrite(region.fd, b"here", 3 * BLOCK)
        self.assertEqual(bytes(memory[3 * BLOCK : 3 * BLOCK + 4]), b"here")
        inner = Region.of(memoryview(memory)[2 * BLOCK :].cast("B", (6, BLOCK)))
        self.assertEqual((inner.slots, inner.offset), (6, 2 * BLOCK))
        region.close()
        inner.close()

    def test_anonymous_memory_has_none(self) -> None:
        with self.assertRaises(RegionNotFound):
            Region.of(memoryview(bytearray(8 * BLOCK)).cast("B", (8, BLOCK)))


def victim(path: str) -> None:
    """Stores and loads until it is killed."""
    region, memory = Region.make(64, BLOCK)
    client = Client(path, HELLO, region)
    assert client.connect(10)
    chance = random.Random(os.getpid())
    first = True
    busy: set[int] = set()
    where: dict[int, list[int]] = {}
    while True:
        free = [slot for slot in range(64) if slot not in busy]
        if len(free) >= 8:
            numbers, places = chance.sample(range(200), 8), chance.sample(free, 8)
            if chance.random() < 0.5:
                for slot, number in zip(places, numbers):
                    memory[slot * BLOCK : (slot + 1) * BLOCK] = payload(number)
                job = client.store(b"", keys(numbers), slots(*places))
            else:
                job = client.load(keys(numbers), slots(*places))
            where[job] = places
            busy.update(places)
        if first:
            print("at it", flush=True)
            first = False
        for ended in client.poll():
            busy.difference_update(where.pop(ended.job))
        select.select([], [], [], 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["victim"]:
        victim(sys.argv[2])
    unittest.main()
