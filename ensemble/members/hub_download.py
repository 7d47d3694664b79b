"""Download what an architecture needs from the Hugging Face hub, with a clear answer within seconds where that fails.

The hub's client (version 2.4.0) repeats a refused request five times, and waits in between as long as the server
requests, without a limit. A silent server has 10 s for a first try and a minute for each of six more. Here each request
has two tries, and the whole has `LIMIT` seconds without a new byte. What is in the cache is used as it is: the hub is
not contacted, so that all folds of a member, and the same member at another time, start from the same commit.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants, get_hf_file_metadata, get_session, get_token, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # public, without a declaration
from huggingface_hub.utils import tqdm as client_bar  # type: ignore[attr-defined]

from ensemble.errors import ResourceError, TheraError
from ensemble.hub_refusals import LOGIN, stated_reason, waiting_time, without_token
from ensemble.members.hub_cache import CONFIG, HubSource

TRIES = 2
"""How often a request is sent that the hub does not answer, or answers with a status in `TEMPORARY`."""

TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
"""The statuses after which a second try may succeed."""

TIMEOUT = 10.0
"""Seconds that a request waits for the hub; the client's own default."""

PAUSE = 1.0
"""Seconds between two tries."""

LONGEST_PAUSE = 5
"""Seconds that the hub may request to wait; if it requests more, there is no second try."""

LIMIT = 28.0
"""Seconds without a new byte after which a download is given up, so that the answer comes within 30 s."""

REMEMBERED = 60.0
"""Seconds for which a hub that does not answer is not contacted again, so that several members wait only once."""

OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})
"""The errors of a full disk, and of a folder that may not be written."""

_silent_until: dict[str, float] = {}

T = TypeVar("T")

FROM_FILE = "give the architecture by its name in timm and --weights FILE.safetensors"
FROM_SCRATCH = (
    "give --weights FILE.safetensors, or train from scratch with --no-pretrained "
    "(in a YAML file weights: FILE or pretrained: false)"
)


def alternatives(in_hub: bool) -> str:
    """Return what a user can do without the hub."""
    return FROM_FILE if in_hub else FROM_SCRATCH


def fetched(source: HubSource, with_weights: bool) -> HubSource:
    """Return a source at the commit whose files are in the cache, after the download of those that were not.

    Parameters
    ----------
    source : HubSource
    with_weights : bool
        Whether the weights are needed beside the config that names the architecture.

    Raises
    ------
    ResourceError
        A file is not cached, and the hub refuses it, does not answer or may not be contacted.
    """
    needed = ([(CONFIG,)] if source.in_hub else []) + ([source.weights] if with_weights else [])
    for names in needed:
        path = source.cached(names) or _downloaded(source, names)
        source = source.at(path.parent.name)
    return source


def _downloaded(source: HubSource, names: tuple[str, ...]) -> Path:
    """Download the first of some files that the repository has."""
    if _silent_until.get(constants.ENDPOINT, 0.0) > time.monotonic():
        raise _error(source, f"{constants.ENDPOINT} does not answer", "connect")
    try:
        return _within_limit(lambda on_byte: _download(source, names, on_byte))
    except TheraError:
        raise
    except Exception as error:  # the client may use any HTTP library, and that of its storage has classes of its own
        raise _error(source, *_explained(error, source)) from error


def _download(source: HubSource, names: tuple[str, ...], on_byte: Callable[[], None]) -> Path:
    class Bar(client_bar):
        """The client's progress bar, which also tells that bytes arrive."""

        def update(self, n: float | None = 1) -> Any:
            on_byte()
            return super().update(n)

    missing = list[RemoteEntryNotFoundError]()
    for name in names:
        try:
            _find(source, name)
            with _two_tries():
                path = hf_hub_download(source.repository, name, revision=source.revision, tqdm_class=Bar)
            return Path(path)
        except RemoteEntryNotFoundError as error:
            missing.append(error)
    reason = f"{source.repository} has no {' or '.join(names)}, {stated_reason(missing[-1], get_token())}"
    raise _error(source, reason, "name a repository of a timm network") from missing[-1]


def _find(source: HubSource, name: str) -> None:
    """Request the metadata of a file, up to `TRIES` times.

    The client would fall back to its cache and then try again by itself, with the waiting times of the server.
    """
    address = hf_hub_url(source.repository, name, revision=source.revision)
    for left in reversed(range(TRIES)):
        try:
            metadata = get_hf_file_metadata(address, timeout=TIMEOUT)
            break
        except OfflineModeIsEnabled:
            raise
        except HfHubHTTPError as error:
            if not (left and error.response.status_code in TEMPORARY and _pause(error.response) <= LONGEST_PAUSE):
                raise
            time.sleep(_pause(error.response))
        except Exception as error:  # of the HTTP library
            if not left:
                _silent_until[constants.ENDPOINT] = time.monotonic() + REMEMBERED
                raise _error(source, f"{constants.ENDPOINT} does not answer: {_text(error)}", "connect") from error
            time.sleep(PAUSE)
    if metadata.commit_hash is None or metadata.etag is None:
        reason = f"{constants.ENDPOINT} answers, but not as a model hub: it states no commit or no ETag"
        raise _error(source, reason, "correct HF_ENDPOINT or the settings of proxy and firewall")


def _pause(response: Any) -> float:
    stated = waiting_time(response)
    return PAUSE if stated is None else float(stated)


@contextlib.contextmanager
def _two_tries() -> Iterator[None]:
    """Let a request of this thread fail at the second temporary refusal, and at the first that requests a long wait."""
    session, owner, refused = get_session(), threading.get_ident(), 0

    def count(response: Any) -> None:
        nonlocal refused
        if threading.get_ident() == owner and response.status_code in TEMPORARY:
            refused += 1
            if refused == TRIES or _pause(response) > LONGEST_PAUSE:
                hf_raise_for_status(response)

    before = session.event_hooks
    session.event_hooks = {**before, "response": [*before["response"], count]}
    try:
        yield
    finally:
        session.event_hooks = before


def _within_limit(work: Callable[[Callable[[], None]], T]) -> T:
    """Return the result of a function that runs in a thread, which is left alone after `LIMIT` s without progress.

    The function receives a callable by which it reports progress. No timeout of the client covers the resolution of
    names, nor the download by the hub's own storage library.
    """
    done, results, errors, latest = threading.Event(), list[T](), list[BaseException](), [time.monotonic()]

    def report() -> None:
        latest[0] = time.monotonic()

    def run() -> None:
        try:
            results.append(work(report))
        except BaseException as error:
            errors.append(error)
        done.set()

    threading.Thread(target=run, name="hub download", daemon=True).start()
    while not done.wait(max(0.01, latest[0] + LIMIT - time.monotonic())):
        if time.monotonic() - latest[0] >= LIMIT:
            raise TimeoutError(f"sends nothing for {LIMIT:.0f} s")
    if errors:
        raise errors[0]
    return results[0]


def _error(source: HubSource, reason: str, remedy: str) -> ResourceError:
    where, verb = (
        (f"architecture {source.name}", "is") if source.in_hub else (f"pretrained weights of {source.name}", "are")
    )
    if source.revision != constants.DEFAULT_REVISION and f"@{source.revision}" not in source.name:
        where += f" at commit {source.revision}"
    problem = f"{verb} not in {constants.HF_HUB_CACHE} and cannot be downloaded ({reason})"
    return ResourceError(where, problem, f"{remedy}, or {alternatives(source.in_hub)}")


def _text(error: BaseException) -> str:
    return without_token(error, get_token()) or type(error).__name__


def _explained(error: Exception, source: HubSource) -> tuple[str, str]:
    """Return why the hub gives no file, in its own words, and what to do."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids it", "unset HF_HUB_OFFLINE"
    if isinstance(error, HfHubHTTPError):
        return _refused(error, source)
    if isinstance(error, TimeoutError):
        return f"{constants.ENDPOINT} {_text(error)}", "connect"
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return _text(error), "set HF_HUB_CACHE to a folder with room that may be written"
    return f"the download fails: {_text(error.__cause__ or error)}", "give the same command again"


def _refused(error: HfHubHTTPError, source: HubSource) -> tuple[str, str]:
    response, reason = error.response, stated_reason(error, get_token())
    repository, status = source.repository, error.response.status_code
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{repository}"
        return f"{repository} is gated, {reason}", f"ask for access on {page} and {LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no revision {source.revision}, {reason}", "give a revision that it has"
    if isinstance(error, RepositoryNotFoundError):
        remedy = "correct the name" if source.in_hub else "set HF_ENDPOINT to a hub that has it"
        return f"there is no {repository}, or only for those who may read it, {reason}", f"{remedy}, or {LOGIN}"
    if status == 401:
        return f"the hub refuses the token, {reason}", f"{LOGIN} again, or correct HF_TOKEN"
    if status == 403:
        return f"the hub refuses {repository}, {reason}", f"{LOGIN} as a user who may read it"
    if status == 429:
        seconds = waiting_time(response)
        remedy = "later" if seconds is None else f"after {seconds} seconds"
        return f"the hub limits requests, {reason}", f"give the same command again {remedy}"
    return f"the hub fails, {reason}", "give the same command again later"
