"""An agent for tests, engines' memory, and what blocks hold."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from kvtier import Client, Hello, Region

BLOCK = 4096
ROOT = Path(__file__).resolve().parents[3]


def agent_binary() -> str:
    """The example agent: KVTIER_AGENT, or where cargo puts it."""
    named = os.environ.get("KVTIER_AGENT")
    if named:
        return named
    for profile in ("release", "debug"):
        path = ROOT / "target" / profile / "examples" / "agent"
        if path.exists():
            return str(path)
    raise FileNotFoundError("no agent: set KVTIER_AGENT, or cargo build -p kvtier --example agent")


def run_again(test: unittest.TestCase, file: str, where: str) -> None:
    """Runs the test file in a process of its own, under the engine's classes in `where`, and says what it said last."""
    run = subprocess.run(
        [sys.executable, file, "run", where], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
    )
    test.assertEqual(run.returncode, 0, run.stdout.decode())
    print(run.stdout.decode().strip().splitlines()[-1], file=sys.stderr)


class Agent:
    """A real agent in a folder of its own, that can be killed and started again."""

    def __init__(self, *options: str, base: str | None = None) -> None:
        self.folder = tempfile.mkdtemp(prefix="kvtier-", dir=base)
        self.socket = f"{self.folder}/agent.sock"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it serves."""
        command = [agent_binary(), self.socket, f"{self.folder}/node", *self.options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == b"ready\n", line

    def kill(self) -> None:
        """As the kernel would."""
        assert self.process is not None
        self.process.kill()
        self._ended()

    def stop(self) -> None:
        """As an operator would."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.close()
        self._ended()

    def pause(self) -> None:
        """It is there, and does nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        # A signal takes its time.
        os.waitpid(self.process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """It goes on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _ended(self) -> None:
        assert self.process is not None
        self.process.wait(20)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process = None

    def close(self) -> None:
        """Ends it and takes its folder away."""
        if self.process is not None:
            self.resume()
            self.kill()
        shutil.rmtree(self.folder)


def payload(number: int, size: int = BLOCK) -> bytes:
    """What block `number` holds: the oracle of all tests here."""
    return random.Random(number).randbytes(size)


def key(number: int, group: int = 0) -> bytes:
    """Block `number`'s key, as vLLM makes it."""
    return random.Random(~number).randbytes(32) + group.to_bytes(4, "big")


def keys(numbers: object) -> bytes:
    """Several keys in a row."""
    return b"".join(key(number) for number in numbers)  # type: ignore[attr-defined]


def slots(*numbers: int) -> bytes:
    """Slot numbers as the wire has them."""
    return b"".join(number.to_bytes(4, "little") for number in numbers)


HELLO = Hello(model="llama", fingerprint=bytes(16), block_bytes=BLOCK, groups=(16, 16))


class Engine:
    """A client and its memory."""

    def __init__(self, agent: Agent, count: int = 64, hello: Hello = HELLO, **options: object) -> None:
        # Tests of what happens without an answer say how long they wait; the others must not
        # depend on the machine.
        options.setdefault("patience", 10.0)
        self.region, self.memory = Region.make(count, hello.block_bytes)
        self.client = Client(agent.socket, hello, self.region, **options)  # type: ignore[arg-type]
        assert self.client.connect(10)

    def fill(self, slot: int, number: int) -> None:
        """Puts a block's bytes in a slot."""
        self.memory[slot * BLOCK : (slot + 1) * BLOCK] = payload(number)

    def holds(self, slot: int) -> bytes:
        """A slot's bytes."""
        return self.memory[slot * BLOCK : (slot + 1) * BLOCK]

    def wait(self, job: int, timeout: float = 20) -> bytes:
        """The outcomes of a job."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for ended in self.client.poll():
                if ended.job == job:
                    return ended.outcomes
            self.client.wait(0.1)
        raise AssertionError(f"job {job} does not end")

    def put(self, numbers: list[int]) -> None:
        """Stores blocks, a chain."""
        for slot, number in enumerate(numbers):
            self.fill(slot, number)
        outcomes = self.wait(self.client.store(b"", keys(numbers), slots(*range(len(numbers)))))
        assert set(outcomes) <= {0, 1}, outcomes

    def close(self) -> None:
        """Leaves."""
        self.client.close()
        self.region.close()
        self.memory.close()


def mapping(path: str, size: int) -> mmap.mmap:
    """Maps a file that is made for it, as vLLM makes its region."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    os.close(fd)
    return memory
