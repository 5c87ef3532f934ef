"""What decides, without a server."""

import unittest

from kvd_scorer import RecordRoutingRequest, Replicas, RoutedEndpoint, ScoreRequest, ScoreResponse, Settings
from kvd_scorer import Origin, match_infos
from kvd_scorer._rpc import kv_pb2 as kv
from kvd_scorer.breaker import Breaker
from kvd_scorer.recall import Recall, tokens_le


def question(tokens: range, candidates: tuple[str, ...] = ("a", "b"), **more: object) -> ScoreRequest:
    request = ScoreRequest(model="m", candidates=candidates, **more)
    request.prompt.token_ids_le = tokens_le(tokens)
    return request


def routing(tokens: range, instance: str, rank: int = 0) -> RecordRoutingRequest:
    call = RecordRoutingRequest(model="m", endpoints=[RoutedEndpoint(instance_id=instance, dp_rank=rank)])
    call.prompt.token_ids_le = tokens_le(tokens)
    return call


class BreakerTest(unittest.TestCase):
    def test_it_opens_after_failures_in_a_row_and_wants_a_probe_after_the_pause(self) -> None:
        b = Breaker(failures=3, pause=0.1)
        b.failed(0), b.failed(0), b.answered(), b.failed(0), b.failed(0)
        self.assertFalse(b.is_open)
        b.failed(0)
        self.assertTrue(b.is_open)
        self.assertEqual([b.wants_probe(0.09), b.wants_probe(0.1)], [False, True])

    def test_failed_probes_double_the_pause_and_after_a_good_one_one_failure_is_enough(self) -> None:
        b = Breaker(failures=1, pause=0.1, longest=0.3)
        b.failed(0)
        b.failed(0.05)
        b.failed(0.1)
        self.assertEqual([b.wants_probe(0.29), b.wants_probe(0.31)], [False, True])
        b.probed()
        self.assertFalse(b.is_open)
        b.failed(1)
        self.assertEqual([b.wants_probe(1.29), b.wants_probe(1.31)], [False, True])


class RecallTest(unittest.TestCase):
    def test_what_was_routed_somewhere_is_taken_to_be_there(self) -> None:
        r = Recall()
        r.routed(routing(range(256), "b", 1))
        r.routed(routing(range(64), "a"))
        got = r.guess(question(range(256), ("c", "b", "a")))
        self.assertTrue(got.degraded)
        self.assertEqual(
            [(e.instance_id, e.dp_rank, e.cached_blocks, e.cached_tokens) for e in got.endpoints],
            [("c", 0, 0, 0), ("b", 1, 4, 255), ("a", 0, 1, 64)],
        )
        small = r.guess(question(range(256), ("b",), block_size=16))
        self.assertEqual((small.total_blocks, small.endpoints[0].cached_blocks), (16, 16))
        self.assertEqual(r.guess(question(range(1, 257), ("b",))).endpoints[0].cached_blocks, 0)

    def test_memory_is_bounded_and_the_root_stays(self) -> None:
        r = Recall(room=2)
        r.routed(routing(range(256), "a"))
        self.assertEqual(r.guess(question(range(256), ("a",))).endpoints[0].cached_blocks, 2)

    def test_an_answer_is_good_for_its_time(self) -> None:
        r = Recall(answers_for=10)
        r.answered(question(range(4), request_id="one"), ScoreResponse(total_blocks=7), 0)
        self.assertIsNone(r.last(question(range(5)), 1))
        self.assertIsNone(r.last(question(range(4)), 11))
        last = r.last(question(range(4), request_id="two"), 9)
        assert last is not None
        self.assertEqual(last.total_blocks, 7)


class MatchInfoTest(unittest.TestCase):
    def test_an_endpoint_has_its_own_blocks_and_tiers(self) -> None:
        scores = ScoreResponse(total_blocks=10, block_size_tokens=16)
        e = scores.endpoints.add(instance_id="a", block_size_tokens=32, cached_blocks=3, match_blocks=2)
        e.by_tier.add(tier=kv.TIER_CPU, blocks=3)
        e.speculative_blocks = 4
        [(instance, rank, info)] = match_infos(scores)
        self.assertEqual((instance, rank, info.total_blocks, info.match_blocks), ("a", 0, 5, 2))
        self.assertEqual(info.cached_by_tier, {"cpu": 3, "speculative": 4})


class NobodyTest(unittest.TestCase):
    def test_without_any_replica_there_is_an_answer(self) -> None:
        with Replicas(Settings(["127.0.0.1:1"])) as kvd:
            for _ in range(5):
                answer = kvd.score("m", range(64), ["a"])
                self.assertEqual((answer.origin, len(answer.scores.endpoints)), (Origin.GUESS, 1))
            self.assertEqual(kvd.stats().guessed, 5)

    def test_what_is_no_place_is_refused(self) -> None:
        for wrong in ["", "kvd", ":1", "kvd:99999", "kvd:x"]:
            with self.assertRaises(ValueError):
                Replicas(Settings([wrong]))


if __name__ == "__main__":
    unittest.main()
