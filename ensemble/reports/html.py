"""Pages for people: one HTML file each, which opens from disk, loads nothing from a network and prints well."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ensemble.errors import printable

if TYPE_CHECKING:
    from jinja2 import Environment

STYLE = "page.css"
"""The style sheet of all pages, in `templates/`."""


@dataclass(frozen=True)
class Figure:
    """A picture of a page.

    Attributes
    ----------
    title : str
    caption : str
        One sentence that says what to see in it.
    alt : str
        What the picture shows, for those who cannot see it.
    picture : bytes
        An SVG, PNG or WebP file.
    wide : bool
        Whether it takes the whole width of the page.
    """

    title: str
    caption: str
    alt: str
    picture: bytes
    wide: bool = False

    @property
    def uri(self) -> str:
        """Return the picture as a data URI."""
        return data_uri(self.picture)


@dataclass(frozen=True)
class Tile:
    """A number of the top of a page: its `name`, its `value`, and what stands `beside` it, such as an interval."""

    name: str
    value: str
    beside: str = ""


@dataclass(frozen=True)
class Card:
    """One image or more in a list: `images` as pairs of an alternative text and a data URI, the `name`, and `lines`."""

    images: tuple[tuple[str, str], ...]
    name: str
    lines: tuple[str, ...]


def page(template: str, scripts: Sequence[str] = (), **values: Any) -> bytes:
    """Return a page as HTML.

    The page has a content security policy that allows its own style sheet, its own scripts (by their hashes) and
    pictures in data URIs, and nothing else. All values are escaped; what comes from file names should pass the filter
    `text`, which also makes control characters and marks of the direction of writing visible.

    Parameters
    ----------
    template : str
        The name of a template in `templates/`, which extends `page.html`.
    scripts : sequence of str
        The names of the scripts in `templates/` that the page runs, in order.
    **values
        What the template shows. A template that names a value that is missing is an error.
    """
    style = _resource(STYLE)
    sources = [_resource(name) for name in scripts]
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hashed(style)}",
            f"script-src {' '.join(map(_hashed, sources)) or repr('none')}",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    html = _environment().get_template(template).render(style=style, scripts=sources, policy=policy, **values)
    return html.encode()


def data_uri(picture: bytes) -> str:
    """Return an SVG, PNG, JPEG or WebP file as a data URI.

    Raises
    ------
    ValueError
        The bytes are none of these.
    """
    head = picture[:64].lstrip()
    if head.startswith((b"<svg", b"<?xml")):
        kind = "svg+xml"
    elif head.startswith(b"\x89PNG"):
        kind = "png"
    elif head.startswith(b"\xff\xd8"):
        kind = "jpeg"
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "webp"
    else:
        raise ValueError("no SVG, PNG, JPEG or WebP file")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ensemble.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["text"] = printable
    return environment


def _resource(name: str) -> str:
    return (files("ensemble.reports") / "templates" / name).read_text(encoding="utf-8")


def _hashed(source: str) -> str:
    """Return the source expression of an inline element for a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
