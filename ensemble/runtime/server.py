"""The HTTP service of an exported model, as an ASGI application of FastAPI.

    POST /predict   one image as the body, or several as files of a form; label, probability and logit of each
    GET  /health    whether the service answers, and how many images wait
    GET  /model     what the model states about itself

An image is decoded under the image policy of the model, as `OnnxClassifier` does. An image that cannot be used gets an
error of its own, and the others of its request are labelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ensemble import __version__
from ensemble.data.pixels import inspect
from ensemble.errors import DataError, ResourceError, TheraError, printable
from ensemble.machine import available_cores
from ensemble.runtime.batching import Batcher
from ensemble.runtime.classifier import BATCH_PIXELS, OnnxClassifier
from ensemble.runtime.facts import plain_facts
from ensemble.runtime.outputs import Outputs
from ensemble.serve_config import ServeConfig

MEGA = 1_000_000
RETRY_SECONDS = 1
"""The time after which a client whose request was refused as too many may try again (header Retry-After)."""


class Labelled(BaseModel):
    """What the service says of one image. One of `label` and `error` is there."""

    name: str
    """The name of the file in the form; empty for an image that is the body."""
    label: int | str | None = None
    """0 or 1, or the name of the class."""
    index: int | None = None
    """The index of the class, 0 to C - 1."""
    probability: float | list[float] | None = None
    """The probability of label 1, or of each class, at the class shares of the training images."""
    logit: float | list[float] | None = None
    """The stacked logit, or that of each class."""
    error: str | None = None
    """Why the image cannot be used."""


class Answer(BaseModel):
    """The answer to a request: an entry for each image, in the order of the request."""

    images: list[Labelled]


class Refused(BaseModel):
    """The answer where no image is labelled."""

    error: str


class Health(BaseModel):
    """That the service answers, and how many images wait or are being computed."""

    status: str
    waiting: int


BODIES = 8
"""The bytes of all requests at a time are bounded by those of so many requests of the greatest length."""


class LimitedBody:
    """Refuses a request whose body is too long, or that comes while the bodies of others are.

    A body is refused by its declared length, or as soon as too much of it has come.

    Parameters
    ----------
    app : ASGI application
    most : int
        Bytes of a body; all bodies at a time may have `BODIES` times as many.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most, self.held = app, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count the bytes of its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.most:
            await _refusal(413, self.problem)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            length = len(message.get("body", b""))
            seen, self.held = seen + length, self.held + length
            if seen > self.most:
                raise HTTPException(413, self.problem)
            if self.held > BODIES * self.most:
                raise _busy("the server holds too many images of other requests")
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            self.held -= seen

    @property
    def problem(self) -> str:
        """What is said of a body that is too long."""
        return f"the request has more than {self.most / MEGA:g} megabytes; send fewer or smaller images"


def create_app(classifier: OnnxClassifier, config: ServeConfig) -> FastAPI:
    """Return the application that serves a model; its batches end with the application's lifespan.

    Parameters
    ----------
    classifier : OnnxClassifier
    config : ServeConfig
        The limits; its address is not used.
    """
    height, width = classifier.facts.size
    batch_size = max(1, min(config.batch_size, BATCH_PIXELS // (height * width)))
    batcher = Batcher(classifier.graph, batch_size, config.queue)

    decoding = asyncio.Semaphore(len(available_cores()))  # large images take much memory while they are decoded

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)

    app = FastAPI(title="thera", version=__version__, summary="Labels images with one model.", lifespan=lifespan)
    app.add_middleware(LimitedBody, most=round(config.max_megabytes * MEGA))

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        return _refusal(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        return _refusal(500, f"the server failed ({type(error).__name__}); nothing was labelled")

    @app.get("/health")
    async def health() -> Health:
        return Health(status="ok", waiting=batcher.waiting)

    @app.get("/model")
    async def model() -> dict[str, Any]:
        return {"sha256": classifier.sha256, **plain_facts(classifier.facts)}

    @app.post("/predict", response_model=Answer, response_model_exclude_none=True, **_DOCUMENTED)
    async def predict(request: Request) -> Answer | JSONResponse:
        try:
            async with asyncio.timeout(config.timeout):
                return await _answer(request, classifier, batcher, decoding, config)
        except ClientDisconnect:
            raise HTTPException(400, "the client has gone") from None
        except TimeoutError:
            raise HTTPException(504, f"the request took longer than {config.timeout:g} s; send fewer images") from None
        except ResourceError as error:
            raise _busy(str(error)) from None

    return app


async def _answer(
    request: Request, classifier: OnnxClassifier, batcher: Batcher, decoding: asyncio.Semaphore, config: ServeConfig
) -> Answer | JSONResponse:
    files = await _files(request, config.max_images)
    async with decoding:
        decoded = await run_in_threadpool(lambda: [_decoded(data, name, classifier, config) for name, data in files])
    usable = [index for index, each in enumerate(decoded) if not isinstance(each, str)]
    futures = batcher.submit([pixels for pixels in decoded if not isinstance(pixels, str)])
    waiting = [asyncio.wrap_future(future) for future in futures]
    try:
        outputs = dict(zip(usable, await asyncio.gather(*waiting), strict=True))
    except ResourceError:
        raise
    except TheraError as error:
        raise HTTPException(500, str(error)) from None
    finally:  # of a request that is given up, what still waits is not computed
        for future in futures:
            future.cancel()
    answers = [
        Labelled(name=name, error=each) if isinstance(each, str) else _labelled(name, outputs[index], classifier)
        for index, ((name, _), each) in enumerate(zip(files, decoded, strict=True))
    ]
    if usable:
        return Answer(images=answers)
    if len(answers) == 1:
        return _refusal(422, str(answers[0].error))
    return JSONResponse(
        {"error": "no image can be used", "images": [each.model_dump(exclude_none=True) for each in answers]}, 422
    )


async def _files(request: Request, most: int) -> list[tuple[str, bytes]]:
    """Return name and bytes of each image of a request: the files of a form, or the body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        files = [("", await request.body())]
    elif kind == "multipart/form-data":
        async with request.form(max_files=most + 1, max_fields=most + 1) as form:
            fields = [(key, value) for key, value in form.multi_items()]
            if text := [key for key, value in fields if not isinstance(value, UploadFile)]:
                raise HTTPException(422, f"the field {printable(text[0])[:80]} of the form is no file")
            uploads = [value for _, value in fields if isinstance(value, UploadFile)]
            files = [(printable(each.filename or "")[:200], await each.read()) for each in uploads[: most + 1]]
    else:
        raise HTTPException(415, "send an image as the body (Content-Type: image/jpeg), or files of a multipart form")
    if len(files) > most:
        raise HTTPException(413, f"the request has more than {most} images; send fewer at a time")
    if not files or (len(files) == 1 and not files[0][1]):
        raise HTTPException(422, "the request has no image")
    return files


def _decoded(data: bytes, name: str, classifier: OnnxClassifier, config: ServeConfig) -> NDArray[np.uint8] | str:
    """Return the pixels of an image, or why it cannot be used."""
    name = name or "the image"
    try:
        header = inspect(data, name)
        if header.width * header.height > config.max_megapixels * MEGA:
            problem = f"has {header.width} × {header.height} pixels; at most {config.max_megapixels:g} megapixels"
            raise DataError(name, f"{problem} are decoded", "make it smaller")
        size = classifier.facts.size
        return classifier.form.pixels(data, name, size, "the model takes", "resize it")[0]
    except DataError as error:
        return str(error)


def _labelled(name: str, outputs: Outputs, classifier: OnnxClassifier) -> Labelled:
    index = int(outputs.y_pred[0])
    return Labelled(
        name=name,
        label=classifier.classes_[index].item(),
        index=index,
        probability=outputs.probabilities[0].tolist(),
        logit=outputs.stacked_logits[0].tolist(),
    )


def _busy(problem: str) -> HTTPException:
    return HTTPException(503, problem, {"Retry-After": str(RETRY_SECONDS)})


def _refusal(status: int, problem: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": problem}, status, headers)


_BINARY = {"type": "string", "format": "binary"}
_DOCUMENTED: dict[str, Any] = {
    "responses": {status: {"model": Refused} for status in (413, 415, 422, 500, 503, 504)},
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": {"images": {"type": "array", "items": _BINARY}}}
                },
                **{f"image/{kind}": {"schema": _BINARY} for kind in ("jpeg", "png", "bmp", "webp")},
            },
        }
    },
}
"""What the OpenAPI page says of `/predict`: its bodies and its errors."""
