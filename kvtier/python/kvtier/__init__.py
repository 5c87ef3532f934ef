"""Keeps KV blocks below the GPU: the client of a kvtier agent."""

from .client import Client, Ended, Lease
from .frames import Hello, Outcome, Place
from .region import Region, RegionNotFound

__all__ = ["Client", "Ended", "Hello", "Lease", "Outcome", "Place", "Region", "RegionNotFound"]
