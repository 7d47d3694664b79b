"""Batches of images that wait at the same time: a thread computes what has come in while it computed the last batch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from ensemble.errors import ResourceError
from ensemble.runtime.classifier import Graph
from ensemble.runtime.outputs import Outputs

_Waiting = tuple[NDArray[np.uint8], "Future[Outputs]"]


class Batcher:
    """Computes images of several requests together, in the order in which they come.

    A batch has the images that wait when the one before it is finished: a single image is computed at once, and many
    requests at a time share the fixed cost of a batch. Each image has its own future, so no two can be mixed up.

    Parameters
    ----------
    graph : Graph
    batch_size : int
        The most images of a batch.
    most : int
        The number of waiting images above which further ones are refused.
    """

    def __init__(self, graph: Graph, batch_size: int, most: int) -> None:
        self._graph, self._batch_size = graph, batch_size
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue()
        self._most, self._count, self._closed, self._lock = most, 0, False, threading.Lock()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of images that wait or are being computed."""
        return self._count

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> list[Future[Outputs]]:
        """Queue the images (H, W, 3) of a request, all or none; return the future of each one's outputs, with n = 1.

        Raises
        ------
        ResourceError
            Too many images wait, or the batcher is closed.
        """
        futures: list[Future[Outputs]] = [Future() for _ in images]
        with self._lock:
            if self._closed:
                raise ResourceError("the server", "is being stopped", "send the request again later")
            if self._count + len(images) > self._most:
                problem = f"is busy: {self._count} images wait, and {self._most} may"
                raise ResourceError("the server", problem, "send the request again later")
            self._count += len(images)
            for waiting in zip(images, futures, strict=True):
                self._waiting.put(waiting)
        return futures

    def close(self) -> None:
        """Compute what waits, and end the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            running = [(pixels, future) for pixels, future in batch if future.set_running_or_notify_cancel()]
            try:
                outputs = self._graph.batch(np.stack([pixels for pixels, _ in running])) if running else None
            except Exception as error:  # the requests of this batch get it; the thread goes on
                for _, future in running:
                    future.set_exception(error)
            else:
                for index, (_, future) in enumerate(running):
                    assert outputs is not None
                    future.set_result(outputs.row(index))
            with self._lock:
                self._count -= len(batch)

    def _next_batch(self) -> list[_Waiting] | None:
        """Wait for an image, and return it with those that wait behind it; None once the batcher is closed."""
        first = self._waiting.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < self._batch_size:
            try:
                each = self._waiting.get_nowait()
            except queue.Empty:
                break
            if each is None:
                self._waiting.put(None)  # after this batch, the thread ends
                break
            batch.append(each)
        return batch
