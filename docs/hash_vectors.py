#!/usr/bin/env python3
"""The canonical hash in Python, as an example for authors of clients in other languages.

Written from docs/formats.md, on another XXH3 implementation than kvd's. Prints the test vectors
that are committed as kvproto/tests/canonical_vectors.json:

    pip install xxhash
    python3 docs/hash_vectors.py > kvproto/tests/canonical_vectors.json
"""
import json
import struct

import xxhash


def xxh3(data, seed):
    return xxhash.xxh3_64_intdigest(data, seed)


def sized(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def namespace_seed(salt, model, lora):
    """lora: a name, or None for the model itself."""
    data = b"kvd-xxh3-64/1" + sized(salt) + sized(model)
    data += b"\x00" if lora is None else b"\x01" + sized(lora)
    return xxh3(data, 0)


def local_hash(seed, tokens, keys=()):
    plain = xxh3(b"".join(struct.pack("<I", t) for t in tokens), seed)
    if not keys:
        return plain
    data = struct.pack("<Q", plain)
    for key in keys:
        if "text" in key:
            data += b"\x01" + sized(key["text"])
        elif "item" in key:
            data += b"\x02" + sized(key["item"]) + struct.pack("<q", key["offset"])
        else:
            data += b"\x03" + sized(bytes.fromhex(key["digest"]))
    return xxh3(data, seed)


def chain(seed, parent, local):
    return local if parent is None else xxh3(struct.pack("<QQ", parent, local), seed)


def block_keys(start, block_size, items, cache_salt):
    """items: (identifier, first token, tokens) in order of their first token."""
    keys = [
        {"item": name, "offset": first - start}
        for name, first, length in items
        if first < start + block_size and first + length > start
    ]
    if start == 0 and cache_salt is not None:
        keys.append({"text": cache_salt})
    return keys


def vector(case, tokens, block_size=16, salt="", model="m", lora=None, items=(), cache_salt=None, keys=None):
    """keys: extra keys of each block where they do not follow from items and cache_salt."""
    seed = namespace_seed(salt, model, lora)
    blocks, parent = [], None
    for i in range(len(tokens) // block_size):
        start = i * block_size
        of_block = keys[i] if keys else block_keys(start, block_size, items, cache_salt)
        local = local_hash(seed, tokens[start : start + block_size], of_block)
        parent = chain(seed, parent, local)
        blocks.append({"keys": of_block, "local": f"{local:016x}", "seq": f"{parent:016x}"})
    return {
        "case": case,
        "salt": salt,
        "model": model,
        "lora": lora,
        "block_size": block_size,
        "tokens": tokens,
        "cache_salt": cache_salt,
        "mm_items": [{"hash": n, "offset": o, "length": l} for n, o, l in items],
        "seed": f"{seed:016x}",
        "blocks": blocks,
    }


COUNT = list(range(1, 41))
WIDE = [0, 255, 256, 65535, 65536, 128000, 2**31, 2**32 - 1]
LONG = [i * 7919 % 150000 for i in range(130)]
IMAGE = ("img-aaaa", 4, 20)

VECTORS = [
    vector("plain, with a tail that fills no block", COUNT),
    vector("plain, blocks of 64", LONG, 64),
    vector("tokens of every width", WIDE, 4),
    vector("a block of one token", [7, 7], 1),
    vector("a real model name", COUNT, model="meta-llama/Llama-3.1-8B-Instruct"),
    vector("a model name beyond ASCII", COUNT, model="模型/größe-✓"),
    vector("an empty model name", COUNT, model=""),
    vector("lora", COUNT, lora="adapter-a"),
    vector("lora with an empty name", COUNT, lora=""),
    vector("deployment salt", COUNT, salt="w8a8"),
    vector("deployment salt, model and lora", LONG, 64, salt="w8a8", lora="adapter-ü"),
    vector("cache salt, a key of block 0", COUNT, cache_salt="tenant-a"),
    vector("empty cache salt", COUNT, cache_salt=""),
    vector("cache salt beyond ASCII, blocks of 64", LONG, 64, cache_salt="salt-ü-✓"),
    vector("an item over two blocks, negative offset in the second", COUNT, items=[IMAGE]),
    vector("an item that ends with its block", COUNT, items=[("img-aaaa", 4, 12)]),
    vector("two items in one block", COUNT, items=[("img-aaaa", 2, 3), ("img-bbbb", 9, 2)]),
    vector("an item from the root and a cache salt", COUNT, items=[("img-aaaa", 0, 17)], cache_salt="tenant-a"),
    vector("everything, blocks of 64", LONG, 64, "w8a8", "模型", "adapter-a", [("img-aaaa", 60, 10)], "tenant-a"),
    vector("a digest of prompt embeddings", COUNT, keys=[[{"digest": "00ff" * 16}], [{"digest": "ab" * 32}]]),
    vector("text and digest of the same bytes differ", COUNT, keys=[[{"text": "ab"}], [{"digest": "6162"}]]),
]

if __name__ == "__main__":
    about = (
        "Vectors of kvd-xxh3-64/1, made by docs/hash_vectors.py. Hashes are 64-bit numbers in hexadecimal. "
        "`keys` are the extra keys of a block; they follow from mm_items and cache_salt where those are given."
    )
    lines = ",\n".join(json.dumps(v, ensure_ascii=False) for v in VECTORS)
    print(f'{{"about": {json.dumps(about)},\n"vectors": [\n{lines}\n]}}')
