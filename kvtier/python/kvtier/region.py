"""The file behind an engine's memory, so that the agent can map the same pages."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Final

_SEALS: Final = 0x2 | 0x4 | 0x1  # shrink, grow, and no more seals
_F_ADD_SEALS: Final = 1033


class RegionNotFound(OSError):
    """The memory has no file that another process could map."""


@dataclass
class Region:
    """Slots in a file in memory: where they are, and the descriptor, which this owns."""

    fd: int
    slots: int
    stride: int
    offset: int = 0

    def close(self) -> None:
        """Closes the descriptor. The agent has its own."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @staticmethod
    def make(slots: int, stride: int) -> tuple[Region, mmap.mmap]:
        """New memory that cannot be cut, and a mapping of it."""
        fd = os.memfd_create("kvtier-region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, slots * stride)
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
            memory = mmap.mmap(fd, slots * stride)
        except OSError:
            os.close(fd)
            raise
        return Region(fd, slots, stride), memory

    @staticmethod
    def of(view: memoryview) -> Region:
        """The region that `view` shows, a row per slot. It must map a file in memory.

        Found by address: the mapping tells device, inode and offset, and one of this process's
        descriptors, or the path, leads to the same file. So it works whether or not the file
        was unlinked, and without a look into the engine.
        """
        if view.shape is None or view.strides is None or not view.c_contiguous:
            raise RegionNotFound("the view is not contiguous")
        slots, stride = view.shape[0], view.strides[0]
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        return _find(address, slots, stride)


def _find(address: int, slots: int, stride: int) -> Region:
    end = address + slots * stride
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            span, _, start_offset, device, inode, *path = line.rstrip("\n").split(maxsplit=5)
            start, stop = (int(part, 16) for part in span.split("-"))
            if start <= address < stop:
                break
        else:
            raise RegionNotFound("the memory is not mapped")
    if int(inode) == 0:
        raise RegionNotFound("the memory is anonymous")
    if end > stop:
        raise RegionNotFound("the memory is in several mappings")
    major, minor = (int(part, 16) for part in device.split(":"))
    wanted = (os.makedev(major, minor), int(inode))
    fd = _descriptor(wanted, path[0] if path else "")
    return Region(fd, slots, stride, int(start_offset, 16) + address - start)


def _descriptor(wanted: tuple[int, int], path: str) -> int:
    def is_it(fd: int) -> bool:
        try:
            stat = os.fstat(fd)
        except OSError:
            return False
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        return writable and (stat.st_dev, stat.st_ino) == wanted

    for name in os.listdir("/proc/self/fd"):
        if is_it(int(name)):
            return os.dup(int(name))
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise RegionNotFound(f"no descriptor leads to {path!r}") from error
    if is_it(fd):
        return fd
    os.close(fd)
    raise RegionNotFound(f"{path!r} is another file now")
