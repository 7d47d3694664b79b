"""Measure on a machine with a GPU everything that no machine without one can tell, in one go:

    python tests/benchmarks/gpu.py --out FOLDER [--images train_img --labels label_train.txt] [--minutes 9]

The parts, in this order (`gpu_parts.py`): logits and gradients against the CPU; updates as a CUDA graph against
launches; resuming; the probe's choices; training against a plain loop in turn, and how busy the GPU is; planned memory
against the peak; prediction; several folds at once; `thera bench` and its peers; `configs/therapanacea.yaml` for the
rest of the time. Each part has a process of its own and a share of the time, so that one that fails, hangs or loses the
device does not stop the next. FOLDER/gpu.json and FOLDER/gpu.md are written after each part, and hold the rows that an
unfinished part had. Give `--part NAME` (again and again) for some parts alone, with all the time.

`--device cpu --quick` tries the script out without a GPU: tiny networks, and graphs of recorded operators.
The exit status is 1 if a part failed, and 0 if all ended or were only stopped by their time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PART = "PART"
"""The argument by which this script calls itself for one part."""

SHARES = {
    **{"logits": 1.0, "graphs": 2.0, "resume": 0.7, "choices": 2.5, "training": 2.5, "memory": 1.0},
    **{"prediction": 0.7, "folds": 2.5, "bench": 1.6, "run": 2.5},
}
"""The parts in their order, each with its share of the time; what one leaves goes to the next ones."""

LEAST = 10.0
"""The seconds that a part has at least; its imports take some of them."""

GRACE = 5.0
"""The seconds after its time in which a part may end by itself."""

FOLDERS = (HERE.parents[1], HERE, HERE / "peers", HERE.parent / "members")
"""The folders of what the parts import."""


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, each in a process, and write their results."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == [PART]:
        return run_part(*arguments[1:3])
    given = options(arguments)
    names = [name for name in SHARES if not given.part or name in given.part]
    given.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": {}, "arguments": arguments, "parts": {}}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="thera-gpu-") as shared:
        for index, name in enumerate(names):
            left = 60 * given.minutes - (time.monotonic() - started)
            shares = [SHARES[each] for each in names[index:]]
            seconds = left * shares[0] / sum(shares)
            print(f"{name}: up to {seconds:.0f} s", file=sys.stderr, flush=True)
            result["parts"][name] = part_in_a_process(name, given, max(seconds, LEAST), shared)
            result["machine"] = result["parts"][name].pop("machine", None) or result["machine"]
            write(given.out, result)
            print(f"{name}: {result['parts'][name]['status']}", file=sys.stderr, flush=True)
    return int(any(part["status"] == "failed" for part in result["parts"].values()))


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--limit", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arch", action="append")
    parser.add_argument("--part", action="append", choices=tuple(SHARES))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    if (given.images is None) != (given.labels is None):
        parser.error("--images and --labels go together")
    if given.images is not None:
        given.images, given.labels = given.images.resolve(), given.labels.resolve()
    return given


def part_in_a_process(name: str, given: argparse.Namespace, seconds: float, shared: str) -> dict[str, Any]:
    """Run a part in a process of its own; return its status, its seconds, its rows and its error."""
    with tempfile.TemporaryDirectory(prefix="thera-gpu-") as scratch:
        request, rows = Path(scratch, "request.json"), Path(scratch, "rows.json")
        asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(given).items()}
        request.write_text(
            json.dumps({**asked, "name": name, "end": time.time() + seconds, "folder": scratch, "shared": shared})
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, FOLDERS))}
        command = [sys.executable, str(Path(__file__).resolve()), PART, str(request), str(rows)]
        started, status = time.monotonic(), "done"
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            if process.wait(timeout=seconds + GRACE):
                status = "failed"
        except subprocess.TimeoutExpired:
            status = "stopped by its time"
        finally:
            end_all(process)
        found = json.loads(rows.read_text()) if rows.exists() else {"rows": []}
        if status == "failed" and "error" not in found:
            found["error"] = f"its process ended with status {process.returncode}"
        return {"status": status, "seconds": round(time.monotonic() - started, 1), **found}


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End a part with the processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_part(request: str, path: str) -> int:
    """Run a part in this process; write its rows to a file whenever there is another one."""
    asked, found = json.loads(Path(request).read_text()), {"rows": []}

    def write_found() -> None:
        beside = Path(f"{path}.new")
        beside.write_text(json.dumps(found, default=str))
        beside.replace(path)

    def report(**cells: Any) -> None:
        found["rows"].append(cells)
        write_found()

    try:
        from gpu_parts import PARTS

        settings = settings_of(asked)
        found["machine"] = machine(settings)
        PARTS[asked["name"]](settings, report)
    except BaseException as error:  # whatever a card does, it is a result
        found |= {"error": f"{type(error).__name__}: {error}"[:500], "traceback": traceback.format_exc()[-4000:]}
        write_found()
        return 1
    write_found()
    return 0


def settings_of(asked: dict[str, Any]) -> Any:
    """Return the settings of a part, with those of `--quick` where nothing else is given."""
    from gpu_parts import Settings

    quick = asked["quick"]
    archs = asked["arch"] or (["lenet"] if quick else ["resnet18", "mobilenetv2", "convnext_nano"])
    images, labels = (None if asked[key] in (None, "None") else Path(asked[key]) for key in ("images", "labels"))
    folders = {key: Path(asked[key]) for key in ("folder", "shared")}
    sizes = {"limit": 96, "batch": 16, "rounds": 1} if quick else {"batch": 128}
    taken = {"limit": asked["limit"], "rounds": asked["rounds"], **sizes}
    return Settings(
        asked["device"],
        tuple(archs),
        images,
        labels,
        **taken,
        seconds=max(1.0, asked["end"] - time.time()),  # without those of the imports
        **folders,
        quick=quick,
    )


def machine(settings: Any) -> dict[str, Any]:
    """Return what the figures hold for: the card, its driver, and the versions."""
    import timm
    import torch

    facts = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    facts |= {"cores": len(os.sched_getaffinity(0)), "device": str(settings.on)}
    if settings.on.type == "cuda":
        properties = torch.cuda.get_device_properties(settings.on)
        facts |= {"card": properties.name, "memory": properties.total_memory, "CUDA": torch.version.cuda}
        facts |= {"compute capability": f"{properties.major}.{properties.minor}"}
        facts |= {"cuDNN": torch.backends.cudnn.version()}
    else:
        facts["graphs"] = "recorded operators in place of CUDA graphs"
    return facts


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write all results so far as JSON and as Markdown."""
    (folder / "gpu.json").write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(markdown(result), encoding="utf-8")


def markdown(result: dict[str, Any]) -> str:
    """Return the results as a page: a table for each part."""
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    lines = ["# Measured on a GPU" if "card" in result["machine"] else "# Tried out without a GPU", "", facts, ""]
    for name, part in result["parts"].items():
        lines += [f"## {name}", "", f"{part['status']}, {part['seconds']:.0f} s", ""]
        if "error" in part:
            lines += [f"    {part['error'].splitlines()[0]}", ""]
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row if key != "printed"))
        if columns:
            lines += [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
            lines += [f"| {' | '.join(cell(row.get(key)) for key in columns)} |" for row in part["rows"]]
            lines.append("")
        for row in part["rows"]:
            if "printed" in row:
                lines += ["```", row["printed"].strip(), "```", ""]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """Return a value of a row as the text of a cell."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {cell(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(cell(each) for each in value)
    return str(value).replace("|", "/").replace("\n", " ")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is ended, too
    sys.exit(main())
