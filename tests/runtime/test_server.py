"""The HTTP service: answers equal `OnnxClassifier`; every bad input gets a clear error; concurrent requests."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny import fails

from ensemble.errors import ResourceError
from ensemble.serve_config import ServeConfig

pytest.importorskip("onnx", reason="the extra thera[export] is not installed")
pytest.importorskip("onnxruntime", reason="the extra thera[runtime] is not installed")
pytest.importorskip("fastapi", reason="the extra thera[serve] is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra thera[serve] is not installed")
pytest.importorskip("python_multipart", reason="the extra thera[serve] is not installed")
from small_onnx import FACTS, SIZE, small_model  # noqa: E402

from ensemble.commands import serve as command  # noqa: E402
from ensemble.runtime.batching import Batcher  # noqa: E402
from ensemble.runtime.classifier import OnnxClassifier  # noqa: E402
from ensemble.runtime.facts import plain_facts  # noqa: E402
from ensemble.runtime.onnx_file import sealed  # noqa: E402
from ensemble.runtime.server import create_app  # noqa: E402

BOUNDARY = "a-part-of-the-form"
LIMITS = {"max_images": 4, "max_megabytes": 0.2, "max_megapixels": 0.01}


def png(value: int, size: int = SIZE) -> bytes:
    return bytes(cv2.imencode(".png", np.full((size, size, 3), value, np.uint8))[1])


def form(*files: tuple[str, bytes]) -> bytes:
    parts = (
        b"--%s\r\nContent-Disposition: form-data; name=images; filename=%s\r\nContent-Type: image/png\r\n\r\n%s\r\n"
        % (BOUNDARY.encode(), name.encode(), data)
        for name, data in files
    )
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "small.onnx"
    path.write_bytes(sealed(small_model().SerializeToString(deterministic=True), FACTS))
    return path


class Running:
    """A server in a thread of this process."""

    def __init__(self, model: Path, **limits: Any) -> None:
        self.config = ServeConfig(model=model, **limits)
        self.classifier = OnnxClassifier(model)
        self.server = uvicorn.Server(
            uvicorn.Config(create_app(self.classifier, self.config), log_level="error", lifespan="on")
        )
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()

    def ask(self, method: str, path: str, body: Any = None, kind: str = "", **headers: str) -> tuple[int, Any]:
        """Send a request; return status and JSON of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            sent = {**({"Content-Type": kind} if kind else {}), **headers}
            connection.request(method, path, body, sent, encode_chunked="Transfer-Encoding" in sent)
            answer = connection.getresponse()
            self.headers = dict(answer.getheaders())
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def predict(self, *files: tuple[str, bytes]) -> tuple[int, Any]:
        return self.ask("POST", "/predict", form(*files), f"multipart/form-data; boundary={BOUNDARY}")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    running = Running(model, **LIMITS)
    yield running
    running.stop()


def test_answers_equal_the_classifier(server: Running, tmp_path: Path) -> None:
    values = (0, 100, 127, 128, 255)
    for value in values:
        (tmp_path / f"{value}.png").write_bytes(png(value))
    paths = [tmp_path / f"{value}.png" for value in values]
    labels, probabilities = server.classifier.predict(paths), server.classifier.predict_proba(paths)
    for value, label, probability in zip(values, labels, probabilities, strict=True):
        status, answer = server.ask("POST", "/predict", png(value), "image/png")
        (image,) = answer["images"]
        assert status == 200 and image["name"] == "" and image["label"] == label
        assert image["probability"] == pytest.approx(probability[1], abs=1e-15)
        assert image["logit"] == value / 255
        assert server.classifier.classes_[image["index"]] == label


def test_several_images_keep_their_order_and_names(server: Running) -> None:
    status, answer = server.predict(("light.png", png(200)), ("dark.png", png(20)), ("mid.png", png(128)))
    assert status == 200
    assert [(image["name"], image["label"]) for image in answer["images"]] == [
        ("light.png", "plain"),
        ("dark.png", "bell é"),
        ("mid.png", "plain"),
    ]


def test_a_bad_image_has_its_own_error(server: Running) -> None:
    whole = png(90)
    status, answer = server.predict(("good.png", png(200)), ("cut.png", whole[:-20]), ("text.png", b"hello"))
    good, cut, text = answer["images"]
    assert status == 200 and good["label"] == "plain" and "error" not in good
    assert "label" not in cut and cut["error"].startswith("cut.png: is cut short")
    assert text["error"] == "text.png: is not a JPEG, PNG, BMP or WebP file"


@pytest.mark.parametrize(
    ("body", "kind", "status", "says"),
    [
        (png(1)[:-30], "image/png", 422, "the image: is cut short or damaged"),
        (b"", "image/png", 422, "the request has no image"),
        (b"GIF89a....", "image/gif", 422, "the image: is GIF; must be JPEG, PNG, BMP or WebP; convert it to PNG"),
        (png(1, 9), "image/png", 422, "the image: has 9 × 9 pixels, the model takes 8 × 8; resize it"),
        (png(1, 200), "image/png", 422, "at most 0.01 megapixels are decoded"),
        (b"x" * 200_001, "image/png", 413, "the request has more than 0.2 megabytes"),
        (b"{}", "application/json", 415, "send an image as the body"),
        (png(1), "", 415, "send an image as the body"),
        (form(*[(f"{i}.png", png(i)) for i in range(5)]), "form", 413, "the request has more than 4 images"),
        (form(), "form", 422, "the request has no image"),
        (b"nonsense", "form", 400, ""),
    ],
)
def test_bad_requests_get_one_clear_error(server: Running, body: bytes, kind: str, status: int, says: str) -> None:
    full = f"multipart/form-data; boundary={BOUNDARY}" if kind == "form" else kind
    got, answer = server.ask("POST", "/predict", body, full)
    assert got == status and says in answer["error"]
    assert "\n" not in answer["error"] and "Traceback" not in answer["error"]


def test_a_body_without_a_declared_length_is_cut_off(server: Running) -> None:
    chunks = (b"x" * 50_000 for _ in range(40))
    status, answer = server.ask("POST", "/predict", chunks, "image/png", **{"Transfer-Encoding": "chunked"})
    assert status == 413 and "0.2 megabytes" in answer["error"]


def test_a_field_that_is_no_file_is_refused(server: Running) -> None:
    body = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"\r\n\r\nhello\r\n--{BOUNDARY}--\r\n'
    status, answer = server.ask("POST", "/predict", body, f"multipart/form-data; boundary={BOUNDARY}")
    assert status == 422 and answer["error"] == "the field images of the form is no file"


def test_health_model_and_openapi(server: Running) -> None:
    assert server.ask("GET", "/health") == (200, {"status": "ok", "waiting": 0})
    status, facts = server.ask("GET", "/model")
    assert status == 200 and facts.pop("sha256") == server.classifier.sha256
    assert facts == json.loads(json.dumps(plain_facts(server.classifier.facts)))
    status, described = server.ask("GET", "/openapi.json")
    kinds = described["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert status == 200 and {"multipart/form-data", "image/jpeg"} <= set(kinds)
    assert server.ask("GET", "/nothing")[0] == 404 and server.ask("GET", "/predict")[0] == 405


def test_sixteen_clients_get_the_answers_to_their_own_images(server: Running) -> None:
    def ask(index: int) -> None:
        value = index % 256
        if index % 7 == 0:
            status, answer = server.ask("POST", "/predict", png(value)[: 40 + index % 9], "image/png")
            assert status == 422 and "cut short" in answer["error"]
        elif index % 3 == 0:
            status, answer = server.predict(("a", png(value)), ("b", b"bad"), ("c", png(255 - value)))
            a, b, c = answer["images"]
            assert status == 200 and a["logit"] == value / 255 and c["logit"] == (255 - value) / 255
            assert b["error"]
        else:
            status, answer = server.ask("POST", "/predict", png(value), "image/png")
            assert status == 200 and answer["images"][0]["logit"] == value / 255

    with ThreadPoolExecutor(16) as clients:
        list(clients.map(ask, range(320)))
    assert server.ask("GET", "/health")[1]["waiting"] == 0


class SlowGraph:
    """A graph that waits for a signal, and records the sizes of its batches."""

    def __init__(self, graph: Any) -> None:
        self.graph, self.go, self.sizes = graph, threading.Event(), list[int]()

    def batch(self, pixels: np.ndarray) -> Any:
        self.sizes.append(len(pixels))
        assert self.go.wait(20)
        return self.graph.batch(pixels)


def images(*values: int) -> list[np.ndarray]:
    return [np.full((SIZE, SIZE, 3), value, np.uint8) for value in values]


def test_images_that_wait_are_computed_together_and_the_queue_is_bounded(model: Path) -> None:
    slow = SlowGraph(OnnxClassifier(model).graph)
    batcher = Batcher(slow, batch_size=4, most=7)  # type: ignore[arg-type]
    first = batcher.submit(images(10))
    while not slow.sizes:
        time.sleep(0.01)
    others = [batcher.submit(images(20, 30)), batcher.submit(images(40, 50)), batcher.submit(images(60))]
    with pytest.raises(ResourceError, match="6 images wait, and 7 may"):
        batcher.submit(images(1, 2))
    others[2][0].cancel()
    slow.go.set()
    results = [future.result(20).stacked_logits[0] * 255 for futures in (first, *others[:2]) for future in futures]
    assert results == pytest.approx([10, 20, 30, 40, 50])
    batcher.close()
    assert slow.sizes == [1, 4] and batcher.waiting == 0  # what was cancelled is not computed
    with pytest.raises(ResourceError, match="is being stopped"):
        batcher.submit(images(1))


def test_a_failing_batch_fails_its_own_images_alone(model: Path) -> None:
    batcher = Batcher(OnnxClassifier(model).graph, batch_size=4, most=9)
    (bad,) = batcher.submit([np.zeros((SIZE + 1, SIZE, 3), np.uint8)])
    with pytest.raises(Exception, match="cannot be computed"):
        bad.result(20)
    (good,) = batcher.submit(images(51))
    assert good.result(20).stacked_logits[0] == pytest.approx(0.2)
    batcher.close()


def test_a_busy_or_slow_server_says_so(model: Path) -> None:
    running = Running(model, timeout=0.3, queue=1)
    slow = running.classifier._graph = SlowGraph(running.classifier.graph)  # type: ignore[assignment]
    running.stop()
    app = create_app(running.classifier, running.config)
    listener = socket.create_server(("127.0.0.1", 0))
    running.port = listener.getsockname()[1]
    running.server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    running.thread = threading.Thread(target=running.server.run, kwargs={"sockets": [listener]}, daemon=True)
    running.thread.start()
    status, answer = running.ask("POST", "/predict", png(1), "image/png")
    assert status == 504 and "longer than 0.3 s" in answer["error"]
    status, answer = running.ask("POST", "/predict", png(1), "image/png")
    assert status == 503 and "is busy: 1 images wait" in answer["error"]
    assert {key.lower(): value for key, value in running.headers.items()}["retry-after"] == "1"
    slow.go.set()
    running.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_on_loopback_and_ends_by_a_signal(model: Path, number: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command_line = [sys.executable, "-m", "thera", "serve", str(model), "--port", "0"]
    address = r"http://127\.0\.0\.1:(\d+)"
    with subprocess.Popen(
        command_line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        line = process.stderr.readline()
        found = re.fullmatch(rf"serving .*small\.onnx at {address} \(its pages: /docs\); Ctrl-C ends it\n", line)
        assert found, line
        with socket.create_connection(("127.0.0.1", int(found[1]))) as gone:  # a client that goes is no fault
            head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n\r\n"
            gone.sendall(head.encode() + png(1)[:50])
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        connection.request("POST", "/predict", png(200), {"Content-Type": "image/png"})
        assert json.loads(connection.getresponse().read())["images"][0]["label"] == "plain"
        connection.close()
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr.read() == "the service has ended\n" and process.stdout.read() == ""


def test_a_taken_port_and_a_bad_model_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = fails(capsys, 6, "serve", model, "--port", port)
    assert line == (
        f"error: 127.0.0.1: cannot listen at port {port} (Address already in use); give another --port or --host"
    )
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:-1])
    assert "cut.onnx" in fails(capsys, 4, "serve", tmp_path / "cut.onnx", "--port", 0)
    assert "none.onnx" in fails(capsys, 4, "serve", tmp_path / "none.onnx", "--port", 0)
    assert "--port" in fails(capsys, 2, "serve", model, "--port", 70000)


def test_the_extra_is_named_where_it_is_missing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.extras.find_spec", lambda name: None if name == "python_multipart" else True)
    with pytest.raises(ResourceError, match=r"needs the package python-multipart; pip install 'thera\[serve\]'"):
        command.serve(ServeConfig(model=model))
