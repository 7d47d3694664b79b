"""Pages in Debian's chromium, which must be silent and load nothing from a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--no-first-run")  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start chromium once for all tests of pages."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open pages from disk; at the end none of them has printed, raised, asked or requested anything.

    Options are those of `browser.new_page`. All pages of a test are one file; each has a storage of its own.
    """
    faults, pages = list[str](), list[Any]()

    def opened(content: bytes, **options: Any) -> Any:
        path = tmp_path / "page.html"
        path.write_bytes(content)
        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: _is_local(request.url) or faults.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert faults == []


def _is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:"))
