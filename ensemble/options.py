"""The options of each command, made from the config models.

`PARTS` says which fields of which models a command takes. The small tables below it say what differs on a command line
from the models; everything else (type, default, bounds, description, panel) is read from them. An option reaches its
model as text, so that pydantic checks all options of a command and names every fault at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from ensemble.command_options import PARTS, RENAMED, Part
from ensemble.config import AugmentConfig
from ensemble.config_fields import (
    PANELS,
    RUN,
)
from ensemble.config_reading import Location, faults_of, part_of
from ensemble.errors import ConfigError

# --- what differs on the command line ---------------------------------------------------------------------------------

ARGUMENTS = {
    **dict.fromkeys(("fit", "explore", "predict"), ("images",)),
    **dict.fromkeys(("report", "clean", "verify", "export", "distil"), ("run",)),
    "remove-member": ("name",),
    "evaluate": ("label_file",),
    "compare": ("a", "b"),
    "run": ("config",),
    "trial": ("config",),
    "bench": ("subjects",),
    "serve": ("model",),
    "push": ("run", "name"),
}
"""Options that are given by position, without a name."""

BY_NAME_TOO = {"predict": "images", "report": "run", "clean": "run", "verify": "run", "export": "run", "distil": "run"}
"""The argument of a command that may also be given as an option of its name, as in other commands."""

SECOND_NAMES = {"label_column": "target"}
"""Options that have a second name in every command."""

DEFAULTS: dict[tuple[str, str], Any] = {("predict", "tta"): False}
"""Defaults of flags that differ from the model's: `predict` without `--tta` has always been plain prediction."""

ALIASES = {
    ("train-member", "no_pretrained"): ("pretrained", "no"),
    ("distil", "no_pretrained"): ("pretrained", "no"),
    ("train-member", "clean"): ("cleaning", "yes"),
}
"""Hidden flags, each mapped to the option that it sets and the value."""

DESCRIPTIONS = {
    ("run", "images"): "Learn from other images: a folder, a zip, or a CSV or Parquet file.",
    ("run", "predict"): "Label other images, which may be given as to `thera predict`.",
    ("run", "epochs"): "Train every member for this many epochs.",
    ("bench", "labels"): "Read the label of image i from line i of this text file.",
}
"""Descriptions that differ from the model's."""

UNSET = {"run": "as the file says", "demo": "checkpoints/demo"}
"""What a command uses if an optional option is not given."""

YAML_ONLY = {
    "RunConfig.about": "it describes the file that it stands in",
    "RunConfig.targets": "they belong to the data of the file",
    "RunConfig.joined": "it belongs to the data of the file",
    **{f"AugmentConfig.{name}": "a mapping is written in YAML" for name in AugmentConfig.model_fields},
}
"""Fields without an option in any command, with the reason."""

_BOOLEANS = {"yes": True, "no": False}
"""The words for booleans in options that also take names, as in YAML."""


# --- from models to parameters ----------------------------------------------------------------------------------------


class PanelCommand(TyperCommand):
    """A command whose plain-text help groups the options by panel, as the help on a terminal does."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def build_command(name: str, description: str, work: Callable[..., None], rich: bool) -> Any:
    """Return the command: its options, and what it does with their values.

    Parameters
    ----------
    name : str
        One of `PARTS`.
    description : str
        The text of its help.
    work : callable
        Called with the checked values, by keyword.
    rich : bool
        Whether the help is drawn in panels, for a terminal; otherwise it is plain text.
    """

    def call(**given: Any) -> None:
        work(**checked(name, given))

    offered = [(option_name, part) for part in PARTS[name] for option_name in part.fields]
    arguments = ARGUMENTS.get(name, ())
    offered.sort(key=lambda each: (each[0] not in arguments, PANELS.index(_panel(*each))))
    parameters = [_parameter(name, option_name, part, rich) for option_name, part in offered]
    if name in BY_NAME_TOO:
        same = BY_NAME_TOO[name]
        typed = typer.Option(
            f"--{_dashed(same)}", help=f"Give {same.upper()} by name.", rich_help_panel=RUN, metavar="PATH"
        )
        parameters.append(_keyword(f"{same}_by_name", Annotated[Optional[list[str]], typed], None))
    for (command, alias), (target, value) in ALIASES.items():
        if command == name:
            flag = typer.Option(f"--{_dashed(alias)}", help=f"Set --{_dashed(target)} {value}.", hidden=True)
            parameters.append(_keyword(alias, Annotated[bool, flag], False))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode="rich" if rich else None, pretty_exceptions_enable=False)
    app.command(name, cls=PanelCommand, help=description)(call)
    return typer.main.get_command(app)


def _parameter(command: str, name: str, part: Part, rich: bool) -> inspect.Parameter:
    field = part.model.model_fields[part.fields[name]]
    panel = _panel(name, part)
    text = _help(command, name, field, part.optional)
    if rich:
        text = text.replace("[", "\\[")  # rich would read [...] as a style
    kind = _bare(field.annotation)
    if kind is bool:
        default = DEFAULTS.get((command, name), field.default)
        flags = f"--{_dashed(name)}" + (f"/--no-{_dashed(name)}" if field.default else "")
        return _keyword(
            name, Annotated[bool, typer.Option(flags, help=text, rich_help_panel=panel, show_default=False)], default
        )
    value: Any = Optional[list[str]] if get_origin(kind) is tuple else Optional[str]
    if name not in ARGUMENTS.get(command, ()):
        choices = _choices(field)
        names = [name, SECOND_NAMES[name]] if name in SECOND_NAMES else [name]
        typed = typer.Option(
            *(f"--{_dashed(each)}" for each in names),
            help=text,
            rich_help_panel=panel,
            metavar=_metavar(kind),
            autocompletion=(lambda: choices) if choices else None,
        )
        return _keyword(name, Annotated[value, typed], None)
    argument = typer.Argument(help=text, rich_help_panel="Arguments", metavar=name.upper())
    if field.is_required() and value is Optional[str] and BY_NAME_TOO.get(command) != name:
        return _keyword(name, Annotated[str, argument], inspect.Parameter.empty)
    return _keyword(name, Annotated[value, argument], None)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _help(command: str, name: str, field: FieldInfo, optional: bool) -> str:
    """Return the field's description with its choices, its bounds and its default."""
    facts = [", ".join(_choices(field)), _bounds(field)]
    default = DEFAULTS.get((command, name), field.default)
    if optional:
        facts = [UNSET[command]]
    elif field.is_required():
        facts.append("" if name in ARGUMENTS.get(command, ()) else "required")  # typer says it of arguments
    elif isinstance(default, tuple):
        facts = ["default: " + ", ".join(default)]
    elif default in (None, ""):
        facts.append(f"default: {_extra(field)['unset']}" if _extra(field)["unset"] else "")
    elif isinstance(default, bool) and _bare(field.annotation) is bool:
        facts = [f"default: {'' if default else 'no-'}{_dashed(name)}"] if field.default else []
    else:
        facts.append(f"default: {_word(default)}")
    shown = "; ".join(fact for fact in facts if fact)
    description = DESCRIPTIONS.get((command, name), str(field.description))
    return f"{description} [{shown}]" if shown else description


def _panel(name: str, part: Part) -> str:
    return _extra(part.model.model_fields[part.fields[name]])["panel"]


def _extra(field: FieldInfo) -> dict[str, str]:
    assert isinstance(field.json_schema_extra, dict)
    return {key: str(value) for key, value in field.json_schema_extra.items()}


def _bare(annotation: Any) -> Any:
    """Return a field's type without None."""
    others = [each for each in get_args(annotation) if each is not type(None)]
    return others[0] if type(None) in get_args(annotation) and len(others) == 1 else annotation


def _choices(field: FieldInfo) -> list[str]:
    kind = _bare(field.annotation)
    return [_word(value) for value in get_args(kind)] if get_origin(kind) is Literal else []


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _bounds(field: FieldInfo) -> str:
    bounds = {
        name: f"{getattr(bound, name):g}"
        for bound in field.metadata
        for name in ("gt", "ge", "lt", "le")
        if getattr(bound, name, None) is not None
    }
    if bounds.keys() == {"ge", "le"}:
        return f"{bounds['ge']} to {bounds['le']}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return ", ".join(f"{signs[name]}{bound}" for name, bound in bounds.items())


def _metavar(kind: Any) -> str:
    names = {int: "INT", float: "FLOAT", Path: "PATH"}
    return names.get(kind, "NAME" if get_origin(kind) in (Literal, Union) else "TEXT")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


# --- from text to values ----------------------------------------------------------------------------------------------


def checked(command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command's function for the options as they were given.

    Raises
    ------
    ConfigError
        Some values are missing or wrong; all of them are named.
    """
    given, faults = dict(given), []
    if same := BY_NAME_TOO.get(command):
        # in this order, `--images *.jpg` keeps the order of the files: the first is the option's, the others follow
        by_name, by_position = given.pop(f"{same}_by_name") or [], given[same] or []
        values = by_name + (by_position if isinstance(by_position, list) else [by_position])
        if not _is_list(command, same) and len(values) > 1:
            faults.append(f"{same.upper()} is given {len(values)} times")
        given[same] = (values or None) if _is_list(command, same) else values[-1] if values else None
    for (owner, alias), (target, value) in ALIASES.items():
        if owner == command and given.pop(alias):
            if given[target] is not None:
                faults.append(f"--{_dashed(alias)} and --{_dashed(target)} exclude each other")
            given[target] = value
    arguments: dict[str, Any] = {}
    for part in PARTS[command]:
        model = part.model if part.key else part_of(part.model, part.fields, part.optional)
        values = {name if not part.key else field: _value(part, name, given) for name, field in part.fields.items()}
        try:
            result = model.model_validate({key: value for key, value in values.items() if value is not None})
        except ValidationError as error:
            faults += faults_of(error, model, lambda location: _shown(command, location))
            continue
        arguments |= {part.key: result} if part.key else {name: getattr(result, name) for name in part.fields}
    if faults:
        raise ConfigError(f"thera {command}", "; ".join(faults), f"see thera {command} --help")
    return arguments


def _is_list(command: str, name: str) -> bool:
    part = next(part for part in PARTS[command] if name in part.fields)
    return get_origin(_bare(part.model.model_fields[part.fields[name]].annotation)) is tuple


def _value(part: Part, name: str, given: Mapping[str, Any]) -> Any:
    field = part.model.model_fields[part.fields[name]]
    if set(_choices(field)) & set(_BOOLEANS):
        return _BOOLEANS.get(given[name], given[name])
    return given[name]


def _shown(command: str, location: Location) -> str:
    """Return the option at fault as the user typed it."""
    if not location:
        return ""
    name = RENAMED.get(str(location[0]), str(location[0]))
    return name.upper() if name in ARGUMENTS.get(command, ()) else f"--{_dashed(name)}"
