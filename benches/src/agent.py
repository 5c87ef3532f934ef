"""One pass of `kvd-benches agent` from Python: what a scheduler step costs that asks an agent.

Says one line of JSON: nanoseconds of each call, and answers checked and wrong.
"""

import gc
import json
import sys
import time

from kvtier import Client, Hello, Region
from kvtier.frames import FEATURE_LEASES

socket, rounds, keys_per_lookup, block_bytes = sys.argv[1], *map(int, sys.argv[2:5])
hello = Hello(
    model="bench", fingerprint=bytes(16), block_bytes=block_bytes, groups=(16,), features=FEATURE_LEASES
)
region, memory = Region.make(64, block_bytes)
client = Client(socket, hello, region, patience=5.0)
if not client.connect(30):
    sys.exit("no agent")


def key(number: int) -> bytes:
    """As in agent.rs."""
    return number.to_bytes(8, "little") * 4 + bytes(4)


checked = wrong = 0
took: dict[str, list[int]] = {"lookup": [], "lease": [], "submit": [], "poll": []}


def note(right: bool) -> None:
    """Takes down one answer."""
    global checked, wrong
    checked += 1
    wrong += not right


# As engines do it; a collection in the middle would be the collector's time.
gc.freeze()
gc.disable()
clock = time.perf_counter_ns
# The agent holds blocks 0 to 63. All but every sixteenth key of a lookup are not there.
batches = [
    [key(number % 64 if number % 16 == 0 else 1_000_000 + at * keys_per_lookup + number) for number in range(keys_per_lookup)]
    for at in range(16)
]
wanted = [number % 16 == 0 for number in range(keys_per_lookup)]
for at in range(rounds + rounds // 10):
    batch = batches[at % 16]
    began = clock()
    places = client.lookup(b"".join(batch))
    ended = clock()
    # The first tenth is not counted.
    if at >= rounds // 10:
        took["lookup"].append(ended - began)
        note([place != 0 for place in places] == wanted)

into = bytearray(16)
for at in range(rounds):
    name = key(at % 64)
    began = clock()
    (lease,) = client.lease(name)
    ended = clock()
    took["lease"].append(ended - began)
    right = lease is not None and client.read(lease, into) and into[:8] == (at % 64).to_bytes(8, "little")
    note(right)
    if lease is not None:
        client.release([lease])

packed = [slot.to_bytes(4, "little") * 1 for slot in range(64)]
for at in range(rounds // 4):
    slot = at % 64
    name = key(slot)
    began = clock()
    job = client.load(name, packed[slot])
    ended = clock()
    took["submit"].append(ended - began)
    client.wait(5)
    began = clock()
    ends = client.poll()
    while not ends:
        client.wait(5)
        began = clock()
        ends = client.poll()
    took["poll"].append(clock() - began)
    at_slot = memory[slot * block_bytes : slot * block_bytes + 8]
    note([end.job for end in ends] == [job] and ends[0].ok and at_slot == slot.to_bytes(8, "little"))

client.close()
print(json.dumps({"took": took, "checked": checked, "wrong": wrong}))
