"""Sends conversations to two real engines and compares what kvd predicted with what they report.

Started by `run` in this directory, with the Python that has vLLM.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from tokenizers import Tokenizer, models, pre_tokenizers

MODEL = "tiny"
BLOCK = 32
VOCABULARY = 1024


def free_ports(n):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def call(address, path, body=None, timeout=120):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://{address}{path}", data, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            text = answer.read()
            return json.loads(text) if text.strip() else None
    except urllib.error.HTTPError as error:
        sys.exit(f"{path}: {error.code} {error.read().decode()[:500]}")


def wait_for(what, ready, seconds):
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            sys.exit(f"waited {seconds} s for {what}")
        time.sleep(0.05)


def make_model(directory):
    """A model of two layers, whose weights are made up at start."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(vocab={f"t{i}": i for i in range(VOCABULARY)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t2"})
    )
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 0,
        "eos_token_id": 2, "pad_token_id": 0, "torch_dtype": "bfloat16", "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "hidden_size": 128, "intermediate_size": 256,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


class Engine:
    def __init__(self, name, model, directory, patience):
        self.name, self.model, self.patience = name, model, patience
        self.log = open(directory / f"{name}.log", "ab")
        port, self.events, self.replay = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        self.start()

    def start(self):
        events = {
            "enable_kv_cache_events": True, "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events}", "replay_endpoint": f"tcp://*:{self.replay}",
        }
        host, port = self.address.split(":")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model),
                "--served-model-name", MODEL, "--host", host, "--port", port,
                "--load-format", "dummy", "--enforce-eager", "--dtype", "bfloat16",
                "--max-num-seqs", "8", "--max-model-len", "1536", "--block-size", str(BLOCK),
                # Few blocks, so that some are evicted.
                "--num-gpu-blocks-override", "96", "--enable-prefix-caching",
                "--enable-prompt-tokens-details", "--kv-events-config", json.dumps(events),
            ],
            env={
                **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
                "VLLM_CPU_KVCACHE_SPACE": "1",
            },
            stdout=self.log, stderr=self.log, start_new_session=True,
        )

    def wait(self):
        def healthy():
            if self.process.poll() is not None:
                sys.exit(f"{self.name} ended early, see {self.log.name}")
            try:
                urllib.request.urlopen(f"http://{self.address}/health", timeout=1)
                return True
            except OSError:
                return False

        wait_for(f"{self.name} to start, see {self.log.name}", healthy, self.patience)

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                pass
        try:
            # Whatever it started.
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def complete(self, prompt, tokens):
        """Output tokens and what the engine found in its cache."""
        answer = call(
            self.address, "/v1/completions",
            {
                "model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
                "ignore_eos": True, "return_token_ids": True,
            },
        )
        usage = answer["usage"]
        details = usage.get("prompt_tokens_details") or {}
        return answer["choices"][0]["token_ids"], details.get("cached_tokens") or 0, usage["prompt_tokens"]


class Kvd:
    def __init__(self, binary, directory):
        self.binary, self.data = binary, directory / "kvd-data"
        self.log = open(directory / "kvd.log", "ab")
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [
                self.binary, "serve", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                "--data-dir", str(self.data),
            ],
            stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        words = dict(w.split("=", 1) for w in self.process.stdout.readline().split() if "=" in w)
        self.http, self.grpc = words["http"], words["grpc"]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def register(self, engine):
        body = {
            "type": "vLLM", "modelname": MODEL, "instance_id": engine.address, "block_size": BLOCK,
            "dp_rank": 0, "endpoint": f"tcp://127.0.0.1:{engine.events}",
            "replay_endpoint": f"tcp://127.0.0.1:{engine.replay}",
        }
        call(self.http, "/register", body)

    def quiet(self):
        """Waits until every batch that is out is applied: engines publish within a tenth of a second."""

        def still():
            return all(
                p["staleness_ms"] == 0 and p["queued"] == 0 and p["state"] != "replaying"
                and (p["silent_ms"] is None or p["silent_ms"] > 300)
                for p in call(self.http, "/publishers")
            )

        wait_for("kvd to have applied everything", still, 60)

    def complete(self):
        self.quiet()
        wait_for(
            "kvd to know everything that engines did",
            lambda: all(p["complete"] for p in call(self.http, "/publishers")), 60,
        )

    def predict(self, request_id, prompt):
        body = {"model": MODEL, "token_ids": prompt, "request_id": request_id}
        answer = call(self.http, "/query", body).get("default", {})
        return {instance: found["cached_tokens"] for instance, found in answer.items()}

    def report(self, request_id, engine, cached, prompt_tokens):
        body = {
            "request_id": request_id, "model": MODEL, "instance_id": engine.address,
            "cached_tokens": cached, "prompt_tokens": prompt_tokens,
        }
        return call(self.http, "/report_outcome", body)["verdict"]


class Traffic:
    def __init__(self, kvd, engines):
        self.kvd, self.engines, self.random = kvd, engines, random.Random(7)
        self.system = self.tokens(80)
        self.talks, self.requests, self.wrong = [], 0, []

    def tokens(self, n):
        return [self.random.randrange(3, VOCABULARY) for _ in range(n)]

    def next_prompt(self):
        """A new conversation, or the next turn of one."""
        if not self.talks or self.random.random() < 0.3:
            self.talks.append(self.system + self.tokens(self.random.randrange(20, 200)))
        talk = self.random.randrange(len(self.talks))
        if len(self.talks[talk]) > 1200:
            self.talks[talk] = self.system + self.tokens(50)
        else:
            self.talks[talk] = self.talks[talk] + self.tokens(self.random.randrange(5, 90))
        return talk, self.talks[talk]

    def one(self, engine=None, expected=True):
        """Predicts, asks, compares and reports. Returns whether the prediction was exact."""
        talk, prompt = self.next_prompt()
        self.requests += 1
        request_id = f"r{self.requests}"
        self.kvd.quiet()
        predicted = self.kvd.predict(request_id, prompt)
        # Mostly the best one, as a scheduler would.
        best = max(self.engines, key=lambda e: predicted.get(e.address, 0))
        engine = engine or (best if self.random.random() < 0.7 else self.random.choice(self.engines))
        output, cached, counted = engine.complete(prompt, self.random.randrange(1, 20))
        self.talks[talk] = prompt + output
        said = predicted.get(engine.address)
        verdict = self.kvd.report(request_id, engine, cached, counted)
        exact = said == cached
        if not exact:
            text = f"{request_id} on {engine.name}: {len(prompt)} tokens, predicted {said}, reported {cached}, {verdict}"
            print(f"    {text}")
            if expected:
                self.wrong.append(text)
        return exact

    def sequential(self, n):
        exact = sum(self.one() for _ in range(n))
        print(f"  {exact} of {n} exact")

    def unseen(self, n):
        """Requests that kvd does not hear of until it is back."""
        for _ in range(n):
            talk, prompt = self.next_prompt()
            output, _, _ = self.random.choice(self.engines).complete(prompt, 8)
            self.talks[talk] = prompt + output

    def side_by_side(self, n):
        prompts = [self.next_prompt()[1] for _ in range(n)]
        names = [f"side-{self.requests + i}" for i in range(n)]
        self.requests += n

        def run(name, prompt, engine):
            self.kvd.predict(name, prompt)
            _, cached, counted = engine.complete(prompt, 8)
            return self.kvd.report(name, engine, cached, counted)

        with concurrent.futures.ThreadPoolExecutor(n) as pool:
            engines = [self.random.choice(self.engines) for _ in range(n)]
            verdicts = list(pool.map(run, names, prompts, engines))
        counts = {v: verdicts.count(v) for v in sorted(set(verdicts))}
        print("  " + ", ".join(f"{n} {v}" for v, n in counts.items()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kvd", required=True)
    parser.add_argument("--kvctl", required=True)
    parser.add_argument("--dir", required=True, type=pathlib.Path)
    args = parser.parse_args()
    # Whatever ends this, the engines end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    run_dir = args.dir / time.strftime("run-%Y%m%d-%H%M%S")
    run_dir.mkdir(parents=True)
    patience = int(os.environ.get("KVD_ENGINE_START", "400"))
    model = make_model(args.dir / "model")
    started = time.monotonic()

    def say(what):
        print(f"[{time.monotonic() - started:4.0f} s] {what}", flush=True)

    engines, kvd = [], None
    try:
        say("starting two engines")
        for name in ("engine-a", "engine-b"):
            engines.append(Engine(name, model, run_dir, patience))
        for engine in engines:
            engine.wait()
        kvd = Kvd(args.kvd, run_dir)
        for engine in engines:
            kvd.register(engine)
        traffic = Traffic(kvd, engines)
        say("conversations")
        traffic.sequential(40)
        say("kvd is killed, 10 requests run without it, kvd is started again")
        kvd.kill()
        traffic.unseen(10)
        kvd.start()
        kvd.complete()
        traffic.sequential(30)
        say("engine-a is started anew")
        engines[0].stop()
        engines[0].start()
        engines[0].wait()
        # Nothing says that it restarted before its first batch does.
        traffic.one(engines[0], expected=False)
        kvd.complete()
        traffic.sequential(30)
        say("requests side by side")
        for _ in range(4):
            traffic.side_by_side(8)
        time.sleep(2)
        say("kvctl doctor")
        doctor = subprocess.run(
            [args.kvctl, "--grpc", kvd.grpc, "doctor"], capture_output=True, text=True
        )
        print("".join(f"  {line}\n" for line in (doctor.stdout + doctor.stderr).splitlines()), end="")
        outcomes = {}
        for publisher in call(kvd.http, "/publishers"):
            for verdict, n in publisher["outcomes"].items():
                outcomes[verdict] = outcomes.get(verdict, 0) + n
        say("reported outcomes: " + ", ".join(f"{n} {v}" for v, n in outcomes.items() if n))
        bad = outcomes.get("too_low", 0) + outcomes.get("too_high", 0)
        if traffic.wrong or bad or doctor.returncode:
            sys.exit(f"{len(traffic.wrong)} predictions were wrong, {bad} outcomes are errors; logs: {run_dir}")
        say(f"all of {traffic.requests} requests as they should be")
    finally:
        if kvd:
            kvd.kill()
        for engine in engines:
            engine.stop()


if __name__ == "__main__":
    main()
