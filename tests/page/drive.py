"""Looks at the page in a real browser, with recorded engines and with 500 pods, and compares what it shows.

Asserts: nothing is asked of anybody but kvd, the console stays silent, panels show what the JSON says, hostile
names stay text, a token is asked for where one is needed and goes nowhere else. Times (first paint, frames) are measured and printed; they decide nothing.
"""

import argparse
import http.client
import json
import pathlib
import re
import socket
import subprocess
import sys
import time

from playwright.sync_api import sync_playwright

import guarded
from fleet import Fleet, name, tokens

LAPTOP = {"width": 1366, "height": 850}
PHONE = {"width": 390, "height": 844}
HOSTILE = '<img src=x onerror="document.title=`owned`"><script>document.title="owned"</script>'
PODS = 500
PATIENCE = 60


def fail(text):
    raise SystemExit(f"FAILED: {text}")


def check(what, seen, wanted):
    if seen != wanted:
        fail(f"{what}: {seen!r}, not {wanted!r}")
    print(f"  ok  {what}: {seen!r}"[:160])


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Kvd:
    def __init__(self, args, security=""):
        self.listen = f"tcp://127.0.0.1:{free_port()}"
        config = args.dir / "kvd.toml"
        config.write_text(f'[[listen]]\nbind = "{self.listen}"\ntype = "vLLM"\nmax_publishers = 1000\n{security}')
        command = [args.kvd, "serve", "--config", config, "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=open(args.dir / "kvd.log", "wb"), text=True)
        line = self.process.stdout.readline()
        found = re.search(r"grpc=(\S+) http=(\S+)", line) or fail(f"kvd says {line!r}, see {args.dir}/kvd.log")
        self.grpc, self.http = found.groups()
        self.args = args
        self.engines = []

    def ask(self, path, body=None):
        connection = http.client.HTTPConnection(self.http, timeout=20)
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            fail(f"{path}: {answer.status} {text[:300]!r}")
        return json.loads(text)

    def metric(self, name):
        connection = http.client.HTTPConnection(self.http, timeout=20)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}[{{ ]", line))

    def engine(self, *words):
        """Starts an engine that stays until `end`: one that goes away is forgotten."""
        command = [self.args.kvctl, "--grpc", self.grpc, "--http", self.http, *words]
        log = open(self.args.dir / "engines.log", "ab")
        self.engines.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def end(self):
        for process in [*self.engines, self.process]:
            process.kill()
            process.wait()

    def until(self, what, good):
        deadline = time.monotonic() + PATIENCE
        while not good(self.ask("/v1/overview")):
            if time.monotonic() > deadline:
                fail(f"waited too long for {what}")
            time.sleep(0.3)


class Looker:
    """A browser that takes note of everything it should not do."""

    def __init__(self, browser, kvd, size, scheme, guarded=False):
        phone = size is PHONE
        self.context = browser.new_context(viewport=size, color_scheme=scheme, is_mobile=phone, has_touch=phone,
                                           device_scale_factor=2 if phone else 1)
        self.page = self.context.new_page()
        self.kvd = kvd
        self.wrong = []
        self.requests = 0
        self.asked = []
        # A browser writes every 401 to the console itself.
        usual = "the server responded with a status of 401" if guarded else None
        self.page.on("console", lambda m: self.wrong.append(m.text)
                     if m.type in ("error", "warning") and not (usual and usual in m.text) else None)
        self.page.on("pageerror", lambda e: self.wrong.append(str(e)))
        self.page.on("request", self.request)
        self.page.goto(f"http://{kvd.http}/", wait_until="load")
        if not guarded:
            self.page.wait_for_selector("body[data-shown]", state="attached", timeout=PATIENCE * 1000)

    def request(self, request):
        self.requests += 1
        self.asked.append(request.url)
        if not request.url.startswith(f"http://{self.kvd.http}/"):
            self.wrong.append(f"asks {request.url}")

    def again(self):
        """Waits until what kvd says now is shown."""
        self.page.wait_for_timeout(900)
        self.page.evaluate("delete document.body.dataset.shown")
        self.page.wait_for_selector("body[data-shown]", state="attached", timeout=PATIENCE * 1000)

    def text(self, selector):
        return self.page.inner_text(selector).strip()

    def texts(self, selector):
        return self.page.eval_on_selector_all(selector, "all => all.map((e) => e.textContent)")

    def paint(self):
        return self.page.evaluate("""() => ({
            paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime,
            shown: performance.getEntriesByName('shown')[0]?.startTime })""")

    def end(self, what):
        check(f"{what}: errors, warnings and requests to others", self.wrong, [])
        self.context.close()


def recorded(kvd, captures):
    """Four engines that got the same prompt, as in the demo, and one with a name that should stay text."""
    pods = {"127.0.0.1:9001": ("vllm032-hash-sha256-seed0", 32), "127.0.0.1:9003": ("vllm032-block64", 64),
            "127.0.0.1:9004": ("vllm032-block128", 128), "127.0.0.1:9005": ("vllm032-sched-offload-self-chunk1", 16)}
    for instance, (file, block) in pods.items():
        model = "demo-offload" if instance.endswith("5") else "demo"
        kvd.engine("replay", captures / f"{file}.kvcap", "--register", "--model", model, "--instance", instance,
                   "--type", "vLLM", "--block-size", str(block), "--hold")
    kvd.ask("/register", {"endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": HOSTILE, "instance_id": HOSTILE,
                          "block_size": 16, "dp_rank": 0})
    recorded = json.loads((captures / "vllm032-block128.json").read_text())
    prompts = re.findall(r'"prompt_token_ids": *(\[[^\]]*\])', json.dumps(recorded))
    return [json.loads(p) for p in prompts]


def compare(kvd, looker, prompt):
    """The numbers on the page beside the JSON and /metrics."""
    looker.again()
    o = kvd.ask("/v1/overview")
    live, total = o["states"].get("live", 0), sum(o["states"].values())
    check("pods followed", looker.text("#tile-pods .value"), f"{live} / {total}")
    check("pods in /metrics", kvd.metric("kvd_publishers"), float(total))
    ratio = o["hit_ratio"]["best"]
    check("hit ratio", looker.text("#tile-hit .value"), f"{ratio * 100:.0f} %")
    word = "good" if ratio > 0.3 else "acceptable" if ratio > 0.1 else "look here"
    check("what the guide says of it", looker.text("#tile-hit .note").startswith(word), True)
    blocks = {t: n for t, n in o["index"]["blocks"].items()}
    check("blocks", sum(map(int, re.findall(r"\d+", looker.text("#tile-blocks .note").replace(",", " ").replace("  ", " ")))),
          sum(blocks.values()))
    check("blocks in /metrics", kvd.metric("kvd_tier_blocks"), float(sum(blocks.values())))
    rows = looker.page.eval_on_selector_all("#pod-table tbody tr", """all => all.map((tr) => [
        tr.cells[0].firstElementChild.textContent, ...[2, 3, 4].map((i) => Number(tr.cells[i].firstElementChild.textContent))])""")
    wanted = sorted([p["instance_id"], p["blocks"][0], p["blocks"][1], sum(p["blocks"][2:])] for p in o["pods"])
    check("rows of pods", sorted(rows), wanted)
    hot = kvd.ask("/v1/prefixes")
    check("prefixes", len(looker.texts("#prefix-tree li")), len(hot["prefixes"]))
    check("there are prefixes", len(hot["prefixes"]) > 0, True)
    check("somebody shares one", looker.page.locator("#sharing tbody tr").count() > 0, True)
    check("transfers", "Under way: none" in looker.text("#transfer-counts"), True)
    looker.page.fill("#ask-model", "demo")
    looker.page.fill("#ask-tokens", json.dumps(prompt))
    looker.page.click("#ask button:not([type])")
    looker.page.wait_for_selector("#answer ol")
    why = kvd.ask("/v1/explain", {"model": "demo", "token_ids": prompt})
    shown = looker.text("#answer h3 >> nth=0")
    check("explained", f"{why['explained']['instance_id']}: {why['explained']['cached_tokens']:,} of" in shown, True)
    check("steps", looker.texts("#answer ol li"), why["explained"]["steps"])
    check("runs", looker.page.locator("#answer tbody tr").count(), len(why["explained"]["runs"]))
    looker.page.fill("#ask-tokens", "1, 2, x")
    looker.page.click("#ask button:not([type])")
    looker.page.wait_for_selector("#answer .bad")
    check("what is no token id is said", looker.text("#answer"), '"x" is no token id')
    check("title", looker.page.title(), "kvd")
    check("elements made of names", looker.page.locator("main img, main script").count(), 0)
    check("the hostile name is shown", HOSTILE in looker.texts("#pod-table tbody th span:first-child"), True)


def keyboard(looker):
    """Whether everything can be reached without a mouse, and what is reached can be seen."""
    looker.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    reached = set()
    for _ in range(60):
        looker.page.keyboard.press("Tab")
        reached.add(looker.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    for wanted in ("Skip to the pods", "pod-filter", "pod-sort", "ask-model", "ask-tokens", "Explain"):
        check(f"Tab reaches {wanted}", wanted in reached, True)


def contrast(looker, what):
    """Text against what lies behind it: at least 4.5 to 1 (WCAG AA)."""
    poor = looker.page.evaluate("""() => {
      const parse = (c) => (c.match(/[\\d.]+/g) ?? []).map(Number);
      const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
        return .2126 * r + .7152 * g + .0722 * b; };
      const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
        if (c.length === 3 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
      const poor = [];
      for (const e of document.querySelectorAll('body *')) {
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.offsetParent || e.disabled) continue;
        const [a, b] = [light(parse(getComputedStyle(e).color).slice(0, 3)), light(behind(e))].sort((x, y) => y - x);
        const ratio = (a + .05) / (b + .05);
        if (ratio < 4.5) poor.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)} ${e.textContent.slice(0, 30)}`);
      }
      return poor;
    }""")
    check(f"{what}: text of too little contrast", poor, [])


def wide(looker, what):
    check(f"{what}: wider than the screen", looker.page.evaluate("document.documentElement.scrollWidth > innerWidth"), False)


FRAMES = """(ms) => new Promise((done) => {
  const gaps = [], long = [];
  new PerformanceObserver((l) => l.getEntries().forEach((e) => long.push(e.duration))).observe({ type: 'longtask' });
  let last; const began = performance.now();
  const frame = (t) => { if (last) gaps.push(t - last); last = t;
    if (t - began < ms) requestAnimationFrame(frame);
    else { gaps.sort((a, b) => a - b);
      done({ frames: gaps.length, median: gaps[gaps.length >> 1], longest: gaps.at(-1),
        dropped: gaps.filter((g) => g > 1.5 * gaps[gaps.length >> 1]).length, long }); } };
  requestAnimationFrame(frame);
})"""


# What one look costs the browser's main thread, in ms: reading, rows and map, layout.
UPDATE = """async () => {
  const pods = await import('/page/pods.js');
  const times = { read: [], rows: [], layout: [] };
  const timed = (of, work) => { const began = performance.now(); const made = work(); of.push(performance.now() - began); return made; };
  for (let i = 0; i < 7; i += 1) {
    const text = await (await fetch('/v1/overview')).text();
    const o = timed(times.read, () => JSON.parse(text));
    timed(times.rows, () => pods.show(o));
    timed(times.layout, () => document.body.getBoundingClientRect());
    await new Promise((go) => setTimeout(go, 900));
  }
  return Object.fromEntries(Object.entries(times).map(([k, v]) => [k, v.sort((a, b) => a - b)[3].toFixed(1)]));
}"""


def fleet(kvd, browser, args):
    pods = Fleet(kvd.listen, PODS)
    deadline = time.monotonic() + PATIENCE
    # Whoever publishes before kvd's socket took the connection in is not heard; the sequence begins again.
    while kvd.ask("/v1/overview")["states"].get("connecting", 0) + len(kvd.ask("/v1/overview")["pods"]) < PODS:
        pods.sequence = [0] * PODS
        pods.fill()
        time.sleep(1)
        if time.monotonic() > deadline:
            fail(f"{len(kvd.ask('/v1/overview')['pods'])} of {PODS} pods were heard")
    pods.start()
    looker = Looker(browser, kvd, LAPTOP, "light")
    for i in range(200):
        kvd.ask("/query", {"model": "fleet", "token_ids": tokens(i % 4, i, 40)})
        time.sleep(0.02)
    before = kvd.ask("/v1/overview")["events"]["total"]
    began = time.monotonic()
    frames = looker.page.evaluate(FRAMES, 8000)
    o = kvd.ask("/v1/overview")
    rate = (o["events"]["total"] - before) / (time.monotonic() - began)
    print(f"  --  {len(o['pods'])} pods, {rate:.0f} events/s: {frames['frames']} frames in 8 s, median {frames['median']:.1f} ms, "
          f"longest {frames['longest']:.1f} ms, {frames['dropped']} late; long tasks {[round(t) for t in frames['long']]}")
    time.sleep(1)  # what is kept is made anew
    began = time.monotonic()
    size = len(json.dumps(kvd.ask("/v1/overview")))
    print(f"  --  /v1/overview: {size // 1024} KiB in {(time.monotonic() - began) * 1000:.0f} ms, made anew by a debug build")
    print(f"  --  one look takes the browser, median ms: {looker.page.evaluate(UPDATE)}")
    check("pods followed", looker.text("#tile-pods .value").split(" / ")[1], str(sum(o["states"].values())))
    check("a page of them has rows", looker.page.locator("#pod-table tbody tr").count(), 25)
    looker.page.fill("#pod-filter", name(PODS - 1))
    check("found by name", looker.texts("#pod-table tbody th span:first-child"), [name(PODS - 1)])
    looker.page.fill("#pod-filter", "fleet")
    first = looker.texts("#pod-table tbody th span:first-child")[0]
    looker.page.click("#pod-next")
    check("the next page is another", looker.texts("#pod-table tbody th span:first-child")[0] != first, True)
    hot = kvd.ask("/v1/prefixes")
    best = next(p for p in hot["prefixes"] if hot["roots"][p["root"]]["model"] == "fleet")
    check("the hottest prefix is what a kind of pods shares", best["tokens"], [0, 128])
    check("and a fourth of the pods has it", best["holders"], PODS // 4)
    looker.page.fill("#pod-filter", "")
    shots(browser, kvd, args.dir, "fleet")
    looker.end("500 pods")
    pods.stop.set()
    pods.join()


def shots(browser, kvd, dir, what):
    for size, where in ((LAPTOP, "laptop"), (PHONE, "phone")):
        for scheme in ("light", "dark"):
            looker = Looker(browser, kvd, size, scheme)
            looker.again()
            contrast(looker, f"{what} {where} {scheme}")
            wide(looker, f"{what} {where} {scheme}")
            looker.page.screenshot(path=dir / f"{what}-{where}-{scheme}.png", full_page=True)
            looker.end(f"{what} {where} {scheme}")


def behind_tokens(browser, args):
    kvd = Kvd(args, guarded.tokens(args.dir, guarded.READ))
    try:
        looker = Looker(browser, kvd, LAPTOP, "light", guarded=True)
        guarded.refused(looker, check)
        guarded.accepted(looker, kvd, check)
        guarded.taken_back(looker, kvd, check, args.dir)
        looker.end("behind tokens")
        for size, where in ((LAPTOP, "laptop"), (PHONE, "phone")):
            for scheme in ("light", "dark"):
                looker = Looker(browser, kvd, size, scheme, guarded=True)
                guarded.asks(looker)
                looker.page.screenshot(path=args.dir / f"asks-{where}-{scheme}.png")
                guarded.give(looker, guarded.WRONG)
                looker.page.wait_for_selector("#auth.refused")
                contrast(looker, f"refused {where} {scheme}")
                wide(looker, f"refused {where} {scheme}")
                looker.page.screenshot(path=args.dir / f"refused-{where}-{scheme}.png")
                guarded.give(looker, guarded.READ)
                looker.page.wait_for_selector("body[data-shown]", state="attached")
                wide(looker, f"accepted {where} {scheme}")
                looker.page.screenshot(path=args.dir / f"accepted-{where}-{scheme}.png")
                looker.end(f"behind tokens {where} {scheme}")
    finally:
        kvd.end()


def gone(kvd, looker):
    """A kvd that is gone is said to be, and what was shown stays."""
    kvd.process.kill()
    kvd.process.wait()
    looker.page.wait_for_selector("#trouble:not([hidden])", timeout=PATIENCE * 1000)
    check("said that kvd is gone", looker.text("#trouble").startswith("kvd does not answer"), True)
    check("pods stay", looker.page.locator("#pod-table tbody tr").count() > 0, True)


def main():
    parser = argparse.ArgumentParser()
    for word in ("kvd", "kvctl", "browser", "captures", "dir"):
        parser.add_argument(f"--{word}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    kvd = Kvd(args)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
            print("an empty kvd")
            empty = Looker(browser, kvd, LAPTOP, "light")
            check("nobody", empty.text("#tile-pods .value"), "0 / 0")
            check("no hit ratio", empty.text("#tile-hit .value"), "–")
            empty.end("empty")
            print("recorded engines")
            prompts = recorded(kvd, args.captures)
            kvd.until("the streams", lambda o: o["states"].get("live") == 4 and sum(o["index"]["blocks"].values()) == 27)
            for prompt in prompts[-20:]:
                kvd.ask("/query", {"model": "demo", "token_ids": prompt})
                time.sleep(0.02)
            looker = Looker(browser, kvd, LAPTOP, "light")
            times = looker.paint()
            print(f"  --  first contentful paint {times['paint']:.0f} ms, first data {times['shown']:.0f} ms")
            compare(kvd, looker, prompts[-1])
            keyboard(looker)
            looker.page.fill("#ask-tokens", json.dumps(prompts[-1]))
            looker.page.click("#ask button:not([type])")
            looker.page.wait_for_selector("#answer ol")
            looker.page.screenshot(path=args.dir / "explain-laptop-light.png", full_page=True)
            looker.end("recorded")
            shots(browser, kvd, args.dir, "recorded")
            print(f"{PODS} pods")
            fleet(kvd, browser, args)
            print("a kvd that wants tokens")
            behind_tokens(browser, args)
            print("a kvd that is gone")
            looker = Looker(browser, kvd, LAPTOP, "dark")
            gone(kvd, looker)
            looker.context.close()
            browser.close()
    finally:
        kvd.end()
    print(f"all good; pictures are in {args.dir}")


if __name__ == "__main__":
    sys.exit(main())
