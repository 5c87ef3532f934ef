"""Against a real kvd that is guarded. KVD_GUARDED names its address and the files of a CA, a certificate, its key and a
token, as address;ca;certificate;key;token; the certificates are for kvd.test."""

import os
import time
import unittest
from pathlib import Path
from typing import Any

import grpc

from kvd_scorer import Answer, Origin, Replicas, Settings

GUARDED = [part for part in os.environ.get("KVD_GUARDED", "").split(";") if part]


@unittest.skipUnless(GUARDED, "KVD_GUARDED names no kvd that is guarded")
class GuardedTest(unittest.TestCase):
    def ask(self, until: Origin, **more: Any) -> Answer:
        """Asks until an answer comes from there, or for a while."""
        address, ca, certificate, key, _ = GUARDED
        ca, key, certificate = (Path(p).read_bytes() for p in (ca, key, certificate))
        settings = {"credentials": grpc.ssl_channel_credentials(ca, key, certificate), "server_name": "kvd.test"}
        began = time.monotonic()
        with Replicas(Settings([address], deadline=2.0, **{**settings, **more})) as kvd:
            while (answer := kvd.score("m", range(32), ["a"])).origin is not until:
                if time.monotonic() - began > 30:
                    break
            return answer

    def test_who_shows_everything_has_an_answer(self) -> None:
        token = Path(GUARDED[4]).read_text().strip()
        self.assertIs(self.ask(Origin.KVD, token=lambda: token).origin, Origin.KVD)

    def test_who_shows_no_token_is_told_so(self) -> None:
        answer = self.ask(Origin.GUESS)
        self.assertIs(answer.origin, Origin.GUESS)
        self.assertIn("UNAUTHENTICATED", answer.why)

    def test_who_expects_another_name_has_none(self) -> None:
        token = Path(GUARDED[4]).read_text().strip()
        answer = self.ask(Origin.GUESS, token=lambda: token, server_name="other.test")
        self.assertIs(answer.origin, Origin.GUESS)


if __name__ == "__main__":
    unittest.main()
