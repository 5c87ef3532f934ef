"""How much of a prompt does each candidate already hold? Asks one or several replicas of kvd.

>>> kvd = Replicas(Settings(["kvd-headless:50051"]))                     # doctest: +SKIP
>>> answer = kvd.score("llama", tokens=[1, 2, 3], candidates=["10.0.0.1:8000"])   # doctest: +SKIP
>>> answer.origin, answer.scores.endpoints[0].cached_tokens              # doctest: +SKIP
"""

from kvd_scorer._rpc.kv_pb2 import (
    EndpointScore,
    RecordRoutingRequest,
    RoutedEndpoint,
    ScoreRequest,
    ScoreResponse,
    Tier,
)
from kvd_scorer.match_info import MatchInfo, match_infos
from kvd_scorer.replicas import Answer, Origin, Replicas, Settings, Stats

__all__ = [
    "Answer",
    "EndpointScore",
    "MatchInfo",
    "Origin",
    "RecordRoutingRequest",
    "Replicas",
    "RoutedEndpoint",
    "ScoreRequest",
    "ScoreResponse",
    "Settings",
    "Stats",
    "Tier",
    "match_infos",
]
