"""Pods that say what engines say, all over one socket: kvd tells them apart by their topics."""

import struct
import threading
import time

import msgpack
import zmq

BLOCK = 16
SHARED = 8  # blocks that all pods of a kind have in common


def name(pod):
    return f"10.1.{pod // 250}.{pod % 250}:8000"


def tokens(kind, doc, blocks):
    """A prompt: what all of its kind begin with, then what is its own."""
    shared = [1000 * kind + i for i in range(SHARED * BLOCK)]
    return shared + [1_000_000 + 1000 * doc + i for i in range((blocks - SHARED) * BLOCK)]


class Fleet(threading.Thread):
    """`pods` pods that each store `blocks` blocks, and then a few more now and then."""

    def __init__(self, endpoint, pods, blocks=32, model="fleet"):
        super().__init__(daemon=True)
        self.socket = zmq.Context.instance().socket(zmq.PUB)
        self.socket.set(zmq.SNDHWM, 0)
        self.socket.connect(endpoint)
        self.pods, self.blocks, self.model = pods, blocks, model
        self.sequence = [0] * pods
        self.events = 0
        self.stop = threading.Event()

    def publish(self, pod, events):
        topic = f"kv@{name(pod)}@{self.model}".encode()
        payload = msgpack.packb([time.time(), events, 0])
        self.socket.send_multipart([topic, struct.pack(">Q", self.sequence[pod]), payload])
        self.sequence[pod] += 1
        self.events += len(events)

    def store(self, pod, doc, blocks, medium="GPU"):
        prompt = tokens(pod % 4, doc, blocks)
        hashes = [hash((pod % 4, None if i < SHARED else doc, i)) & (2**63 - 1) for i in range(blocks)]
        event = ["BlockStored", hashes, None, prompt, BLOCK, None, medium]
        self.publish(pod, [event])

    def fill(self):
        for pod in range(self.pods):
            # Not alike, so that fills differ.
            self.store(pod, pod, self.blocks - pod % 24)
            if pod % 3 == 0:
                self.store(pod, pod, SHARED + 4, "CPU")

    def run(self):
        """About a thousand batches a second, round and round."""
        doc = 10_000
        while not self.stop.is_set():
            for pod in range(0, self.pods, 5):
                self.store((pod + doc) % self.pods, doc, SHARED + 2)
            doc += 1
            time.sleep(0.1)
