"""Send images, weights and training states to a task, by files that its node sees or through the object store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.serialization import register_serializer

from ensemble.cluster.relay import Arrays, arrays_of, tensors_of
from ensemble.config import MemberConfig
from ensemble.data import mapped
from ensemble.members.backbones import build, last_layers
from ensemble.members.fold_job import FoldJob
from ensemble.members.predictor import FoldModel
from ensemble.members.processes import MappedPixels
from ensemble.runs.training_state import StateFolder

SAMPLES, SAMPLE_BYTES = 64, 4096
"""The number of samples of a file, and the bytes of each. By their hash a node recognises the driver's file."""


class Luggage:
    """Serializes the arguments of calls for a task, and puts what several tasks read into the object store once.

    Parameters
    ----------
    relay : Any
        The handle of the relay, from which a task requests files that its node does not see.
    """

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._arrays: dict[int, tuple[np.ndarray, Any]] = {}
        self._pretrained: dict[str, Any] = {}
        self._model: tuple[FoldModel | None, Any] = None, None

    def clear(self) -> None:
        """Drop the references, so that the object store frees the memory."""
        self._arrays, self._pretrained, self._model = {}, {}, (None, None)

    def register(self) -> None:
        """Let Ray serialize arguments of these types by the methods of this object."""
        register_serializer(MappedPixels, serializer=self._pixels, deserializer=_unpacked)
        register_serializer(StateFolder, serializer=self._states, deserializer=_unpacked)
        register_serializer(FoldJob, serializer=self._job, deserializer=_unpacked)
        register_serializer(FoldModel, serializer=self._fold_model, deserializer=_unpacked)

    def _pixels(self, pixels: MappedPixels) -> tuple[Any, ...]:
        if pixels.is_mapped:
            path = os.path.abspath(pixels.array.filename)  # type: ignore[attr-defined]
            return open_pixels, path, digest_of(path), self._relay
        key = id(pixels.array)
        if key not in self._arrays:
            self._arrays[key] = pixels.array, ray.put(np.asarray(pixels.array))
        return stored_pixels, self._arrays[key][1]

    def _states(self, states: StateFolder) -> tuple[Any, ...]:
        return open_states, os.path.abspath(states.folder), states.save_every, self._relay

    def _job(self, job: FoldJob) -> tuple[Any, ...]:
        """Send pretrained weights with a job, so that the driver alone downloads them."""
        weights: Any = job.weights
        if weights is None and job.config.pretrained:
            key = f"{job.config.timm_name} {job.address}"
            if key not in self._pretrained:
                self._pretrained[key] = ray.put(pretrained_weights(job.config, job.pixels.shape[1], job.address))
            weights = self._pretrained[key]
        values = {field.name: getattr(job, field.name) for field in fields(job)}
        return unpacked_job, values | {"weights": weights}

    def _fold_model(self, model: FoldModel) -> tuple[Any, ...]:
        """Read the weights on the driver, once for all parts of the images."""
        if self._model[0] is not model:
            self._model = model, ray.put(arrays_of(model.read_weights()))
        return unpacked_model, model.name, model.fold, model.spec, [self._model[1]]


def _unpacked(packed: tuple[Any, ...]) -> Any:
    function, *arguments = packed
    return function(*arguments)


def pretrained_weights(config: MemberConfig, image_size: int, address: str | None = None) -> Arrays:
    """Return timm's pretrained weights without the last layers, which each job draws by its own seed."""
    model = build(config, image_size, address=address).model
    of_head = {id(parameter) for parameter in last_layers(model).parameters()}
    drawn = {name for name, parameter in model.named_parameters() if id(parameter) in of_head}
    return arrays_of({name: value for name, value in model.state_dict().items() if name not in drawn})


# --- on the node of the task ------------------------------------------------------------------------------------------


def unpacked_job(values: Mapping[str, Any]) -> FoldJob:
    """Return a job with its weights, if they are in the object store."""
    weights = values["weights"]
    return FoldJob(**{**values, "weights": ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights})


def unpacked_model(name: str, fold: int, spec: Any, weights: Sequence[Any]) -> FoldModel:
    """Return a fold model whose weights are read from the object store."""
    return FoldModel(name, fold, spec, partial(_weights_of, weights))


def _weights_of(weights: Sequence[Any]) -> dict[str, Any]:
    return tensors_of(ray.get(weights[0]))


def stored_pixels(reference: Any) -> MappedPixels:
    """Return images of the object store, which all tasks of a node read without a copy."""
    return MappedPixels(ray.get(reference))


@cache
def open_pixels(path: str, digest: str, relay: Any) -> MappedPixels:
    """Return the images of a file, mapped if this node sees the file, else from the object store by the relay."""
    try:
        if digest_of(path) == digest:
            return MappedPixels(mapped.open_pixels(path))
    except OSError:
        pass
    return stored_pixels(ray.get(relay.pixels.remote(path))[0])


def digest_of(path: str) -> str:
    """Return a hash of a file's size and of samples of its content, evenly spaced over the file."""
    digest, size = hashlib.sha256(), os.path.getsize(path)
    digest.update(str(size).encode())
    with open(path, "rb") as file:
        for start in np.linspace(0, max(0, size - SAMPLE_BYTES), SAMPLES).astype(int).tolist():
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def open_states(folder: str, save_every: float, relay: Any) -> StateFolder | RelayedStates:
    """Return the training states of a folder, which are read and written directly if this node sees the folder."""
    mark = ray.get(relay.mark.remote(folder))
    shared = Path(mark).exists()
    relay.unmark.remote(mark)
    return StateFolder(Path(folder), save_every) if shared else RelayedStates(folder, save_every, relay)


class RelayedStates:
    """The training states of a folder on the driver's node, as `StateFolder`; the relay reads and writes them."""

    def __init__(self, folder: str, save_every: float, relay: Any) -> None:
        self._folder, self.save_every, self._relay = folder, save_every, relay
        self.warnings: list[str] = []

    def save(self, tensors: Mapping[str, Any], history: Sequence[Mapping[str, Any]], updates: int = 0) -> None:
        """Save a state and, at the end of an epoch, the history."""
        self.save_state(tensors, history, updates)
        if not updates:
            self.write_history(history)

    def save_state(self, tensors: Mapping[str, Any], history: Sequence[Mapping[str, Any]], updates: int = 0) -> None:
        """Save a state; it is on the driver's disk when this returns."""
        ray.get(self._relay.save_state.remote(self._folder, arrays_of(tensors), list(history), updates))

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the history of the epochs."""
        ray.get(self._relay.write_history.remote(self._folder, list(history)))

    def load(self) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Return the newest undamaged state, or None."""
        loaded, warnings = ray.get(self._relay.load.remote(self._folder))
        self.warnings += warnings
        return None if loaded is None else (tensors_of(loaded[0]), loaded[1])

    def write_not_finite(self, facts: Mapping[str, Any]) -> Path:
        """Write what is known of a loss that is not finite, and return the path on the driver's node."""
        return Path(ray.get(self._relay.write_not_finite.remote(self._folder, dict(facts))))
