"""Hook of mkdocs: the references made from the code, and the pages that live elsewhere in the repository.

`command_reference` and `config_reference` read the commands and the config models when the site is built, so that they
cannot differ from the code.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel

from ensemble import cli, config, options

ROOT = Path(__file__).parents[1]

PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "measurements.md": "tests/benchmarks/README.md",
    "simulations.md": "tests/simulations/README.md",
    "record.md": "checkpoints/therapanacea/README.md",
    "recipes.md": "checkpoints/recipes/README.md",
}
"""Pages of the site -> their files outside docs/, which are also read where they lie."""

LINK = re.compile(r"(!?\[[^]]*\]\()([^)#:\s]+)(#[^)]*)?\)")
"""A Markdown link to a file: everything before the path, the path, and the anchor."""


# --- what mkdocs calls ------------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and those that live elsewhere."""
    from mkdocs.structure.files import File

    contents = {page: (ROOT / source).read_text(encoding="utf-8") for page, source in PAGES.items()}
    contents |= {"commands.md": command_reference(), "configuration.md": config_reference()}
    for page, content in contents.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return the page with its links to files of the repository turned into links of the site."""
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, page: str) -> str:
    """Return the text with relative links that hold on the site.

    Parameters
    ----------
    markdown : str
        Its links are relative to the file's place in the repository.
    page : str
        The page's name on the site.
    """
    source = Path(PAGES.get(page, f"docs/{page}"))
    on_site = {origin: name for name, origin in PAGES.items()}

    def moved(match: re.Match[str]) -> str:
        target = os.path.normpath(source.parent / match[2])
        name = on_site.get(target) or target.removeprefix("docs/")
        return f"{match[1]}{name}{match[3] or ''})"

    return LINK.sub(moved, markdown)


# --- the references ---------------------------------------------------------------------------------------------------


def command_reference() -> str:
    """Return a chapter for each command: its usage, what it does, and its options by panel."""
    lines = [
        "# Commands",
        "",
        "This page is made from the code. `thera COMMAND --help` shows the same. `thera --version` shows the version, "
        "and `thera --debug COMMAND` the traceback of an error.",
    ]
    for name, command in cli.COMMANDS.items():
        built = options.build_command(name, command.summary, lambda **_: None, rich=False)
        context = typer.Context(built, info_name=f"thera {name}")
        usage = built.get_usage(context).removeprefix("Usage: ")
        lines += ["", f"## thera {name}", "", f"    {' '.join(usage.split())}", "", command.summary]
        lines += ["", command.details] if command.details else []
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in built.params:
            record = parameter.get_help_record(context)
            if record is not None:
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(record)
        for panel, records in panels.items():
            lines += ["", f"**{panel}**", "", "| option | meaning |", "| --- | --- |"]
            lines += [f"| {_option(option)} | {_cell(' '.join(text.split()))} |" for option, text in records]
    return "\n".join(lines) + "\n"


def config_models() -> list[type[BaseModel]]:
    """Return the public config models: those of `ensemble.config`, then further ones that commands take."""
    declared = [value for value in vars(config).values() if isinstance(value, type)]
    taken = [part.model for parts in options.PARTS.values() for part in parts]
    models = [each for each in dict.fromkeys([*declared, *taken]) if issubclass(each, BaseModel)]
    return [each for each in models if each not in (BaseModel, config.Frozen) and not each.__name__.startswith("_")]


def config_reference() -> str:
    """Return a chapter for each config model, with a row for each key."""
    lines = [
        "# Configuration",
        "",
        "This page is made from the code. `thera run FILE.yaml` reads a RunConfig; from Python, each model is a class "
        "of `ensemble.config`. Unknown keys are refused with the nearest known one, and all faults of a file are named "
        "at once.",
    ]
    for model in config_models():
        lines += ["", f"## {model.__name__}", "", inspect.cleandoc(model.__doc__ or ""), ""]
        lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        for name, field in model.model_fields.items():
            unset = (field.json_schema_extra or {}).get("unset") or "not set"
            default = unset if field.default in (None, "") else f"`{_cell(_default(field.default))}`"
            default = "required" if field.is_required() else default
            kind = _type(field.annotation)
            meaning = field.description or f"See {kind.removeprefix('list of ')}."
            lines.append(f"| `{name}` | {_cell(kind)} | {default} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return f"{type(value).__name__}()"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    text = re.sub(r"typing\.|pathlib\.(_local\.)?|ensemble\.\w+\.|\s*\| None|, \.\.\.", "", text)
    text = re.sub(r"Literal\[([^]]*)\]", lambda match: match[1].replace("'", ""), text)
    text = re.sub(r"tuple\[(.*)\]", r"list of \1", text)
    return "a name or AugmentConfig" if "Annotated" in text else text


def _option(text: str) -> str:
    """Return an option as code; in code, `<` stays as it is."""
    return f"`{text}`".replace("|", "\\|")


def _cell(text: str) -> str:
    """Return text that a cell of a table can hold."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
