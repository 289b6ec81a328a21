"""The ELASTICSEARCH sink beside a bare bulk loader: the same documents under the same `_id`s, the same rows a request, as many requests
on their way, the same compression, into a new index of the same server, in turn. One JSON line a run on stdout, the ratio on stderr.

The loader has its requests ready in memory before its clock starts: it reads nothing, decodes nothing, makes no JSON, and so does
not share the machine with such work. `loader` writes as the sink does (the document's version is checked); `loader-create` as most loaders
do, with an `_id` that must be new; `loader-auto` lets Elasticsearch make the `_id`, which cannot be loaded twice.
"""
import gzip
import http.client
import json
import os
import statistics
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from threading import local

import project
from bench import origin, prepare
from measure import Failed, interruptible, number, say
from ours import PROJECTS, batches, start
from trial import Wrong

os.environ.setdefault("BENCH_EVENTS", "300000")
ROWS, IN_FLIGHT, ROUNDS = number("ES_BULK_CHUNK", 2_000), number("BENCH_IN_FLIGHT", 2), max(number("RUNS", 3), 1)
COMPRESSION = os.environ.get("BENCH_COMPRESSION", "gzip")
TARGET = 0.8
ACTIONS = {
    "loader": lambda id: {"index": {"_id": id, "version": 1, "version_type": "external_gte"}},
    "loader-create": lambda id: {"create": {"_id": id}},
    "loader-auto": lambda id: {"create": {}},
}


class Server:
    def __init__(self):
        self.url = os.environ["ELASTICSEARCH_URL"]
        self.host = urllib.parse.urlsplit(self.url).netloc
        self.of_thread = local()

    def ask(self, method, path, body=None, **headers):
        """One connection a thread, kept."""
        connection = self.of_thread.__dict__.setdefault("connection", http.client.HTTPConnection(self.host, timeout=120))
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"error: {method} {path}: {answer.status} {text[:300]}")
        return json.loads(text)

    def new_index(self, index):
        """No replica: there is one node. All else is the server's default."""
        self.ask("PUT", f"/{index}", json.dumps({"settings": {"number_of_replicas": 0}}))

    def count(self, index):
        self.ask("POST", f"/{index}/_refresh")
        return self.ask("GET", f"/{index}/_count")["count"]

    def documents(self, index):
        """(`_id`, text) of all, in the order in which the sink sent them, or nearly."""
        answer = self.ask("POST", f"/{index}/_search?scroll=5m", json.dumps({"size": 5000, "sort": ["_doc"]}))
        while hits := answer["hits"]["hits"]:
            for hit in hits:
                yield hit["_id"], json.dumps(hit["_source"], separators=(",", ":"))
            answer = self.ask("POST", "/_search/scroll", json.dumps({"scroll": "5m", "scroll_id": answer["_scroll_id"]}))


def ours(bench, server, run):
    index = f"ours-{os.getpid()}-{run}"
    server.new_index(index)
    with bench.trial("elasticsearch") as trial:
        trial.more = {"ELASTICSEARCH_URL": server.url, "BENCH_INDEX": index}
        queries = project.build(trial.folder / "queries", (), False, [PROJECTS / "elasticsearch"])
        process = start(bench, trial, queries, bench.topic, "--until-caught-up")
        figures = process.finish()
        figures.update(batches(process, bench.expected["events"]))
        trial.check("documents", server.count(index), bench.expected["valid"])
    writing_s = figures["write_ms"] / 1e3
    return index, {"documents": bench.expected["valid"], "documents_per_s": round(bench.expected["events"] and
                   bench.expected["valid"] / bench.expected["events"] * figures["events_per_s_after_start"]), "writing_s": writing_s,
                   **{name: figures[name] for name in ("engine_cpu_us_per_event_after_start", "peak_rss_mb", "batches") if name in figures}}


def loaded(server, case, documents, run):
    index = f"{case}-{os.getpid()}-{run}"
    server.new_index(index)
    bodies, lines = [], []
    for number, (id, text) in enumerate(documents, 1):
        lines += [json.dumps(ACTIONS[case](id)), text]
        if number % ROWS == 0 or number == len(documents):
            body = ("\n".join(lines) + "\n").encode()
            # The fastest level, as the sink's.
            bodies.append(gzip.compress(body, 1) if COMPRESSION == "gzip" else body)
            lines = []
    headers = {"Content-Encoding": "gzip"} if COMPRESSION == "gzip" else {}

    def send(body):
        answer = server.ask("POST", f"/{index}/_bulk?filter_path=errors,items.*.status,items.*.error", body, **headers)
        if answer["errors"]:
            raise SystemExit(f"error: {case}: {str(answer)[:300]}")

    began = time.monotonic()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        list(pool.map(send, bodies))
    took = time.monotonic() - began
    if (found := server.count(index)) != len(documents):
        raise SystemExit(f"error: {case}: {found:,} documents instead of {len(documents):,}")
    server.ask("DELETE", f"/{index}")
    return {"documents": len(documents), "documents_per_s": round(len(documents) / took)}


def main():
    bench = prepare()
    server = Server()
    found, documents = {}, None
    for run in range(ROUNDS + 1):
        for case in ("ours", *ACTIONS):
            say(f"{case} …")
            if case == "ours":
                try:
                    index, figures = ours(bench, server, run)
                except (Failed, Wrong) as error:
                    raise SystemExit(f"error: {error}") from None
                documents = documents or list(server.documents(index))
                server.ask("DELETE", f"/{index}")
            else:
                figures = loaded(server, case, documents, run)
            # The first round warms the server's compiler.
            if run == 0:
                continue
            line = {"case": case, "bulk_rows": ROWS, "in_flight": IN_FLIGHT, "compression": COMPRESSION, **figures, **origin(bench, run)}
            print(json.dumps(line), flush=True)
            with (bench.work / "elasticsearch.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            found.setdefault(case, []).append(figures["documents_per_s"])
    middle = {case: statistics.median(values) for case, values in found.items()}
    for case in ACTIONS:
        ratio = middle["ours"] / middle[case]
        verdict = f" (target: {TARGET}; {'met' if ratio >= TARGET else 'MISSED'})" if case == "loader" else ""
        say(f"{middle['ours']:,.0f} documents/s; {case} {middle[case]:,.0f}; ratio {ratio:.2f}{verdict}")


if __name__ == "__main__":
    interruptible(main)
