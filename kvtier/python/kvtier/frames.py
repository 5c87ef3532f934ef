"""What an engine and the agent say to each other; docs/formats.md has the whole of it.

One message of the socket is one frame, a msgpack array that begins with its kind.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Any, Final

import msgspec

VERSION: Final = 1
FRAME_BYTES: Final = 192 << 10
FRAME_KEYS: Final = 4096
GROUP_BYTES: Final = 4
FEATURE_LEASES: Final = 1


class Kind(enum.IntEnum):
    """What a frame is."""

    HELLO = 1
    LOOKUP = 2
    TOUCH = 3
    LOAD = 4
    STORE = 5
    POLL = 6
    LEASE = 7
    RELEASE = 8
    STATS = 9
    GOODBYE = 10
    WELCOME = 129
    PLACES = 130
    DONE = 134
    LEASES = 135
    COUNTS = 137
    REFUSED = 255


class Place(enum.IntEnum):
    """Where a block can be had."""

    NOWHERE = 0
    RAM = 1
    DISK = 2
    SHARED = 3
    UNKNOWN = 255


class Outcome(enum.IntEnum):
    """What became of a block of a job."""

    OK = 0
    KNOWN = 1
    MISS = 2
    LOST = 3
    REFUSED = 4
    FAILED = 5
    BUSY = 6


@dataclass(frozen=True)
class Hello:
    """How an engine introduces itself; its region comes apart from this."""

    model: str
    fingerprint: bytes
    block_bytes: int
    groups: tuple[int, ...] = (1,)
    hash_bytes: int = 32
    salt: str = ""
    engine: str = "python"
    features: int = FEATURE_LEASES


@dataclass(frozen=True)
class Welcome:
    """What the agent offers, and what it bounds."""

    version: int
    features: int
    jobs: int
    leases: int
    lease_ms: int
    arena_bytes: int
    sealed: int


_LEASE: Final = struct.Struct("<QII")
LEASE_BYTES: Final = _LEASE.size
NO_OFFSET: Final = 2**64 - 1

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def decode(frame: Any) -> list[Any]:
    """A frame's kind and fields. Raises ValueError where it is none."""
    fields = _decode(frame)
    if not isinstance(fields, list) or not fields:
        raise ValueError("not a frame")
    return fields


def hello(hello: Hello, slots: int, stride: int, offset: int) -> bytes:
    """A hello, with where the slots are in the region."""
    return encode(
        [
            int(Kind.HELLO),
            VERSION,
            hello.features,
            hello.engine[:64],
            hello.model,
            hello.salt,
            hello.fingerprint,
            hello.hash_bytes,
            hello.groups,
            hello.block_bytes,
            slots,
            stride,
            offset,
        ]
    )


def pack_lease(offset: int, place: int, turn: int) -> bytes:
    """A lease, as it is given and released."""
    return _LEASE.pack(offset, place, turn)


def unpack_leases(packed: bytes) -> list[tuple[int, int, int]]:
    """Offset, place and turn of each lease."""
    return list(_LEASE.iter_unpack(packed))
