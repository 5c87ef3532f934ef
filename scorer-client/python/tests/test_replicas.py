"""Against real replicas of kvd. KVD_REPLICAS names them as address,pid;address,pid;... They hold, on pod
10.0.0.1:8000 and of model m, the first 4 blocks of 16 tokens of the prompt 0, 1, 2, ..."""

import os
import signal
import time
import unittest
from collections.abc import Callable

from kvd_scorer import Origin, RecordRoutingRequest, Replicas, RoutedEndpoint, Settings
from kvd_scorer.recall import tokens_le

REPLICAS = [r.split(",") for r in os.environ.get("KVD_REPLICAS", "").split(";") if r]
POD = "10.0.0.1:8000"


@unittest.skipUnless(REPLICAS, "KVD_REPLICAS names no replicas of kvd")
class RealReplicasTest(unittest.TestCase):
    def setUp(self) -> None:
        # What a loaded machine keeps.
        self.kvd = Replicas(Settings([a for a, _ in REPLICAS], deadline=2.0, hedge_after=0.02))
        self.addCleanup(self.kvd.close)
        self.until(lambda: self.kvd.score("m", range(80), [POD]).origin is Origin.KVD)

    def until(self, ready: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not ready():
            self.assertLess(time.monotonic() - began, 60)
            time.sleep(0.01)

    def ask(self) -> Origin:
        answer = self.kvd.score("m", range(80), [POD])
        [endpoint] = answer.scores.endpoints
        if answer.origin is Origin.GUESS:
            self.assertTrue(answer.scores.degraded)
        else:
            self.assertEqual((endpoint.instance_id, endpoint.cached_tokens), (POD, 64))
        return answer.origin

    def test_answers_are_exact(self) -> None:
        self.assertEqual({self.ask() for _ in range(20)}, {Origin.KVD})
        unknown = self.kvd.score("another model", range(80))
        self.assertEqual((unknown.origin, unknown.scores.unknown_model), (Origin.KVD, True))

    def test_a_question_that_makes_no_sense_is_answered_and_blames_nobody(self) -> None:
        answer = self.kvd.score("", [1], ["a"])
        self.assertEqual((answer.origin, len(answer.scores.endpoints)), (Origin.GUESS, 1))
        self.assertIn("INVALID_ARGUMENT", answer.why)
        self.assertEqual(self.kvd.stats().silent, [])

    def test_a_stalled_replica_is_not_noticed_left_alone_and_asked_again(self) -> None:
        address, pid = REPLICAS[0]
        os.kill(int(pid), signal.SIGSTOP)
        try:
            began = time.monotonic()
            while self.kvd.stats().silent != [address]:
                self.assertIs(self.ask(), Origin.KVD)
                self.assertLess(time.monotonic() - began, 60)
            hedges = self.kvd.stats().hedges
            self.assertGreater(hedges, 0)
        finally:
            os.kill(int(pid), signal.SIGCONT)
        self.until(lambda: self.kvd.stats().silent == [])
        self.assertIs(self.ask(), Origin.KVD)

    def test_a_routing_is_told_and_counts(self) -> None:
        call = RecordRoutingRequest(
            request_id="python", model="m", endpoints=[RoutedEndpoint(instance_id=POD)], ttl_ms=60_000
        )
        call.prompt.token_ids_le = tokens_le(range(1000, 1064))
        self.assertTrue(self.kvd.record_routing(call))
        self.until(lambda: self.kvd.stats().routings_told == 1)


if __name__ == "__main__":
    unittest.main()
