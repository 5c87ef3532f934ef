"""All replicas of kvd, asked as if they were one: there is always an answer, which says where it comes from."""

from __future__ import annotations

import enum
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from kvd_scorer._rpc import kv_pb2 as kv
from kvd_scorer.breaker import Breaker
from kvd_scorer.recall import Recall, tokens_le

if TYPE_CHECKING:
    Method = grpc.UnaryUnaryMultiCallable[Any, Any]
    Call = grpc.CallFuture[Any]

_SERVICE = b"kv.v1.IndexService"
# Of a routing, which nobody waits for.
_UNHURRIED = 0.1
# What is about the question rather than the replica.
_REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
}


@dataclass(frozen=True)
class Settings:
    """Where kvd is (``host:port``; a name stands for all it resolves to), and how it is asked. Times in seconds."""

    places: Sequence[str]
    deadline: float = 0.005
    # A second replica is asked after this long.
    hedge_after: float = 0.002
    resolve_every: float = 5.0
    breaker: Callable[[], Breaker] = Breaker
    routing_queue: int = 1024
    remembered_blocks: int = 8192
    answers_for: float = 10.0
    # ``grpc.ssl_channel_credentials``: encrypts, and trusts and shows what they say.
    credentials: grpc.ChannelCredentials | None = None
    # The name in kvd's certificate, where it is not the host of its place.
    server_name: str = ""
    # What is shown with every call; asked each time, so that it may change.
    token: Callable[[], str] | None = None


class Origin(enum.Enum):
    """Where an answer comes from."""

    KVD = "kvd"
    # kvd answered the same question a moment ago.
    LAST_KNOWN = "last known"
    # From where prompts that begin alike were routed; knows nothing of tiers, evictions or other schedulers.
    GUESS = "guess"


@dataclass(frozen=True)
class Answer:
    """What each candidate holds, who says so, and why kvd does not where it does not."""

    scores: kv.ScoreResponse
    origin: Origin
    replica: str | None = None
    why: str = ""


@dataclass
class Stats:
    """What has been done since the beginning."""

    answered: int = 0
    hedges: int = 0
    last_known: int = 0
    guessed: int = 0
    routings_told: int = 0
    routings_failed: int = 0
    routings_dropped: int = 0
    # Replicas that are left alone now.
    silent: list[str] = field(default_factory=list)


class _Replica:
    """A connection, and whether it is worth a question."""

    def __init__(self, address: str, host: str, settings: Settings) -> None:
        self.address, self.breaker, self.in_flight, self.probing = address, settings.breaker(), 0, False
        self.channel = _channel(address, host, settings)
        self.score: Method = self.channel.unary_unary(
            "/kv.v1.IndexService/Score",
            request_serializer=kv.ScoreRequest.SerializeToString,
            response_deserializer=kv.ScoreResponse.FromString,
        )
        self.record: Method = self.channel.unary_unary(
            "/kv.v1.IndexService/RecordRouting",
            request_serializer=kv.RecordRoutingRequest.SerializeToString,
            response_deserializer=kv.RecordRoutingResponse.FromString,
        )
        # grpc.health.v1 in two lines: a string in field 1 there, the number of SERVING in field 1 back.
        self.health: Method = self.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=lambda name: b"\x0a" + bytes([len(name)]) + name,
            response_deserializer=lambda answer: answer == b"\x08\x01",
        )


def _channel(address: str, host: str, settings: Settings) -> grpc.Channel:
    options: list[tuple[str, Any]] = [("grpc.max_reconnect_backoff_ms", 1000)]
    if settings.credentials is None:
        channel = grpc.insecure_channel(address, options)
    else:
        # Replicas are dialled by address, and their certificates are for a name.
        options.append(("grpc.ssl_target_name_override", settings.server_name or host))
        channel = grpc.secure_channel(address, settings.credentials, options)
    return channel if settings.token is None else grpc.intercept_channel(channel, _Shows(settings.token))


class _Shows(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Shows a token."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        shown = [*(details.metadata or ()), ("authorization", f"Bearer {self._token()}")]
        return continuation(_Details(details.method, details.timeout, shown), request)


@dataclass(frozen=True)
class _Details(grpc.ClientCallDetails):  # type: ignore[misc]
    method: str
    timeout: float | None
    metadata: Sequence[tuple[str, str]]
    credentials: grpc.CallCredentials | None = None
    wait_for_ready: bool | None = None
    compression: grpc.Compression | None = None


class Replicas:
    """May be used from any thread. ``close`` ends what goes on in the background."""

    def __init__(self, settings: Settings) -> None:
        for place in settings.places:
            _split(place)
        self._settings = settings
        self._lock = threading.Lock()
        self._replicas: dict[str, _Replica] = {}
        self._recall = Recall(settings.remembered_blocks, settings.answers_for)
        self._stats, self._turn = Stats(), 0
        self._routings: queue.Queue[kv.RecordRoutingRequest | None] = queue.Queue(settings.routing_queue)
        self._closed = threading.Event()
        self._known: dict[str, list[str]] = {}
        self._resolve()
        self._threads = [
            threading.Thread(target=work, daemon=True, name=name)
            for name, work in [("kvd-follow", self._follow), ("kvd-routings", self._tell)]
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the background threads and the connections."""
        self._closed.set()
        for thread in self._threads:
            thread.join()
        with self._lock:
            for replica in self._replicas.values():
                replica.channel.close()
            self._replicas.clear()

    def score(
        self,
        model: str,
        tokens: Sequence[int] = (),
        candidates: Sequence[str] = (),
        *,
        request: kv.ScoreRequest | None = None,
    ) -> Answer:
        """How much of a prompt every candidate holds; ``request`` says more than model, tokens and candidates.
        Never raises for what kvd or the network does."""
        if request is None:
            request = kv.ScoreRequest(model=model, candidates=candidates)
            request.prompt.token_ids_le = tokens_le(tokens)
        try:
            replica, scores = self._ask(request)
        except _NoAnswer as e:
            return self._from_memory(request, str(e))
        with self._lock:
            self._stats.answered += 1
            self._recall.answered(request, scores, time.monotonic())
        return Answer(scores, Origin.KVD, replica)

    def record_routing(self, call: kv.RecordRoutingRequest) -> bool:
        """Notes where a request went, for kvd and for guesses. Returns at once; false where too many wait already."""
        try:
            self._routings.put_nowait(call)
            return True
        except queue.Full:
            with self._lock:
                self._stats.routings_dropped += 1
            return False

    def stats(self) -> Stats:
        with self._lock:
            silent = sorted(r.address for r in self._replicas.values() if r.breaker.is_open)
            return Stats(**{**vars(self._stats), "silent": silent})

    def _ask(self, request: kv.ScoreRequest) -> tuple[str, kv.ScoreResponse]:
        began = time.monotonic()
        # Threads wake up late, and then the answer from memory is to be made.
        patience = self._settings.deadline - min(0.0015, self._settings.deadline / 2)
        outcomes: queue.SimpleQueue[tuple[_Replica, Call]] = queue.SimpleQueue()
        left = self._order()
        why, open_, hedged = "no replica is known to answer", 0, False

        def ask_next() -> int:
            if not left:
                return 0
            self._attempt(left.pop(0), request, outcomes)
            return 1

        open_ += ask_next()
        while open_:
            now = time.monotonic() - began
            until = patience if hedged or not left else min(self._settings.hedge_after, patience)
            try:
                replica, call = outcomes.get(timeout=max(0.0, until - now))
            except queue.Empty:
                if until >= patience:
                    raise _NoAnswer("no answer within the deadline") from None
                hedged = True
                with self._lock:
                    self._stats.hedges += 1
                open_ += ask_next()
                continue
            if call.code() is grpc.StatusCode.OK:
                return replica.address, call.result()
            open_ -= 1
            why = f"{call.code().name}: {call.details()}"
            if call.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
                break
            open_ += ask_next()
        raise _NoAnswer(why)

    def _attempt(
        self,
        replica: _Replica,
        request: kv.ScoreRequest,
        outcomes: queue.SimpleQueue[tuple[_Replica, Call]],
    ) -> None:
        """Asks one replica. It has its whole deadline whoever answers first, so that it is learnt whether it
        would have answered."""
        with self._lock:
            replica.in_flight += 1
        call = replica.score.future(request, timeout=self._settings.deadline)

        def done(call: Any) -> None:
            with self._lock:
                replica.in_flight -= 1
                if call.code() is grpc.StatusCode.OK or call.code() in _REFUSALS:
                    replica.breaker.answered()
                else:
                    replica.breaker.failed(time.monotonic())
            outcomes.put((replica, call))

        call.add_done_callback(done)

    def _order(self) -> list[_Replica]:
        """Those that are not left alone, in turn, the least busy first."""
        with self._lock:
            self._turn += 1
            all_ = list(self._replicas.values())
            at = self._turn % max(1, len(all_))
            return sorted(
                (r for r in all_[at:] + all_[:at] if not r.breaker.is_open), key=lambda r: r.in_flight
            )

    def _from_memory(self, request: kv.ScoreRequest, why: str) -> Answer:
        with self._lock:
            last = self._recall.last(request, time.monotonic())
            if last is not None:
                self._stats.last_known += 1
                return Answer(last, Origin.LAST_KNOWN, why=why)
            self._stats.guessed += 1
            return Answer(self._recall.guess(request), Origin.GUESS, why=why)

    def _follow(self) -> None:
        """Resolves names again, and tries replicas that fell silent."""
        resolve_at = time.monotonic() + self._settings.resolve_every
        while not self._closed.wait(0.025):
            now = time.monotonic()
            if now >= resolve_at or not self._known:
                self._resolve()
                resolve_at = now + self._settings.resolve_every
            with self._lock:
                due = [r for r in self._replicas.values() if r.breaker.wants_probe(now) and not r.probing]
                for replica in due:
                    replica.probing = True
            for replica in due:
                self._probe(replica)

    def _probe(self, replica: _Replica) -> None:
        def done(call: Any) -> None:
            with self._lock:
                replica.probing = False
                if call.code() is grpc.StatusCode.OK and call.result():
                    replica.breaker.probed()
                else:
                    replica.breaker.failed(time.monotonic())

        replica.health.future(_SERVICE, timeout=0.5).add_done_callback(done)

    def _resolve(self) -> None:
        for place in self._settings.places:
            host, port = _split(place)
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError:
                # A name server that fails has not taken the replicas away.
                continue
            self._known[place] = [_join(f[4][0], f[4][1]) for f in found]
        now = {address: _split(place)[0] for place, known in self._known.items() for address in known}
        with self._lock:
            gone = [self._replicas.pop(a) for a in list(self._replicas) if a not in now]
            for address in sorted(set(now) - set(self._replicas)):
                self._replicas[address] = _Replica(address, now[address], self._settings)
        for replica in gone:
            replica.channel.close()

    def _tell(self) -> None:
        """Tells kvd of routings, one after the other."""
        while not self._closed.is_set():
            try:
                call = self._routings.get(timeout=0.05)
            except queue.Empty:
                continue
            assert call is not None
            with self._lock:
                self._recall.routed(call)
            told = any(self._told(replica, call) for replica in self._order()[:2])
            with self._lock:
                self._stats.routings_told += told
                self._stats.routings_failed += not told

    @staticmethod
    def _told(replica: _Replica, call: kv.RecordRoutingRequest) -> bool:
        try:
            replica.record(call, timeout=_UNHURRIED)
            return True
        except (grpc.RpcError, ValueError):
            return False


class _NoAnswer(Exception):
    """No replica answered in time."""


def _split(place: str) -> tuple[str, int]:
    host, _, port = place.removeprefix("http://").removeprefix("https://").rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{place!r} is not a host and a port, such as kvd-headless:50051")
    return host.strip("[]"), int(port)


def _join(host: str | int, port: object) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
