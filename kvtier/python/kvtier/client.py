"""A session with an agent that is made again when it is lost.

Nothing here waits longer than `patience` but `wait`, and nothing raises because the agent is not
there: what is not answered is a miss.

When the agent does not answer, what it was told to load may still arrive: the slots of those jobs
are not free. So a job ends only when the agent says so or when its socket is closed, which it (or
the kernel, if it was killed) does after the last of them.
"""

from __future__ import annotations

import logging
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import frames
from .frames import FRAME_BYTES, FRAME_KEYS, Hello, Kind, Outcome, Welcome
from .region import Region

logger = logging.getLogger(__name__)

_GREET: Final = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
_SEND: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


@dataclass(frozen=True)
class Ended:
    """How a job ended: an `Outcome` per block, as bytes."""

    job: int
    outcomes: bytes
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether all of it came to something."""
        return not any(outcome > Outcome.KNOWN for outcome in self.outcomes)


@dataclass(frozen=True)
class Lease:
    """A block in the agent's RAM."""

    offset: int
    place: int
    turn: int
    deadline: float


class _Lost(Exception):
    """This session is of no use any more."""


class _Session:
    """One connection: answers come in the order of their requests."""

    def __init__(self, path: str, hello: Hello, region: Region | None, patience: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.welcome: Welcome | None = None
        self.ear = -1
        self.arena: mmap.mmap | None = None
        # Not of use any more, but not closed by the agent yet.
        self.lost = False
        # Jobs that have not ended, and their blocks and beginnings.
        self.jobs: dict[int, tuple[int, float]] = {}
        self._waiting: deque[Callable[[list[Any]], None]] = deque()
        self._buffer = bytearray(FRAME_BYTES)
        self._seq = 0
        try:
            self.socket.setblocking(False)
            self.socket.connect(path)
            if region is None:
                self.socket.send(frames.hello(hello, 0, 0, 0), _SEND)
            else:
                frame = frames.hello(hello, region.slots, region.stride, region.offset)
                socket.send_fds(self.socket, [frame], [region.fd], _SEND)
            # A receive that waits for this long is one system call; all that must not wait say so.
            self.socket.setblocking(True)
            time_left = struct.pack("ll", int(patience), int(patience % 1 * 1e6))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, time_left)
        except OSError:
            self.socket.close()
            raise

    def greet(self) -> bool:
        """Whether the welcome has come."""
        if self.welcome is not None:
            return True
        try:
            frame, fds, flags, _ = socket.recv_fds(self.socket, FRAME_BYTES, 4, _GREET)
        except BlockingIOError:
            return False
        except OSError as error:
            raise _Lost(str(error)) from error
        try:
            kind, *fields = self._parse(frame)
            if kind != Kind.WELCOME or not fds:
                raise _Lost(f"frame {kind} for a welcome")
            self.welcome = Welcome(*fields[:7])
            self.ear = fds.pop(0)
            if fds and self.welcome.arena_bytes:
                self.arena = mmap.mmap(fds[0], self.welcome.arena_bytes, prot=mmap.PROT_READ)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _parse(self, frame: Any) -> list[Any]:
        if not frame:
            raise _Lost("the agent is gone")
        try:
            fields = frames.decode(frame)
        except ValueError as error:
            raise _Lost(f"bad frame: {error}") from error
        if fields[0] == Kind.REFUSED:
            raise _Lost(f"refused: {fields[1:]}")
        return fields

    def tell(self, frame: bytes, deadline: float) -> None:
        """Sends what is not answered."""
        while True:
            try:
                self.socket.send(frame, _SEND)
                return
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([], [self.socket], [], left)[1]:
                    raise _Lost("the agent takes nothing") from None
            except OSError as error:
                raise _Lost(str(error)) from error

    def begin(self, kind: Kind, fields: Sequence[Any], deadline: float, then: Callable[[list[Any]], None]) -> None:
        """Sends a question. `then` is called with the answer's fields, by a later call."""
        self._seq += 1
        seq, wanted = self._seq, _ANSWERS[kind]

        def check(answer: list[Any]) -> None:
            if answer[0] != wanted or answer[1] != seq:
                raise _Lost(f"frame {answer[0]} for {wanted}")
            then(answer)

        self.tell(frames.encode([int(kind), seq, *fields]), deadline)
        self._waiting.append(check)

    def settle(self) -> None:
        """Takes all answers that are due."""
        while self._waiting:
            try:
                count = self.socket.recv_into(self._buffer)
            except BlockingIOError:
                raise _Lost("no answer in time") from None
            except OSError as error:
                raise _Lost(str(error)) from error
            answer = self._parse(memoryview(self._buffer)[:count])
            self._waiting.popleft()(answer)

    def ask(self, kind: Kind, fields: Sequence[Any], deadline: float) -> list[Any]:
        """Sends a question and waits for its answer."""
        answers: list[list[Any]] = []
        self.begin(kind, fields, deadline, answers.append)
        self.settle()
        return answers[0]

    def heard(self) -> bool:
        """Whether jobs have ended since the last call."""
        try:
            if os.read(self.ear, 64):
                return True
        except BlockingIOError:
            return False
        raise _Lost("the agent is gone")

    def leave(self) -> None:
        """Says nothing any more. The agent closes when its last job here has ended."""
        self.lost = True
        self._waiting.clear()
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def is_closed(self) -> bool:
        """Whether the agent has closed, so that nothing writes to the region any more."""
        while True:
            try:
                if not self.socket.recv_into(self._buffer, FRAME_BYTES, socket.MSG_DONTWAIT):
                    return True
            except BlockingIOError:
                return False
            except OSError:
                return True

    def close(self) -> None:
        """Closes this side."""
        self.socket.close()
        if self.ear >= 0:
            os.close(self.ear)
            self.ear = -1


_ANSWERS: Final = {
    Kind.LOOKUP: Kind.PLACES,
    Kind.POLL: Kind.DONE,
    Kind.LEASE: Kind.LEASES,
    Kind.STATS: Kind.COUNTS,
}


class Client:
    """An engine's way to its node's tiers. From any thread, one at a time each."""

    def __init__(
        self,
        path: str,
        hello: Hello,
        region: Region | None = None,
        *,
        patience: float = 0.1,
        backoff: tuple[float, float] = (0.05, 5.0),
    ) -> None:
        self._path, self._hello, self._region = path, hello, region
        # None at all would mean for ever to the socket.
        self._patience = max(patience, 0.001)
        self._least, self._most = backoff
        self._pause = self._least
        self._next_try = 0.0
        self._next_job = 1
        self._session: _Session | None = None
        self._ended: list[Ended] = []
        # Lookups whose answer is due: parts that came, parts that are to come, keys, whom to tell.
        self._unsettled: list[tuple[list[bytes], int, int, Callable[[bytes], None]]] = []
        self._lock = threading.RLock()
        self.sessions = 0
        self._closed = False
        self._connected()

    # Sessions.

    def _deadline(self) -> float:
        return time.monotonic() + self._patience

    def _connected(self) -> _Session | None:
        """A session that is of use, or None."""
        session = self._session
        if session is not None and session.lost:
            if not session.is_closed():
                return None
            self._bury(session)
            session = None
        try:
            if session is None:
                if self._closed or time.monotonic() < self._next_try:
                    return None
                session = self._session = _Session(self._path, self._hello, self._region, self._patience)
            if session.welcome is None and session.greet():
                self.sessions += 1
                self._pause = self._least
                logger.info("agent at %s: %s", self._path, session.welcome)
        except _Lost as error:
            self._lose(error)
            return None
        except OSError as error:
            self._later(str(error))
            return None
        return session if session.welcome is not None else None

    def _later(self, why: str) -> None:
        log = logger.warning if self._pause == self._least else logger.debug
        log("no agent at %s: %s", self._path, why)
        self._next_try = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, self._most)

    def _lose(self, error: _Lost) -> None:
        session = self._session
        if session is None or session.lost:
            return
        self._later(str(error))
        session.leave()
        if session.is_closed():
            self._bury(session)

    def _bury(self, session: _Session) -> None:
        """What has not ended never will: nothing writes to its slots any more."""
        now = time.monotonic()
        for job, (blocks, began) in session.jobs.items():
            self._ended.append(Ended(job, bytes([Outcome.FAILED]) * blocks, now - began))
        session.jobs.clear()
        session.close()
        self._session = None

    def connect(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for a session. Whether there is one."""
        end = time.monotonic() + timeout
        while True:
            with self._lock:
                if self._connected() is not None:
                    return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.005)

    @property
    def welcome(self) -> Welcome | None:
        """What the agent offers, while there is one."""
        with self._lock:
            session = self._connected()
            return session.welcome if session is not None else None

    def reintroduce(self, hello: Hello) -> None:
        """Begins a new session as somebody else."""
        with self._lock:
            self._hello = hello
            self._lose(_Lost("another hello"))
            self._pause, self._next_try = self._least, 0.0

    # Questions.

    def lookup(self, keys: bytes) -> bytes:
        """A `Place` per key; nowhere for all where there is no agent."""
        answers: list[bytes] = []
        self.lookup_later(keys, answers.append)
        with self._lock:
            self._settle()
        return answers[0]

    def lookup_later(self, keys: bytes, then: Callable[[bytes], None]) -> None:
        """Asks, and lets a later call (`settle` at the latest) hand the answer to `then`."""
        length = self._hello.hash_bytes + frames.GROUP_BYTES
        count = len(keys) // length
        parts: list[bytes] = []
        ends = range(FRAME_KEYS * length, len(keys) + FRAME_KEYS * length, FRAME_KEYS * length)

        def part(answer: list[Any]) -> None:
            parts.append(answer[2])
            if len(parts) == len(ends):
                places = b"".join(parts)
                then(places if len(places) == count else bytes(count))

        with self._lock:
            session = self._connected()
            if session is None or not count:
                then(bytes(count))
                return
            try:
                begin = 0
                for end in ends:
                    session.begin(Kind.LOOKUP, [keys[begin:end]], self._deadline(), part)
                    begin = end
            except _Lost as error:
                self._lose(error)
            else:
                self._unsettled.append((parts, len(ends), count, then))
                return
        then(bytes(count))

    def settle(self) -> None:
        """Waits, up to `patience`, for the answers that are due."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        session = self._connected()
        if session is not None:
            try:
                session.settle()
            except _Lost as error:
                self._lose(error)
        unsettled, self._unsettled = self._unsettled, []
        for parts, wanted, count, then in unsettled:
            if len(parts) < wanted:
                then(bytes(count))

    def _ask(self, kind: Kind, fields: Sequence[Any]) -> list[Any] | None:
        session = self._connected()
        if session is None:
            return None
        try:
            return session.ask(kind, fields, self._deadline())
        except _Lost as error:
            self._lose(error)
            return None

    def stats(self) -> dict[str, int]:
        """What the agent has done; empty where there is none."""
        with self._lock:
            answer = self._ask(Kind.STATS, [])
        return {} if answer is None else {name: count for name, count in answer[2]}

    def touch(self, keys: bytes) -> None:
        """A request wants this chain of one group, root first."""
        length = FRAME_KEYS * (self._hello.hash_bytes + frames.GROUP_BYTES)
        for begin in range(0, len(keys), length):
            self._tell([int(Kind.TOUCH), keys[begin : begin + length]])

    def _tell(self, fields: list[Any]) -> bool:
        with self._lock:
            session = self._connected()
            if session is None:
                return False
            try:
                session.tell(frames.encode(fields), self._deadline())
            except _Lost as error:
                self._lose(error)
                return False
            return True

    # Jobs.

    def load(self, keys: bytes, slots: bytes) -> int:
        """Reads up to 4,096 blocks to slots (4 bytes each, little-endian). Returns the job."""
        return self._begin(slots, lambda job: [int(Kind.LOAD), job, keys, slots])

    def store(self, after: bytes, keys: bytes, slots: bytes) -> int:
        """Takes up to 4,096 blocks, a chain behind `after`, from slots. Returns the job."""
        return self._begin(slots, lambda job: [int(Kind.STORE), job, after, keys, slots])

    def _begin(self, slots: bytes, frame: Callable[[int], list[Any]]) -> int:
        with self._lock:
            job, blocks = self._next_job, len(slots) // 4
            self._next_job += 1
            session = self._connected()
            room = session is not None and session.welcome is not None and len(session.jobs) < session.welcome.jobs
            if session is not None and room:
                # Before it is told: what may have been sent has to end.
                session.jobs[job] = (blocks, time.monotonic())
                self._tell(frame(job))
            else:
                outcome = Outcome.FAILED if session is None else Outcome.BUSY
                self._ended.append(Ended(job, bytes([outcome]) * blocks, 0.0))
            return job

    def poll(self) -> list[Ended]:
        """Jobs that have ended since the last call. Does not wait where none has."""
        with self._lock:
            session = self._connected()
            try:
                if session is not None and session.jobs and session.heard():
                    more = True
                    while more:
                        _, _, more, ended = session.ask(Kind.POLL, [], self._deadline())[:4]
                        for job, outcomes, micros in ended:
                            if session.jobs.pop(job, None) is not None:
                                self._ended.append(Ended(job, outcomes, micros / 1e6))
            except _Lost as error:
                self._lose(error)
            result, self._ended = self._ended, []
            return result

    def give_back(self, ended: Sequence[Ended]) -> None:
        """Lets the next `poll` tell these again."""
        with self._lock:
            self._ended[:0] = ended

    @property
    def pending(self) -> int:
        """Jobs whose end `poll` has not told."""
        session = self._session
        return len(self._ended) + (len(session.jobs) if session is not None else 0)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until `poll` has something, or the socket has. Whether there may be something."""
        with self._lock:
            session = self._session
            if self._ended or session is None:
                return bool(self._ended)
            fds = [session.socket] if session.lost or session.ear < 0 else [session.ear]
        return bool(select.select(fds, [], [], timeout)[0])

    # Leases.

    def lease(self, keys: bytes) -> list[Lease | None]:
        """Blocks to be read in the agent's RAM; None for those that are not there."""
        count = len(keys) // (self._hello.hash_bytes + frames.GROUP_BYTES)
        # The agent's clock starts later than this one.
        began = time.monotonic()
        with self._lock:
            answer = self._ask(Kind.LEASE, [keys])
            session = self._session
            if answer is None or session is None or session.welcome is None:
                return [None] * count
            deadline = began + session.welcome.lease_ms / 1000
        leases = frames.unpack_leases(answer[2])
        return [None if offset == frames.NO_OFFSET else Lease(offset, place, turn, deadline) for offset, place, turn in leases]

    def read(self, lease: Lease, into: Any) -> bool:
        """Copies a leased block. False where its time was up before the copy was done."""
        with self._lock:
            session = self._session
            if session is None or session.lost or session.arena is None:
                return False
            with memoryview(into).cast("B") as target, memoryview(session.arena) as arena:
                if lease.offset + len(target) > len(arena):
                    return False
                target[:] = arena[lease.offset : lease.offset + len(target)]
        return time.monotonic() < lease.deadline

    def release(self, leases: Sequence[Lease]) -> None:
        """Gives leases back."""
        packed = b"".join(frames.pack_lease(lease.offset, lease.place, lease.turn) for lease in leases)
        self._tell([int(Kind.RELEASE), packed])

    def close(self) -> None:
        """Leaves. What has not ended is of no interest any more."""
        with self._lock:
            self._tell([int(Kind.GOODBYE)])
            self._closed = True
            if self._session is not None:
                self._session.close()
                self._session = None
