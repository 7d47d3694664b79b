"""The frame of the pages: what it allows, and what it escapes."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from jinja2 import DictLoader, UndefinedError

from ensemble.reports import html
from ensemble.reports.html import Figure, data_uri, page

HOSTILE = "<script>alert('\"')</script>\u202egnp.exe"


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> str:
    """Add a template that shows a name."""
    environment = html._environment().overlay(
        loader=DictLoader(
            {
                "page.html": html._resource("page.html"),
                "own.html": "{% extends 'page.html' %}{% block content %}<p>{{ name | text }}</p>{% endblock %}",
            }
        )
    )
    monkeypatch.setattr(html, "_environment", lambda: environment)
    return "own.html"


def test_a_hostile_name_stays_text(template: str) -> None:
    text = page(template, name=HOSTILE).decode()
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#39;&#34;&#39;)&lt;/script&gt;\\u202egnp.exe" in text


def test_the_policy_allows_the_inline_style_and_nothing_else(template: str) -> None:
    text = page(template, name="x").decode()
    policy = re.search('Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")  # type: ignore[index]
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)[1]  # type: ignore[index]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "script-src 'none'" in policy
    assert "http://" not in text and "https://" not in text


def test_a_missing_value_is_an_error(template: str) -> None:
    with pytest.raises(UndefinedError, match="name"):
        page(template)


def test_pictures_are_data_uris() -> None:
    assert data_uri(b"<?xml version='1.0'?><svg/>").startswith("data:image/svg+xml;base64,")
    assert Figure("title", "caption", "alt", b"\x89PNG\r\n").uri == "data:image/png;base64,iVBORw0K"
    assert data_uri(b"RIFF\0\0\0\0WEBP").startswith("data:image/webp;")
    assert data_uri(b"\xff\xd8\xff").startswith("data:image/jpeg;")
    with pytest.raises(ValueError, match="no SVG, PNG, JPEG or WebP"):
        data_uri(b"GIF89a")
