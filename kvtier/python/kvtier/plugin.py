"""Makes `KvTier` known to vLLM before it knew `module_path` (0.22 to 0.26): a general plug-in."""

from __future__ import annotations

import importlib
import logging

logger = logging.getLogger(__name__)


def register() -> None:
    """Registers the tier where this vLLM has tiers. It is imported only if it is configured."""
    try:
        factory = importlib.import_module("vllm.v1.kv_offload.tiering.factory").SecondaryTierFactory
        factory.register_tier("KvTier", "kvtier.vllm", "KvTier")
    except (ImportError, AttributeError):
        logger.debug("this vLLM has no secondary tiers")
    except ValueError:
        logger.debug("the tier is registered already")
