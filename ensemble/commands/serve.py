"""`thera serve`: answers over HTTP with an exported model. No torch here."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from ensemble.errors import ResourceError, Stopped, printable
from ensemble.extras import refuse_missing
from ensemble.progress import Say, silent
from ensemble.runtime.classifier import OnnxClassifier
from ensemble.serve_config import ServeConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

GRACE_SECONDS = 10
"""The time that requests have to end after a signal. A second signal ends the process at once."""


def serve(config: ServeConfig, say: Say = silent) -> None:
    """Serve a model until SIGINT or SIGTERM; requests that have begun are finished then.

    Parameters
    ----------
    config : ServeConfig
    say : callable
        Receives the address, and that the service has ended.

    Raises
    ------
    ResourceError
        The extra is not installed, or the address cannot be used.
    ArtifactError
        The model is missing, damaged, changed, of another program, or of a newer version.
    """
    refuse_missing_server()
    with _listening(config) as listener:
        app = create_app(config)
        import uvicorn

        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        say(f"serving {printable(config.model)} at http://{shown}:{port} (its pages: /docs); Ctrl-C ends it")
        with contextlib.suppress(Stopped):  # a signal is how a service ends, so it is no failure
            uvicorn.Server(settings).run(sockets=[listener])
        say("the service has ended")


def create_app(config: ServeConfig) -> FastAPI:
    """Return the ASGI application of a model, for a server of your own.

    Parameters
    ----------
    config : ServeConfig
        Host and port are not used.

    Raises
    ------
    ResourceError
        The extra is not installed.
    ArtifactError
        The model is missing, damaged, changed, of another program, or of a newer version.
    """
    refuse_missing_server()
    from ensemble.runtime import server

    return server.create_app(OnnxClassifier(config.model, config.threads), config)


def refuse_missing_server() -> None:
    """Raise `ResourceError` where a package of the extra is not installed."""
    refuse_missing("serve", "thera serve")


def _listening(config: ServeConfig) -> socket.socket:
    """Return a socket that listens at the address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number and number > 0 else str(error)
        problem = f"cannot listen at port {config.port} ({printable(reason)})"
        raise ResourceError(printable(config.host), problem, "give another --port or --host") from None
