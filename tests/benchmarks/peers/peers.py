"""The peers: the tools that do the same work, each used as a careful user of it would.

Each is built by a function and is then run for a number of images, again and again, so that the clock can take it in
turn with others in one process. Every run is a whole pass of the peer's loader: its workers stay alive between runs,
but have nothing left to fetch ahead while another contestant is timed. A run begins with setting torch's threads.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import looks for a newer release online

import albumentations
import cv2
import numpy as np
import timm
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from timm.data import ImageDataset, create_loader, resolve_data_config
from timm.data.readers.reader import Reader
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import model_parameters
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from turns import take_turns

from ensemble.errors import ResourceError
from ensemble.members.losses import focal_loss

NEEDS = {
    "plain_loop": ("torch", "timm", "albumentations", "opencv-python-headless"),
    "timm_loop": ("torch", "timm", "torchvision", "pillow"),
    "timm_predict": ("torch", "timm", "torchvision", "pillow"),
    "onnxruntime_predict": ("onnx", "onnxscript", "onnxruntime"),
    "openvino_predict": ("openvino",),
    "dataloader_epoch": ("torch", "pillow", "opencv-python-headless"),
}
"""The packages that each peer needs."""


LIGHT = {"scale": (0.88, 1.0), "ratio": (1.0, 1.0), "color_jitter": None}
"""train.py's flags --scale 0.88 1 --ratio 1 1 without colour jitter: about what `augment: light` does."""

CLIP_NORM, EMA_DECAY, LR, WEIGHT_DECAY = 1.0, 0.999, 1e-3, 0.05

Read = Callable[[str], np.ndarray]


def installed() -> dict[str, str]:
    """Return the installed peers, each with the versions of its packages."""
    versions = {}
    for peer, needs in NEEDS.items():
        try:
            versions[peer] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in needs)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def require(peer: str) -> None:
    """Check that the packages of a peer are installed.

    Raises
    ------
    ResourceError
        A package is missing.
    """
    missing = [name for name in NEEDS[peer] if importlib.util.find_spec(name) is None]
    if missing:
        raise ResourceError(f"peer {peer}", f"needs {' and '.join(missing)}", f"pip install {' '.join(missing)}")


@dataclass(frozen=True)
class Files:
    """The images that a peer trains on.

    Parameters
    ----------
    paths : sequence of str
        n image files, all of `size` × `size` pixels.
    labels : int8 array (n,)
        0 or 1.
    size : int
    """

    paths: Sequence[str]
    labels: np.ndarray
    size: int


def read_pil(path: str) -> np.ndarray:
    """Decode as torchvision and timm do: (H, W, 3) uint8 RGB."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def read_cv2(path: str) -> np.ndarray:
    """Decode as albumentations' users do: (H, W, 3) uint8 RGB."""
    return np.asarray(cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB))


class Peer:
    """A peer with a data loader, which must be closed after use."""

    def __init__(self, loader: Any, threads: int) -> None:
        self._loader, self._threads = loader, threads

    def close(self) -> None:
        """Stop the loader's workers."""
        loader = getattr(self._loader, "loader", self._loader)  # timm's prefetcher holds it
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()
            loader._iterator = None


P = TypeVar("P", bound=Peer)


def best_workers(
    build: Callable[[int], P], run: Callable[[P], int], candidates: Sequence[int] = (0, 1, 2), rounds: int = 2
) -> dict[int, float]:
    """Return a peer's images per second, median of the rounds, by its number of workers; the best first.

    Parameters
    ----------
    build : callable
        Number of workers -> peer; it is closed again.
    run : callable
        Has the peer do a fixed piece of work and returns its images.
    """
    peers = {workers: build(workers) for workers in candidates}
    try:
        match = take_turns({str(workers): partial(run, peer) for workers, peer in peers.items()}, rounds)
    finally:
        for peer in peers.values():
            peer.close()
    speeds = {workers: float(np.median(match.speeds[str(workers)])) for workers in candidates}
    return dict(sorted(speeds.items(), key=lambda item: -item[1]))


# --- training ---------------------------------------------------------------------------------------------------------


class Loop(Peer):
    """A training loop that continues from run to run.

    Parameters
    ----------
    loader : iterable
        Batches of images (b, 3, H, W) and labels (b,), in the order of `walk`.
    walk : _Walk
    batch : int
    step : callable
        Trains on one batch and returns its loss.
    model, optimizer
        The model that is trained, and its optimiser.
    threads : int
        The number of torch threads.
    """

    def __init__(
        self,
        loader: Any,
        walk: _Walk,
        batch: int,
        step: Callable[[Any, Any], torch.Tensor],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        threads: int,
    ) -> None:
        super().__init__(loader, threads)
        self._walk, self._batch, self._step = walk, batch, step
        self.model, self.optimizer = model, optimizer
        self.loss = float("nan")
        """The loss of the last batch."""

    def run(self, images: int) -> int:
        """Train on as many whole batches as come nearest to `images`, at least one; return their images."""
        torch.set_num_threads(self._threads)
        self._walk.ahead = max(1, round(images / self._batch)) * self._batch
        for x, labels in self._loader:
            loss = self._step(x, labels)
        self.loss = float(loss)
        return self._walk.ahead


def plain_loop(
    arch: str,
    files: Files,
    *,
    batch: int = 128,
    workers: int = 0,
    threads: int,
    device: str = "cpu",
    read: Read = read_cv2,
    seed: int = 0,
) -> Loop:
    """Return the loop that public solutions of such exercises write.

    A data set that opens and decodes each file anew, albumentations (mirror, shift, normalise) sample by sample, a
    shuffling DataLoader, the timm model in float32 and its default memory format, focal loss, AdamW. No average of the
    weights, no clipping.
    """
    torch.manual_seed(seed)
    model = timm.create_model(arch, num_classes=1).to(device).train()
    facts = model.pretrained_cfg
    pipeline = albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(translate_percent=(-0.06, 0.06), border_mode=cv2.BORDER_REPLICATE, p=1.0),
            albumentations.Normalize(facts["mean"], facts["std"]),
            ToTensorV2(),
        ]
    )
    walk = _Walk(len(files.paths), seed)
    loader = DataLoader(
        _Augmented(files, read, pipeline),
        batch_size=batch,
        sampler=walk,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device != "cpu",
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)

    def step(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model(x.to(device)).squeeze(1)  # (b,)
        loss = focal_loss(logits, labels.to(device), gamma=2.0, alpha=None).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return Loop(loader, walk, batch, step, model, optimizer, threads)


def timm_loop(
    arch: str,
    files: Files,
    *,
    batch: int = 128,
    workers: int = 4,
    threads: int,
    device: str = "cpu",
    amp_dtype: torch.dtype | None = None,
    channels_last: bool = False,
    compiled: bool = False,
    prefetcher: bool = True,
    augmentation: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Loop:
    """Return the loop of timm's train.py, which the installed package does not hold, made of timm's own parts.

    Its data set, loader and training transforms, two classes with smoothed labels, ``--opt adamw --clip-grad 1
    --model-ema``; the other defaults are those of train.py too.

    Parameters
    ----------
    workers : int
        train.py's default is 4.
    amp_dtype : torch.dtype, optional
        ``--amp --amp-dtype``; bfloat16, float16 (without train.py's gradient scaler), or None for float32.
    channels_last : bool
        ``--channels-last``.
    compiled : bool
        ``--torchcompile``; it needs a C++ compiler, and minutes on the first run.
    prefetcher : bool
        False is ``--no-prefetcher``: normalised image by image in the data set, not batch by batch in the loop.
    augmentation : mapping, optional
        Arguments of `timm.data.create_loader` instead of train.py's random resized crop, mirror, colour jitter 0.4.
    """
    torch.manual_seed(seed)
    model = timm.create_model(arch, num_classes=2).to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "adamw", lr=LR, weight_decay=WEIGHT_DECAY)
    ema = ModelEmaV3(model, decay=EMA_DECAY)
    loss_fn = LabelSmoothingCrossEntropy(smoothing=0.1)
    autocast = partial(torch.autocast, device, amp_dtype, enabled=amp_dtype is not None)
    loader = create_loader(
        ImageDataset("", reader=_Files(files)),
        is_training=True,
        use_prefetcher=prefetcher,
        num_workers=workers,
        device=torch.device(device),
        pin_memory=device != "cpu",
        **_facts(model, files.size) | {"interpolation": "random", "batch_size": batch} | dict(augmentation or {}),
    )
    trained: Any = torch.compile(model) if compiled else model
    walk = _Walk(len(files.paths), seed)
    loader.batch_sampler.sampler = walk  # it shuffles as the loader's own does, and can be had a part at a time
    model.train()

    def step(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not prefetcher:
            x, labels = x.to(device), labels.to(device)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with autocast():
            loss = loss_fn(trained(x), labels)
        loss.backward()
        dispatch_clip_grad(model_parameters(model), value=CLIP_NORM, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
        return torch.as_tensor(loss.detach())

    return Loop(loader, walk, batch, step, model, optimizer, threads)


# --- decoding ---------------------------------------------------------------------------------------------------------


class Decoding(Peer):
    """A pass over files that only decodes them."""

    def run(self) -> int:
        """Decode all files, (b, H, W, 3) uint8 a batch; return how many there are."""
        torch.set_num_threads(self._threads)
        return sum(len(pixels) for pixels in self._loader)


def dataloader_epoch(
    paths: Sequence[str], *, threads: int, batch: int = 128, workers: int = 0, read: Read = read_pil
) -> Decoding:
    """Return a torch DataLoader over files, in their order, that decodes and collates."""
    loader: DataLoader[np.ndarray] = DataLoader(
        _Decoded(paths, read), batch_size=batch, num_workers=workers, persistent_workers=workers > 0
    )
    return Decoding(loader, threads)


# --- loaders ----------------------------------------------------------------------------------------------------------


class _Walk(Sampler[int]):
    """Rows in one random order after the other; a pass yields the next `ahead` of them."""

    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._rows = (row for _ in itertools.count() for row in rng.permutation(n).tolist())
        self.ahead = n

    def __len__(self) -> int:
        return self.ahead

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._rows, self.ahead)


class _Augmented(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, files: Files, read: Read, pipeline: Any) -> None:
        self.files, self.read, self.pipeline = files, read, pipeline

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        image = self.read(self.files.paths[row])
        return self.pipeline(image=image)["image"], int(self.files.labels[row])


class _Decoded(Dataset[np.ndarray]):
    def __init__(self, paths: Sequence[str], read: Read) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.read(self.paths[row])


class _Files(Reader):  # type: ignore[misc]
    """timm's reader of a folder, for given files."""

    def __init__(self, files: Files) -> None:
        super().__init__()
        self.files = files

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, row: int) -> tuple[str, int]:
        return self.files.paths[row], int(self.files.labels[row])  # a path, so that PIL closes what it opens


def _facts(model: Any, size: int) -> dict[str, Any]:
    """Return what create_loader needs to know of a model."""
    facts = resolve_data_config({}, model=model)
    return {"input_size": (3, size, size), **{key: facts[key] for key in ("mean", "std", "interpolation")}}


def evaluation_loader(model: nn.Module, paths: Sequence[str], size: int, batch: int, workers: int, device: str) -> Any:
    """Return timm's loader with its transforms for evaluation; the crop is the whole image, not seven eighths of it."""
    files = Files(paths, np.zeros(len(paths), np.int8), size)
    return create_loader(
        ImageDataset("", reader=_Files(files)),
        batch_size=batch,
        num_workers=workers,
        device=torch.device(device),
        crop_pct=1.0,
        **_facts(model, size),
    )
