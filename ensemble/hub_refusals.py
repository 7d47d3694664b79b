"""What the Hugging Face hub says where it refuses a request. Nothing of its client is imported."""

from __future__ import annotations

from typing import Any

from ensemble.errors import printable

LOGIN = "log in with `hf auth login`"


def stated_reason(error: Any, token: str | None) -> str:
    """Return the HTTP status of a refusal and the server's own words, as one line without the token.

    Parameters
    ----------
    error : huggingface_hub.errors.HfHubHTTPError
    token : str or None
        The token that was sent, which a server may repeat.
    """
    response = error.response
    stated = error.server_message or response.headers.get("X-Error-Message") or response.reason_phrase
    return f"{response.status_code}: {without_token(stated, token)}"


def waiting_time(response: Any) -> int | None:
    """Return the seconds after which a server that limits requests takes the next one; None where it does not say."""
    stated = response.headers.get("Retry-After", "")
    return int(stated) if stated.isdecimal() else None


def without_token(text: object, token: str | None) -> str:
    """Return a text as one line of at most 300 characters in which the token does not occur."""
    shown = str(text).replace(token, "…") if token else str(text)
    return printable(" ".join(shown.split()))[:300]
