"""Compare exported networks with torch: labels, size, and images a second, each in turn.

    python tests/benchmarks/export.py

Each network gets a few updates on drawn heads, so that its norms have statistics and its logits spread; it is exported
alone, with one fold and one view, and its labels are compared on 1,000 images. Then torch (float32, eager), thera's
fastest plan and onnxruntime compute the same images in turn, on one thread: A B C A B C. A rate is the median of the
rounds, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch

from ensemble.config import MemberConfig
from ensemble.data.synthetic import draw_head
from ensemble.members.backbones import Backbone, build
from ensemble.members.inference import predict_logits
from ensemble.members.onnx_graph import ExportedMember, decision_graph
from ensemble.members.plans import REFERENCE, is_followed, prepare
from ensemble.members.probe import choose_plan
from ensemble.progress import hidden, progress
from ensemble.runtime.classifier import Graph

NETWORKS: dict[str, dict[str, object]] = {
    "resnet18": {},
    "mobilenetv2": {},
    "convnext_nano": {},
    "regnetx_004": {},
    "regnetx_002": {"stem": "half-stride"},
    "small_cnn_smooth": {"arch": "small_cnn", "drop_rate": 0},
    "test_vit": {"input_size": 160},
    "vit_tiny_patch16_224": {"input_size": 224},
}
"""The members that are compared, by their names, and what of their config shapes the network; by default, the name is
the architecture."""

SIZE, IMAGES, UPDATES, ROUNDS = 64, 1000, 4, 3
CPU = torch.device("cpu")


def updated(network: Backbone, pixels: np.ndarray, labels: np.ndarray) -> Backbone:
    """Train a network for a few updates of 32 images."""
    optimiser = torch.optim.AdamW(network.train().parameters(), 1e-3)
    for step in range(UPDATES):
        rows = slice(32 * step, 32 * step + 32)
        logits = network(torch.from_numpy(pixels[rows]))
        torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels[rows]).float()).backward()
        optimiser.step()
        optimiser.zero_grad()
    return network.eval()


def by_torch(network: Backbone, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    def compute(pixels: np.ndarray) -> np.ndarray:
        with progress(len(pixels), "torch") as bar:
            logits = predict_logits(network, pixels, np.arange(len(pixels)), ("identity",), precision, CPU, bar)
        return logits[:, 0]

    return compute


def measured(name: str, rng: np.random.Generator) -> str:
    """Return the row of a network in the table."""
    torch.manual_seed(0)
    pixels = np.stack([draw_head(rng, row % 8 == 0) for row in range(IMAGES)])
    labels = (np.arange(IMAGES) % 8 != 0).astype(np.int8)
    config = MemberConfig.model_validate({"arch": name, "pretrained": False, **NETWORKS.get(name, {})})
    input_size = config.input_size
    network = updated(build(config, SIZE), pixels, labels)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    network = network.to(memory_format=torch.channels_last)
    timed = pixels[: 32 if input_size else 256]  # networks of a fixed size are slow
    expected = by_torch(network, "fp32")(pixels).round(5)
    cut = float(np.median(expected)) + 5e-6  # half of the images have each label
    started = time.perf_counter()
    exported = ExportedMember(name, copy.deepcopy(network), [lambda: weights], 1.0)
    data = decision_graph([exported], (SIZE, SIZE), ("identity",), 2, (0.0,), (cut,))
    seconds = time.perf_counter() - started
    half = decision_graph([exported], (SIZE, SIZE), ("identity",), 2, (0.0,), (cut,), half=True)
    graph = Graph(data, name, threads=1)
    outputs, of_half = graph.run(pixels), Graph(half, name, threads=1).run(pixels)
    plan = choose_plan(config, CPU, SIZE, "predict", 10_000, 1, 2)
    fast = network if plan == REFERENCE else prepare(copy.deepcopy(network), plan)
    assert is_followed(fast, plan) or plan.convolutions == "fused"
    rivals = {"torch": by_torch(network, "fp32"), "plan": by_torch(fast, plan.precision), "onnx": graph.run}
    rates: dict[str, list[float]] = {rival: [] for rival in rivals}
    for rival in list(rivals) * (ROUNDS + 1):
        started = time.perf_counter()
        rivals[rival](timed)
        rates[rival].append(len(timed) / (time.perf_counter() - started))
    cells = [f"{np.median(each[1:]):.0f} ({min(each[1:]):.0f} to {max(each[1:]):.0f})" for each in rates.values()]
    same = [int((each.y_pred == (expected >= cut)).sum()) for each in (outputs, of_half)]
    largest = float(np.abs(outputs.stacked_logits - expected).max())
    speed = float(np.median(rates["onnx"][1:]) / np.median(rates["torch"][1:]))
    shown = f"{name}, half-stride stem" if config.stem == "half-stride" else name
    row = (shown, input_size or SIZE, f"{same[0]} / {same[1]}", f"{largest:.1g}", f"{len(data) / 1e6:.1f}")
    return (
        f"| {' | '.join(map(str, (*row, f'{len(half) / 1e6:.1f}', f'{seconds:.0f}', *cells, plan, f'{speed:.2f}')))} |"
    )


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="names in NETWORKS, or architectures")
    chosen = parser.parse_args().networks
    torch.set_num_threads(1)
    columns = (
        *("network", "input", f"labels equal of {IMAGES} (fp32 / half)", "largest difference of a logit", "MB"),
        *("MB half", "export, s", "torch fp32, images/s", "thera's plan", "onnxruntime", "the plan", "onnx / torch"),
    )
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    with hidden():
        for name in chosen:
            print(measured(name, np.random.default_rng(0)), flush=True)


if __name__ == "__main__":
    main()
