"""Has kvd plan where conversations are prefilled and decoded, and Dynamo's mockers do it. README.md says what must hold.

Started by `run` in this directory, with the Python that has Dynamo.
"""

import argparse
import asyncio
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from dynamo_pods import BLOCK, HOST, MODEL, PATIENCE, TOKEN_BYTES, Cluster, Front, Pod, cached_tokens, fail, post, wait_for

CONVERSATIONS = 4
TURNS = 4


def check(what, seen, wanted):
    if seen != wanted:
        fail(f"{what}: {seen!r}, not {wanted!r}")


class Kvd:
    def __init__(self, args):
        config = args.dir / "kvd.toml"
        config.write_text(f'[[transfers.model]]\nname = "{MODEL}"\nbytes_per_token = {TOKEN_BYTES}\n')
        command = [args.kvd, "serve", "--config", config, "--grpc-listen", f"{HOST}:0", "--http-listen", f"{HOST}:0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=open(args.dir / "kvd.log", "wb"), text=True)
        line = self.process.stdout.readline()
        found = re.search(r"grpc=(\S+) http=(\S+)", line) or fail(f"kvd says {line!r}, see {args.dir}/kvd.log")
        self.url = f"http://{found[2]}"

    def ask(self, path, body):
        status, answer = post(self.url + path, body)
        if status != 200:
            fail(f"{path}: {status} {answer}")
        return answer

    def register(self, pod):
        self.ask("/register", {
            "endpoint": f"tcp://{HOST}:{pod.events}", "replay_endpoint": f"tcp://{HOST}:{pod.replay}", "type": "vLLM",
            "modelname": MODEL, "instance_id": pod.name, "block_size": BLOCK, "dp_rank": 0,
        })

    def cached(self, pod, tokens):
        """Tokens of the prompt that the pod would find, as kvd has it."""
        answer = self.ask("/query", {"model": MODEL, "block_size": BLOCK, "token_ids": tokens})
        instances = next(iter(answer.values()), {})
        return instances.get(pod.name, {}).get("cached_tokens", 0)

    def metric(self, name):
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}[{{ ]", line))


class Caller:
    """Who takes care of requests: asks kvd for a plan, has it done, and reports."""

    def __init__(self, kvd, front, pods):
        self.kvd, self.front = kvd, front
        self.pods = {pod.name: pod for pod in pods}
        # Tokens that are being computed for this caller, by pod.
        self.waiting = {pod.name: 0 for pod in pods}
        self.lock = threading.Lock()

    def plan(self, request, tokens):
        """Decode pods say that much waits there, so that computing there is not worth it."""
        def pod(p):
            does = {"can_decode": True} if p.decode else {"can_prefill": True, "wire": {"bootstrap": f"{HOST}:{p.bootstrap}"}}
            waits = 400_000 if p.decode else self.waiting[p.name]
            return {"instance_id": p.name, "compat_class": "mocker", "load": {"waiting_tokens": str(waits)}, **does}

        return self.kvd.ask("/v1/transfers", {
            "request_id": request, "model": MODEL, "purpose": "TRANSFER_PURPOSE_PREFILL_DECODE", "block_size": BLOCK,
            "prompt": {"tokens": {"ids": tokens}}, "connector": "TRANSFER_CONNECTOR_SGLANG",
            "pods": [pod(p) for p in self.pods.values()],
        })

    def chosen(self, plan):
        choice = plan["transfer"]["choice"]
        check("decision", choice["decision"], "TRANSFER_DECISION_DISAGG")
        return [self.pods[choice[role]["instance_id"]] for role in ("prefill", "decode")]

    def report(self, plan, phase, **more):
        transfer = plan["transfer"]
        body = {"attempt": transfer["attempt"], "phase": f"TRANSFER_PHASE_{phase}", "plan_token": plan["plan_token"], **more}
        return self.kvd.ask(f"/v1/transfers/{transfer['transfer_id']}/report", body)

    def serve(self, request, tokens):
        """One request; what kvd planned for it, and what of the prompt each pod held before."""
        with self.lock:
            held = {name: self.kvd.cached(pod, tokens) for name, pod in self.pods.items()}
            plan = self.plan(request, tokens)
            prefill, decode = self.chosen(plan)
            missing = len(tokens) - held[prefill.name]
            self.waiting[prefill.name] += missing
        self.report(plan, "PREFILL_STARTED")
        # Both legs run at once: the pods meet by themselves.
        self.report(plan, "PULL_STARTED")
        status, answer = self.front.complete(tokens, prefill, decode)
        if status != 200:
            fail(f"{request} on {prefill.name} and {decode.name}: {status} {answer}")
        with self.lock:
            self.waiting[prefill.name] -= missing
        worked = {"prefill_worker_id": prefill.number, "decode_worker_id": decode.number}
        check("who worked", answer["nvext"]["worker_id"], worked)
        done = self.report(plan, "DONE", prefill_ms=int(answer["nvext"]["timing"]["prefill_time_ms"]), prefill_tokens=str(missing))
        check("state", done["transfer"]["state"], "TRANSFER_STATE_DONE")
        return plan, held


def conversations(caller):
    """Turns of conversations, whose prompts grow, side by side. What each plan says to move is compared with what the pods hold."""
    rng = random.Random(7)
    prompts = [[rng.randrange(3, 1000) for _ in range(2000)] for _ in range(CONVERSATIONS)]
    used, moved = set(), 0
    for turn in range(TURNS):
        with ThreadPoolExecutor(CONVERSATIONS) as side_by_side:
            names = [f"conversation-{number}-{turn}" for number in range(CONVERSATIONS)]
            served = list(side_by_side.map(caller.serve, names, prompts))
        for tokens, (plan, held) in zip(prompts, served):
            prefill, decode = caller.chosen(plan)
            most = max(held[name] for name, pod in caller.pods.items() if not pod.decode)
            check("prefix on the prefill pod", held[prefill.name], most)
            [leg] = plan["transfer"]["choice"]["legs"]
            check("tokens to move", int(leg["tokens"]), len(tokens) - held[decode.name])
            check("bytes to move", int(leg["bytes"]), int(leg["tokens"]) * TOKEN_BYTES)
            used |= {prefill.name}
            moved += int(leg["tokens"])
            # At least the last token is always computed.
            whole = (len(tokens) - 1) // BLOCK * BLOCK
            wait_for("what was prefilled to be announced", lambda: caller.kvd.cached(prefill, tokens) >= whole)
            tokens += [rng.randrange(3, 1000) for _ in range(rng.randrange(20, 200))]
    check("prefill pods used", len(used), 2)
    print(f"  ok  {CONVERSATIONS * TURNS} requests planned, prefilled, handed over and done; {moved} tokens to move")
    return prompts


def counts(cluster, caller, prompts):
    """What kvd says that each prefill pod would find, beside what that pod finds. Decode pods announce nothing."""
    pods = [pod for pod in caller.pods.values() if not pod.decode]
    questions = [(pod, tokens[: len(tokens) - cut]) for tokens in prompts for pod in pods for cut in (150, 0)]
    # One by one: whoever is asked holds the prompt afterwards.
    pairs = []
    for pod, tokens in questions:
        predicted = caller.kvd.cached(pod, tokens)
        [found] = asyncio.run(cached_tokens(cluster, [(pod, tokens)]))
        pairs.append((pod.name, len(tokens), predicted, found))
        time.sleep(0.1)
    check("counts that differ (pod, tokens, kvd's, the pod's)", [p for p in pairs if p[2] != p[3]], [])
    print(f"  ok  {len(pairs)} counts of cached tokens, {sum(p[3] > 0 for p in pairs)} above 0, as the pods themselves report them")


def killed(caller, tokens):
    """The prefill pod dies in the middle: the caller says so, another takes over."""
    plan = caller.plan("killed", tokens)
    prefill, decode = caller.chosen(plan)
    caller.report(plan, "PREFILL_STARTED")
    caller.report(plan, "PULL_STARTED")
    threading.Timer(0.5, prefill.kill).start()
    status, answer = caller.front.complete(tokens, prefill, decode)
    if status == 200:
        fail(f"a request whose prefill pod was killed was answered: {answer}")
    again = caller.report(plan, "FAILED", cause="source_gone", replan=True)["replan"]
    second, decode = caller.chosen(again)
    if second is prefill:
        fail("the new plan prefills on the pod that died")
    status, answer = caller.front.complete(tokens, second, decode)
    check("status of the second attempt", status, 200)
    done = caller.report(again, "DONE")["transfer"]
    check("state and attempt", (done["state"], done["attempt"]), ("TRANSFER_STATE_DONE", 2))
    print(f"  ok  {prefill.name} was killed in the middle of a prefill: {second.name} took over")


def main():
    parser = argparse.ArgumentParser()
    for option in ("--kvd", "--dir"):
        parser.add_argument(option, type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.dir = args.dir / "run"
    shutil.rmtree(args.dir, ignore_errors=True)
    args.dir.mkdir(parents=True)
    # Dynamo's runtime in this process is as talkative as in the others; what Python says goes where its print does.
    os.dup2(os.open(args.dir / "drive.log", os.O_CREAT | os.O_WRONLY), sys.stderr.fileno())
    sys.stderr = sys.stdout
    cluster = Cluster(args.dir)
    kvd = None
    try:
        pods = [Pod(cluster, f"{kind}-{n}", kind == "decode", 1) for kind in ("prefill", "decode") for n in (0, 1)]
        front = Front(cluster)
        kvd = Kvd(args)
        for pod in pods:
            kvd.register(pod)
        caller = Caller(kvd, front, pods)
        prompts = conversations(caller)
        counts(cluster, caller, prompts)
        rng = random.Random(11)
        killed(caller, [rng.randrange(3, 1000) for _ in range(30_000)])
        for name in ("kvd_link_inflight_bytes", "kvd_pinned_bytes"):
            wait_for(f"{name} to be 0", lambda: kvd.metric(name) == 0)
        print("  ok  nothing is reserved any more")
    finally:
        cluster.stop()
        if kvd:
            kvd.process.terminate()
            kvd.process.wait()


if __name__ == "__main__":
    main()
