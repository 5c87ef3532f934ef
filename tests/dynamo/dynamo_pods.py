"""Pods of Dynamo's mocker: two that prefill, two that decode, and a front that sends requests where it is told.

Every mocker is a process of its own, so that one can be killed. What they find each other by is a folder of files.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from dynamo.runtime import DistributedRuntime

MODEL = "m"
BLOCK = 16
TOKEN_BYTES = 131_072
HOST = "127.0.0.1"
PATIENCE = 60


def fail(text):
    raise SystemExit(f"FAILED: {text}")


def free_port():
    with socket.socket() as s:
        s.bind((HOST, 0))
        return s.getsockname()[1]


def post(url, body, timeout=PATIENCE):
    """The status and the answer; 0 where there is none."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)


def wait_for(what, look):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    fail(f"waited {PATIENCE} s for {what}")


def make_model(folder):
    """A tokenizer of 1,000 words and the shape of Llama-3 8B: all that a mocker reads of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"t{i}": i for i in range(3, 1000)}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 1000, "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages[0]['content'] }}"}
    for name, content in [("tokenizer", tokenizer), ("config", config), ("tokenizer_config", names), ("generation_config", {"eos_token_id": 2})]:
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


class Cluster:
    """What all processes share."""

    def __init__(self, folder):
        self.store = folder / "found"
        self.model = make_model(folder / "model")
        self.folder = folder
        self.processes = []
        # Two mockers on one machine are no strangers to the Internet: nothing is to be looked up there.
        self.environment = os.environ | {"HF_HUB_OFFLINE": "1", "DYN_FILE_KV": str(self.store), "DYN_LOG": "info"}
        os.environ["DYN_FILE_KV"] = str(self.store)

    def start(self, name, module, *arguments):
        command = [sys.executable, "-m", f"dynamo.{module}", "--discovery-backend", "file", "--request-plane", "tcp",
                   "--event-plane", "zmq", "--model-path", self.model, "--model-name", MODEL, *arguments]
        log = open(self.folder / f"{name}.log", "wb")
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self.environment)
        self.processes.append(process)
        return process

    def cards(self, component):
        """Who says to be there: what it says, by its number."""
        found = {}
        for file in (self.store / "v1" / "mdc").glob(f"*%2F{component}%2F*"):
            number = re.search(r'"instance_id":\s*(\d+)', file.read_text())
            if number:
                found[int(number[1])] = file
        return found

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()


class Pod:
    """A mocker. `decode` says which of the two kinds."""

    def __init__(self, cluster, name, decode, speed):
        self.name, self.decode = name, decode
        self.component = "backend" if decode else "prefill"
        self.events, self.replay, self.bootstrap = free_port(), free_port(), free_port()
        before = cluster.cards(self.component)
        arguments = ["--disaggregation-mode", "decode" if decode else "prefill", "--block-size", BLOCK,
                     "--num-gpu-blocks-override", 4096, "--kv-bytes-per-token", TOKEN_BYTES, "--kv-transfer-bandwidth", 10,
                     "--speedup-ratio", speed, "--zmq-kv-events-ports", self.events, "--zmq-replay-ports", self.replay]
        if not decode:
            arguments += ["--bootstrap-ports", self.bootstrap]
        self.process = cluster.start(name, "mocker", *map(str, arguments))
        new = wait_for(f"{name} to be there", lambda: cluster.cards(self.component).keys() - before.keys())
        [self.number] = new

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Front:
    """Where requests go in. It sends each to the pods that the request names, and brings the two legs together."""

    def __init__(self, cluster):
        self.url = f"http://{HOST}:{free_port()}"
        host, port = self.url[len("http://"):].split(":")
        cluster.start("front", "frontend", "--http-host", host, "--http-port", port, "--router-mode", "direct", "--enforce-disagg")
        wait_for("the front to know the model", self.knows_model)

    def knows_model(self):
        try:
            with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5) as answer:
                return bool(json.load(answer)["data"])
        except OSError:
            return False

    def complete(self, tokens, prefill, decode):
        """The status, and what came of `tokens`, prefilled on one pod and decoded on the other."""
        where = {"prefill_worker_id": prefill.number, "decode_worker_id": decode.number, "extra_fields": ["worker_id", "timing"]}
        body = {"model": MODEL, "prompt": tokens, "max_tokens": 4, "nvext": where}
        return post(f"{self.url}/v1/completions", body)


async def cached_tokens(cluster, questions):
    """What each pod itself finds of a prompt: [(pod, tokens)] to counts. They hold the prompts afterwards."""
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp", event_plane="zmq")
    counts = []
    for pod, tokens in questions:
        client = await runtime.endpoint(f"dynamo.{pod.component}.generate").client()
        await client.wait_for_instances()
        request = {
            "model": MODEL, "token_ids": tokens, "stop_conditions": {"max_tokens": 1, "ignore_eos": True},
            "sampling_options": {}, "output_options": {}, "eos_token_ids": [2], "annotations": [],
        }
        count = None
        async for part in await client.direct(request, pod.number, annotated=False):
            usage = part.get("completion_usage") or {}
            details = usage.get("prompt_tokens_details") or {}
            count = details.get("cached_tokens") if count is None else count
        counts.append(count)
    runtime.shutdown()
    return counts
