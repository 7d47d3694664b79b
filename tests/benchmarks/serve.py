"""Load `thera serve` with concurrent clients: are all answers right, and what do they cost?

    python tests/benchmarks/serve.py checkpoints/demo/export/demo.onnx --images checkpoints/demo/data/val_img

A server process answers `--requests` requests of `--clients` clients, each over its own connection. One request in ten
has a damaged image, and one in ten has three images. Every answer is compared with that of `OnnxClassifier` for the
same image. Then the same images are labelled without the server, one at a time as the clients send them, and in the
batches of `thera predict --model`; the three are measured in turn, `--rounds` times. Printed are the latency (median
and 99 %), images a second, and the greatest memory of the server process, before the load and after it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ensemble.progress import hidden
from ensemble.reports.table import Table
from ensemble.runtime.classifier import OnnxClassifier

BOUNDARY = "a-part-of-the-form"


def memory(pid: int) -> float:
    """Return the greatest resident memory of a process so far, in MiB."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def form(bodies: list[bytes]) -> bytes:
    head = b'--%s\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n' % BOUNDARY.encode()
    return b"".join(head + body + b"\r\n" for body in bodies) + f"--{BOUNDARY}--\r\n".encode()


class Load:
    """Requests and the answers that they must get."""

    def __init__(self, paths: list[Path], expected: np.ndarray, requests: int) -> None:
        self.bodies, self.expected = [path.read_bytes() for path in paths], expected
        self.requests = [
            [(3 * index + j) % len(paths) for j in range(3 if index % 10 == 5 else 1)] for index in range(requests)
        ]

    def send(self, connection: http.client.HTTPConnection, index: int) -> float:
        """Send a request, check its answer, and return the seconds that it took."""
        rows = self.requests[index]
        bodies = [self.bodies[row] for row in rows]
        damaged = index % 10 == 9
        if damaged:
            bodies = [bodies[0][: len(bodies[0]) // 2]]
        body, kind = (
            (form(bodies), f"multipart/form-data; boundary={BOUNDARY}")
            if len(bodies) > 1
            else (bodies[0], "image/jpeg")
        )
        started = time.perf_counter()
        connection.request("POST", "/predict", body, {"Content-Type": kind})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        seconds = time.perf_counter() - started
        if damaged:
            assert answer.status == 422 and content["error"], content
        else:
            assert answer.status == 200 and len(content["images"]) == len(rows), content
            for row, image in zip(rows, content["images"], strict=True):
                assert abs(image["logit"] - self.expected[row]) < 1e-5, (row, image)
        return seconds

    def run(self, port: int, clients: int) -> tuple[np.ndarray, float]:
        """Return the seconds of each request, and those of all of them."""

        def client(number: int) -> list[float]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            took = [self.send(connection, index) for index in range(number, len(self.requests), clients)]
            connection.close()
            return took

        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            seconds = [each for of_client in pool.map(client, range(clients)) for each in of_client]
        assert len(seconds) == len(self.requests)
        return np.array(seconds), time.perf_counter() - started


def spread(values: list[float], form: str) -> str:
    return f"{np.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def main(given: argparse.Namespace) -> None:
    paths = sorted(given.images.iterdir())[: given.distinct]
    classifier = OnnxClassifier(given.model)
    with hidden(), tempfile.TemporaryDirectory() as store:
        from ensemble.data.arrays import source_from_paths

        dataset = classifier.load(source_from_paths(paths), Path(store))
        pixels = np.array(dataset.pixels)
        expected = classifier.outputs(pixels).stacked_logits
    load = Load(paths, expected, given.requests)
    images = sum(len(rows) for index, rows in enumerate(load.requests) if index % 10 != 9)
    command = [sys.executable, "-m", "thera", "serve", str(given.model), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr is not None
        found = re.search(r":(\d+) \(", process.stderr.readline())
        assert found
        load.run(int(found[1]), 1)  # warm
        before = memory(process.pid)
        served: dict[str, list[float]] = {"median": [], "99 %": [], "rate": []}
        alone: dict[str, list[float]] = {"median": [], "99 %": [], "rate": []}
        batched: list[float] = []
        for _ in range(given.rounds):
            seconds, total = load.run(int(found[1]), given.clients)
            for name, value in (("median", np.median(seconds)), ("99 %", np.quantile(seconds, 0.99))):
                served[name].append(1000 * float(value))
            served["rate"].append(images / total)
            took = []
            for index in range(images):
                started = time.perf_counter()
                path = paths[index % len(paths)]
                row = classifier.form.pixels(path.read_bytes(), path.name, classifier.facts.size)[0]
                classifier.graph.batch(row[None])
                took.append(time.perf_counter() - started)
            for name, value in (("median", np.median(took)), ("99 %", np.quantile(took, 0.99))):
                alone[name].append(1000 * float(value))
            alone["rate"].append(images / sum(took))
            many = pixels[np.arange(images) % len(pixels)]
            started = time.perf_counter()
            with hidden():
                classifier.outputs(many)
            batched.append(images / (time.perf_counter() - started))
        after = memory(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    rows = [
        (
            f"served, {given.clients} clients",
            spread(served["median"], ".1f"),
            spread(served["99 %"], ".1f"),
            spread(served["rate"], ".0f"),
        ),
        (
            "without the server, one image at a time",
            spread(alone["median"], ".1f"),
            spread(alone["99 %"], ".1f"),
            spread(alone["rate"], ".0f"),
        ),
        ("without the server, in batches, decoded before", "", "", spread(batched, ".0f")),
    ]
    note = (
        f"{given.rounds} rounds of {given.requests} requests; the server had at most {before:.0f} MiB before them and "
        f"{after:.0f} MiB after them. Every answer was that of the model for its own image."
    )
    columns = ("", "median, ms", "99 %, ms", "images a second")
    print(Table(f"{given.model.name}, {images} images a round", columns, tuple(rows), (note,)).markdown())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--distinct", type=int, default=500)
    main(parser.parse_args())
