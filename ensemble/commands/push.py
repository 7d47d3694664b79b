"""`thera push`: uploads an exported model and the model card of a run to the Hugging Face hub, once it is confirmed."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.commands.export import export
from ensemble.commands.fit_stacker import read_decisions
from ensemble.commands.model_card_file import CARD, MARK, OTHER_CARD, is_replaceable
from ensemble.errors import ArtifactError, ConfigError, ResourceError, TheraError, printable
from ensemble.extras import refuse_missing
from ensemble.hub_refusals import LOGIN, stated_reason, waiting_time, without_token
from ensemble.machine import provide_cache_folder
from ensemble.progress import Say, silent
from ensemble.push_config import PushConfig
from ensemble.push_results import PushResult, Upload
from ensemble.runs import files
from ensemble.runs.run import Run
from ensemble.runtime.classifier import OnnxClassifier
from ensemble.runtime.facts import plain_facts
from ensemble.runtime.onnx_file import Sealed, json_beside, opened

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

WRITE_LOGIN = f"{LOGIN}, or set HF_TOKEN to a token that may write"

REMEDIES = {
    401: WRITE_LOGIN,
    403: "use a token that may write to this repository, or another OWNER",
    404: "see whether OWNER is right, and whether the token may see the repository",
    409: "give the same command again",
    429: "wait, and give the same command again",
}
"""What the user can do, by the HTTP status of the hub's refusal."""

Ask = Callable[[str], bool]
"""Asks the user a question, and returns whether the answer is yes."""


def push(run: Path, config: PushConfig, say: Say = silent, ask: Ask | None = None) -> PushResult:
    """Upload NAME.onnx, NAME.json and the model card of a run, in one commit, once that is confirmed.

    The token is that of the hub's own login or of HF_TOKEN; it is neither shown nor stored.

    Parameters
    ----------
    run : Path
        The run's folder, with a model card.
    config : PushConfig
        With `yes`, nothing is asked.
    say : callable
        Receives what will be uploaded and where to, a line each.
    ask : callable, optional
        Asks the user. Without it, `yes` is needed.

    Raises
    ------
    ConfigError
        Nobody confirms, or the repository is public and must not be.
    ArtifactError
        The model is damaged or of another decision than the run has, or there is no model card.
    ResourceError
        The extra is not installed, there is no token, or the hub refuses or does not answer.
    """
    refuse_missing("export", "thera push")
    if ask is None and not config.yes:
        problem = "uploads nothing without being asked, and there is no terminal to ask at"
        raise ConfigError(f"thera push {config.name}", problem, "give --yes")
    started, folder = time.time(), Run(run)
    folder.read()
    read_decisions(folder)  # a run without a decision is refused before anything is asked or sent
    card = _card(folder)
    api = _api()
    with _reasons(api, config.name):
        private = _is_private(api, config.name)
    if config.private and private is False:
        problem = f"{config.name} is there already and is public"
        raise ConfigError("--private", problem, "make it private in its settings on the hub, or give another name")
    model, file = _model(folder, config, say)
    contents = {
        model.name: file.data,
        json_beside(model).name: files.json_bytes(plain_facts(file.facts)),
        CARD: card + _loading(model.name),
    }
    uploads = tuple(Upload(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items())
    address, is_new = f"{api.endpoint}/{config.name}", private is None
    _show(uploads, address, is_new, config.private if private is None else private, say)
    if not config.yes and not (ask is not None and ask("Upload these files?")):
        raise ConfigError(f"thera push {config.name}", "not confirmed, nothing is uploaded", "answer yes to upload")
    with _reasons(api, config.name):
        commit = _uploaded(api, config, contents, is_new)
    folder.record(f"push {config.name}", started)
    return PushResult(run, address, commit, config.private if private is None else private, is_new, uploads)


def _show(uploads: tuple[Upload, ...], address: str, is_new: bool, private: bool, say: Say) -> None:
    kind = f"{'a new' if is_new else 'the existing'} {'private' if private else 'public'} repository"
    say(f"upload to {address}, {kind}:")
    for upload in uploads:
        say(f"  {printable(upload.name)}  {upload.size / 1e3:.1f} kB  SHA-256 {upload.sha256}")


# --- what is uploaded -------------------------------------------------------------------------------------------------


def _model(run: Run, config: PushConfig, say: Say) -> tuple[Path, Sealed]:
    """Return the file to upload and its checked content: the one that is given, or a new export."""
    path = config.model or export(run.folder, say=say).out
    file = opened(path)
    if file.facts.decision_sha256 != files.file_sha256(run.decision):
        problem = "was exported from another decision than the run has now, which its model card describes"
        raise ArtifactError(printable(path), problem, f"export it again: thera export {printable(run.folder)}")
    OnnxClassifier(path)  # it computes the logits that it states
    return path, file


def _card(run: Run) -> bytes:
    """Return the model card without the line that marks it as thera's: the file of thera, edited or not."""
    mark = f"\n{MARK}".encode()
    for path in (run.folder / CARD, run.folder / OTHER_CARD):
        if files.irregular(path) or not path.is_file():
            continue
        data = path.read_bytes()
        if is_replaceable(path) or mark in data:
            return data.rpartition(mark)[0]
    raise ArtifactError(printable(run.folder), "has no model card", f"run: thera report {printable(run.folder)}")


def _loading(model: str) -> bytes:
    """Return the last chapter of the card, which says how the files of the repository are used."""
    name = printable(model)
    lines = (
        "\n## The files of this repository\n",
        f"`{name}` holds the whole decision as one ONNX file, and `{Path(name).stem}.json` has its facts. The",
        "folder of the run, with the weights of each fold, is not here. The file labels images without torch:\n",
        "    pip install 'thera[runtime]'",
        f"    thera predict --model {name} new_photos\n",
    )
    return "\n".join(lines).encode()


# --- the hub ----------------------------------------------------------------------------------------------------------


def _api() -> HfApi:
    """Return the client of the hub, with the token of its login.

    Raises
    ------
    ResourceError
        There is no token, or the hub's client must not use the network.
    """
    provide_cache_folder()  # the hub's client chooses its folders for good when it is imported
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ResourceError("thera push", "HF_HUB_OFFLINE forbids any access to the hub", "unset it to upload")
    token = get_token()
    if token is None:
        raise ResourceError("thera push", "there is no token for the hub", WRITE_LOGIN)
    return HfApi(token=token, library_name="thera")


def _is_private(api: HfApi, name: str) -> bool | None:
    """Return whether a repository is private, None where there is none that the token may see."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return bool(api.model_info(name).private)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None


def _uploaded(api: HfApi, config: PushConfig, contents: dict[str, bytes], is_new: bool) -> str:
    """Create the repository where there is none, commit the files, and return the hash of the commit."""
    from huggingface_hub import CommitOperationAdd

    if is_new:
        api.create_repo(config.name, private=config.private)
    operations = [CommitOperationAdd(name, data) for name, data in contents.items()]
    commit = api.create_commit(config.name, operations, commit_message="Upload an exported model of thera").oid
    present = {each.rfilename for each in api.model_info(config.name, revision=commit).siblings or ()}
    if missing := [name for name in contents if name not in present]:  # for example by .gitignore of the repository
        problem = f"was uploaded without {printable(', '.join(missing))}"
        raise TheraError(config.name, problem, "see .gitignore in the repository")
    return str(commit)


@contextlib.contextmanager
def _reasons(api: HfApi, name: str) -> Iterator[None]:
    """Raise refusals of the hub and failures of the network as `ResourceError`, with the server's reason."""
    from huggingface_hub.errors import HfHubHTTPError

    where = f"{api.endpoint}/{name}"
    try:
        yield
    except TheraError:
        raise
    except Exception as error:  # the client may use any HTTP library, and that of its storage has classes of its own
        # an upload in a thread fails with an error whose cause is the refusal
        refusal = next((each for each in (error, error.__cause__) if isinstance(each, HfHubHTTPError)), None)
        if refusal is not None:
            raise ResourceError(where, *_refusal(refusal, str(api.token))) from None
        reason = without_token(error.__cause__ or error, str(api.token)) or type(error).__name__
        problem = f"cannot be reached or answers nothing of use ({reason})"
        raise ResourceError(where, problem, "give the same command again") from None


def _refusal(error: HfHubHTTPError, token: str) -> tuple[str, str]:
    """Return what the hub refused, in its words, and what to do."""
    from huggingface_hub.errors import GatedRepoError

    response: Any = error.response
    reason = stated_reason(error, token)
    if isinstance(error, GatedRepoError):
        return f"is gated ({reason})", "ask for access on its page"
    remedy = REMEDIES.get(response.status_code, "give the same command again later")
    if response.status_code == 429 and (seconds := waiting_time(response)) is not None:
        remedy = f"give the same command again after {seconds} seconds"
    return f"the hub refuses it ({reason})", remedy
