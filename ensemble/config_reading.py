"""Reads config models from a YAML file or options, and overrides parts of a model.

All faults of the values are reported together, in one line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError, create_model

from ensemble.config import AugmentConfig, DataConfig, DecisionConfig, MemberConfig, RunConfig
from ensemble.config_fields import Frozen
from ensemble.errors import ConfigError, printable
from ensemble.predict_config import PredictConfig

M = TypeVar("M", bound=BaseModel)


def load_config(path: Path) -> RunConfig:
    """Read a run's YAML file.

    Raises
    ------
    ConfigError
        The file cannot be read, is no plain YAML (duplicate keys, aliases and tags are refused), or has faults; all of
        them are named at once, unknown keys with the nearest known one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, f"cannot be read ({printable(error)})", "give a YAML file in UTF-8") from None
    try:
        values = yaml.load(text, Loader=_PlainLoader)  # noqa: S506  a SafeLoader, made stricter
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two: no such date, nested too deep
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(path, line + printable(getattr(error, "problem", None) or error), "mend the YAML") from None
    if not isinstance(values, dict):
        raise ConfigError(path, "holds no mapping of keys to values", "see configs/demo.yaml")
    return validated(RunConfig, values, path)


def config_file(name: Path) -> Path:
    """Return the path of a YAML file: `name` itself where it exists, or the recipe of that name.

    Raises
    ------
    ConfigError
        There is neither; the nearest names are suggested.
    """
    if name.exists() or name.parent != Path() or name.suffix:
        return name
    recipes = {path.stem: path for path in shipped("recipes").glob("*.yaml")}
    if name.name in recipes:
        return recipes[name.name]
    near = difflib.get_close_matches(name.name.lower().replace("_", "-"), recipes, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"the recipes are {', '.join(sorted(recipes))}"
    raise ConfigError(printable(name), "is neither a file nor the name of a recipe", hint)


def shipped(name: str) -> Path:
    """Return a config that came with the package: inside it where it is installed, in `configs/` in a checkout."""
    package = Path(__file__).parent
    return package / name if (package / name).exists() else package.parent / "configs" / name


def config_text(config: RunConfig, comment: str) -> str:
    """Return a config as the YAML that `load_config` reads, without what has its default, below lines of comment."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def overridden(
    config: RunConfig,
    run: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    folds: int | None = None,
    epochs: int | None = None,
    positive: str | None = None,
    predict: tuple[Path, ...] | None = None,
    out: Path | None = None,
    force: bool = False,
    bad_label: int | None = None,
    follow_links: bool = False,
    on_bad: str | None = None,
    exif: str | None = None,
    near_duplicates: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    classes: int | None = None,
) -> RunConfig:
    """Return the config with the given values in place of its own; None keeps what the config says.

    Where `images` are given, the config's labels, classes, columns and images to predict are not kept: they are of
    other data. A label file inside the run's folder moves with the folder. Where `predict` is given without `out`, its
    label file is in the run's folder. `follow_links`, `on_bad` and `image_column` hold for the images to learn from and
    for those to predict.

    Raises
    ------
    ConfigError
        `out` is given, and there are no images to predict.
    """
    folder, prediction = run or config.run, config.predict
    if prediction is not None and prediction.out is not None and prediction.out.is_relative_to(config.run):
        prediction = prediction.model_copy(update={"out": folder / prediction.out.relative_to(config.run)})
    if images is not None and predict is None:
        prediction = None
    if predict is not None:
        target: dict[str, Any] = {"images": predict, "out": None}
        prediction = (
            PredictConfig.model_validate(target) if prediction is None else prediction.model_copy(update=target)
        )
    if out is not None:
        if prediction is None:
            raise ConfigError("--out", "there is no set to predict", "give --predict")
        prediction = prediction.model_copy(update={"out": out})
    reading = {"follow_links": follow_links or None, "on_bad": on_bad, "image_column": image_column}
    reading = {key: each for key, each in reading.items() if each is not None}
    if prediction is not None:
        of_labels = {
            key: each for key, each in {"force": force or None, "bad_label": bad_label}.items() if each is not None
        }
        prediction = prediction.model_copy(update={**reading, **of_labels})
    changed: dict[str, Any] = {"run": folder, "folds": folds or config.folds, "predict": prediction}
    data: dict[str, Any] = {"labels": labels, "classes": classes, "positive": positive}
    data |= {"label_column": label_column}
    if images is not None:
        data |= {"images": images, "image_column": None}
    else:
        data = {key: each for key, each in data.items() if each is not None}
    kept_unless_given = {"exif": exif, "near_duplicates": near_duplicates}
    data |= {key: each for key, each in kept_unless_given.items() if each is not None}
    changed["data"] = config.data.model_copy(update={**data, **reading})
    if epochs is not None:
        changed["members"] = tuple(member.model_copy(update={"epochs": epochs}) for member in config.members)
    return config.model_copy(update=changed)


def part_of(model: type[BaseModel], fields: Mapping[str, str], optional: bool = False) -> type[BaseModel]:
    """Return a model of some fields of another, under other names.

    Parameters
    ----------
    model : type
    fields : mapping
        The name of each field of the new model -> its name in `model`.
    optional : bool
        Whether every field may be left out, and is None then.
    """
    chosen: dict[str, Any] = {}
    for name, field in fields.items():
        info = model.model_fields[field]
        annotation: Any = info.annotation | None if optional else info.annotation  # type: ignore[operator]
        for bound in info.metadata if optional else ():  # None is exempt from them
            annotation = Annotated[annotation, bound]
        chosen[name] = annotation, None if optional else info
    return create_model(model.__name__, __base__=Frozen, **chosen)


def validated(model: type[M], values: dict[str, Any], where: object) -> M:
    """Return `values` as a `model`, or raise one ConfigError that names every fault."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(where, "; ".join(faults_of(error, model))) from None


Location = tuple[int | str, ...]


def _dotted(location: Location) -> str:
    """Return the location of a value in a file, such as ``members[0].lr``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def faults_of(error: ValidationError, model: type[BaseModel], name: Callable[[Location], str] = _dotted) -> list[str]:
    """Return a phrase for each fault that pydantic reports: the value, the rule that it breaks, and what was given.

    `name` turns the location of a value into the user's name for it: a key of the file, or an option.
    """
    return [_fault(model, fault, name) for fault in error.errors()]


def _fault(model: type[BaseModel], fault: Any, name: Callable[[Location], str]) -> str:
    location = tuple(part for part in fault["loc"] if not str(part).startswith("("))  # without the form of a union
    at = name(location)
    if fault["type"] == "extra_forbidden":
        return f"{printable(at)} is no known key{_nearest(model, location)}"
    if fault["type"] == "missing":
        return f"{at} is missing"
    if fault["type"] == "value_error":
        return f"{at} {fault['msg'].removeprefix('Value error, ')}".lstrip()
    _, _, must = fault["msg"].partition(" should ")  # "Input should be greater than 0"
    for words, sign in SIGNS.items():
        must = must.replace(words, sign)
    must = must.partition(", unable to parse")[0]  # the value that is shown says the same
    return f"{at} must {must or 'be another: ' + fault['msg']}; got {printable(fault['input'])[:80]}"


SIGNS = {
    "greater than or equal to": ">=",
    "greater than": ">",
    "less than or equal to": "<=",
    "less than": "<",
    "True, False": "yes, no",
}
"""Phrases of pydantic's messages, and the shorter ones that replace them."""


def _nearest(model: type[BaseModel], location: Location) -> str:
    """Return the known key that is most similar to an unknown one, as a question; an empty text if none is similar."""
    parts: dict[str | int, type[BaseModel]] = {
        "data": DataConfig,
        "members": MemberConfig,
        "decision": DecisionConfig,
        "predict": PredictConfig,
        "augment": AugmentConfig,
    }
    part = next((parts[name] for name in location[-2::-1] if name in parts), model)
    near = difflib.get_close_matches(str(location[-1]).lower(), part.model_fields, n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


class _PlainLoader(yaml.SafeLoader):
    """A safe loader that also refuses duplicate keys, aliases, tags, and numbers that are not written in decimal."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            kind = "aliases" if isinstance(event, yaml.AliasEvent) else f"tags ({event.tag})"
            raise yaml.constructor.ConstructorError(None, None, f"{kind} are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: Any) -> int | float:
        """Return a number; refuse forms that YAML 1.1 reads as another number than people do, such as 010 or 1:30."""
        is_float = node.tag.endswith(":float")
        number = self.construct_yaml_float(node) if is_float else self.construct_yaml_int(node)
        if not (set(node.value) & set("_:") if is_float else re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", node.value) is None):
            return number
        problem = f"{node.value} is the number {number} in YAML: write that, or '{node.value}' if it is text"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


for _kind in ("int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _PlainLoader.construct_decimal)
