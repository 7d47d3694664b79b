"""The configuration: one YAML file or the command line, checked as a whole, frozen."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from ensemble.errors import ConfigError, printable

SHORT_NAMES = {"resnet18": "resnet18", "mobilenetv2": "mobilenetv2_100", "convnext_nano": "convnext_nano"}
"""Names of the three members of the design, and the timm architectures that they stand for."""

VIEWS = ("identity", "hflip")
"""The views that every logit is computed for: the image as it is, and mirrored left to right."""

VIEW_SETS = {"plain": VIEWS[:1], "tta": VIEWS}
"""The views that plain prediction and `--tta` average; each has a stacker and a threshold of its own."""

CORRECTIONS = ("posterior", "none")
"""How the threshold of one fold model becomes that of their mean (decision/averaging.py); the default first."""


M = TypeVar("M", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(_Frozen):
    """Where the labelled images are."""

    images: Path
    labels: Path | None = None
    resize: int | None = Field(None, ge=16, le=4096, description="pixels; sets of mixed sizes are brought to it")


class AugmentConfig(_Frozen):
    """What training does to an image, drawn anew in each epoch; with `rotate` or `scale` a tenth stays unmoved."""

    flip: bool = Field(default=False, description="mirror left to right, every second time")
    shift: float = Field(default=0.0, ge=0, le=0.5, description="at most so far, a share of the side")
    rotate: float = Field(default=0.0, ge=0, le=180, description="at most so far, degrees")
    scale: float = Field(default=0.0, ge=0, lt=1, description="larger or smaller by at most this share")
    colour: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="brightness, contrast, saturation, in every second image: by at most this share",
    )


def _form(value: Any) -> str:
    return "(a mapping)" if isinstance(value, (dict, AugmentConfig)) else "(a name)"


Augment = Annotated[
    Annotated[Literal["none", "light", "standard"], Tag("(a name)")] | Annotated[AugmentConfig, Tag("(a mapping)")],
    Discriminator(_form),
]
"""One of `AUGMENTATIONS` by its name, or what to do in single."""

AUGMENTATIONS = {
    "none": AugmentConfig(),
    "light": AugmentConfig(flip=True, shift=0.06),
    "standard": AugmentConfig(flip=True, shift=0.06, rotate=8, scale=0.1, colour=0.2),
}
"""What goes by a name."""


class MemberConfig(_Frozen):
    """How one member is built and trained. Times are in epochs, sizes in pixels, rates per update."""

    arch: str = Field(description="a timm architecture, or mobilenetv2 for mobilenetv2_100")
    name: str = Field(
        "", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", description="its folder in the run; by default the arch"
    )
    pretrained: Literal[True, False, "if-possible"] = Field(
        True, description="start from timm's weights; if-possible: from scratch where they cannot be had"
    )
    weights: Path | None = Field(None, description="a safetensors file to start from instead of timm's weights")
    stem: Literal["standard", "half-stride"] = "standard"
    input_size: int | None = Field(None, ge=16, le=1024, description="by default the size of the images")
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup_epochs: float | None = Field(None, ge=0, description="by default a tenth of the epochs, at most 1")
    ema_decay: float = Field(0.999, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    gamma: float = Field(2.0, ge=0, description="focal loss: 0 is cross-entropy")
    alpha: float | None = Field(None, gt=0, lt=1, description="focal loss: weight of label 1; label 0 weighs 1 - alpha")
    loss: Literal["focal", "weighted-focal", "bce", "weighted-bce"] = Field(
        "focal", description="weighted: each class by the inverse of its share in the training rows"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="the share of a label that goes to both alike")
    sampler: Literal["plain", "balanced"] = Field("plain", description="balanced: both classes equally often")
    schedule: Literal["cosine", "step"] = "cosine"
    step_epochs: int = Field(20, ge=1, description="of the step schedule: after so many epochs, again and again,")
    step_factor: float = Field(0.7, gt=0, le=1, description="the rate is multiplied by this")
    freeze: bool = Field(False, description="train the head alone: the backbone stays, its statistics too")
    backbone_lr_factor: float = Field(1.0, gt=0, description="the backbone's rate, as a multiple of the head's")
    clean: bool = Field(
        False,
        description="leave out the training rows whose labels confident learning doubts",
    )
    drop_rate: float | None = Field(None, ge=0, lt=1, description="dropout; by default the architecture's own")
    drop_path_rate: float | None = Field(None, ge=0, lt=1, description="stochastic depth, where it has that")
    augment: Augment = "standard"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    convolutions: Literal["auto", "native", "lowered", "compiled"] = Field(
        "auto",
        description="the library's, matrix products where those are faster, or the whole network by torch.compile; "
        "auto measures",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_after_arch(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name") and isinstance(values.get("arch"), str):
            values = {**values, "name": values["arch"]}
        return values

    @model_validator(mode="after")
    def _one_weight(self) -> Self:
        if self.alpha is not None and self.loss != "focal":
            raise ValueError(f"alpha is of the focal loss, not of {self.loss}: leave it out, or set loss to focal")
        return self

    @property
    def augmentation(self) -> AugmentConfig:
        return self.augment if isinstance(self.augment, AugmentConfig) else AUGMENTATIONS[self.augment]

    @property
    def warmup(self) -> float:
        return min(1.0, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    @property
    def timm_name(self) -> str:
        return SHORT_NAMES.get(self.arch, self.arch)


class DecisionConfig(_Frozen):
    """How member logits become labels: what the threshold is best for, and what stacks the members."""

    objective: str = "hter"  # the forms that decision/threshold.py reads
    stacker: Literal["auto", "mean", "calibrated", "nonnegative", "logistic"] = "auto"
    repeats: int = Field(
        default=0, ge=0, le=1000, description="other partitions of the rows to repeat the nested estimate on"
    )


class PredictOptions(_Frozen):
    """How a set of images is labelled."""

    tta: bool = True
    combine: Literal["mean", "vote"] = Field(
        default="mean", description="of the fold models: the mean of their logits, or the majority of their labels"
    )
    correction: Literal["posterior", "none"] = "posterior"
    prior: float | None = Field(
        default=None, gt=0, lt=1, description="share of label 0 in the set, if it is known to differ"
    )
    cascade: float | None = Field(
        default=None,
        gt=0.5,
        lt=1,
        description="share of the labels to be as without, at one threshold",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    convolutions: Literal["auto", "native", "lowered", "fused"] = "auto"

    @model_validator(mode="after")
    def _all_vote(self) -> Self:
        if self.combine == "vote" and self.cascade is not None:
            raise ValueError("cascade leaves fold models out, and with combine: vote all have one: leave one out")
        if self.combine == "vote" and self.prior is not None:
            raise ValueError("prior moves the threshold of a mean, and combine: vote has none: leave it out")
        return self


class PredictConfig(PredictOptions):
    """A set of images to label, and the file to write."""

    images: Path
    out: Path


class ComputeConfig(_Frozen):
    """Where to compute. It changes how long a run takes; of the results, only the order of floating-point sums."""

    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    workers: int | None = Field(default=None, ge=0, description="data worker processes; they change no result")
    jobs: int | None = Field(default=None, ge=1, description="networks computed at once, each on a share of the cores")


class RunConfig(_Frozen):
    """A whole run: what `thera run` does, in order."""

    about: str = Field("", description="one line about it, for people")
    run: Path
    seed: int = Field(0, ge=0)
    folds: int = Field(5, ge=2, le=100)
    data: DataConfig
    members: tuple[MemberConfig, ...]
    decision: DecisionConfig = DecisionConfig()
    predict: PredictConfig | None = None

    @field_validator("members")
    @classmethod
    def _names_differ(cls, members: tuple[MemberConfig, ...]) -> tuple[MemberConfig, ...]:
        if not members:
            raise ValueError("must hold at least one member")
        names = [member.name for member in members]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"must have different names; {', '.join(doubled)} stands twice: set name")
        return members


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


def overridden(
    config: RunConfig,
    run: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    folds: int | None = None,
    epochs: int | None = None,
    predict: Path | None = None,
    out: Path | None = None,
) -> RunConfig:
    """Return the config with what is given in place of what it says.

    Other images take neither labels nor the set to predict over. A label file that lies in the run's folder moves with
    it; without `out`, that of a set given here is `label_val.txt` there.
    """
    changed: dict[str, Any] = {key: value for key, value in {"run": run, "folds": folds}.items() if value is not None}
    folder, wanted = run or config.run, config.predict
    if wanted is not None and wanted.out.is_relative_to(config.run):
        wanted = wanted.model_copy(update={"out": folder / wanted.out.relative_to(config.run)})
    if images is not None and predict is None:
        wanted = None
    if predict is not None:
        to = {"images": predict, "out": folder / "label_val.txt"}
        wanted = PredictConfig.model_validate(to) if wanted is None else wanted.model_copy(update=to)
    if out is not None:
        if wanted is None:
            raise ConfigError("--out", "there is no set to predict", "give --predict")
        wanted = wanted.model_copy(update={"out": out})
    changed["predict"] = wanted
    if images is not None:
        changed["data"] = config.data.model_copy(update={"images": images, "labels": labels})
    elif labels is not None:
        changed["data"] = config.data.model_copy(update={"labels": labels})
    if epochs is not None:
        changed["members"] = tuple(member.model_copy(update={"epochs": epochs}) for member in config.members)
    return config.model_copy(update=changed)


def validated(model: type[M], values: dict[str, Any], where: object) -> M:
    """Return `values` as a `model`, or raise one ConfigError that names every fault."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [_fault(model, fault) for fault in error.errors()]
        raise ConfigError(where, "; ".join(faults)) from None


def _fault(model: type[BaseModel], fault: Any) -> str:
    place = [part for part in fault["loc"] if not str(part).startswith("(")]  # without the form of a union
    at = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if fault["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {
            "data": DataConfig,
            "members": MemberConfig,
            "decision": DecisionConfig,
            "predict": PredictConfig,
            "augment": AugmentConfig,
        }
        part = next((parts[name] for name in place[-2::-1] if name in parts), model)
        near = difflib.get_close_matches(str(fault["loc"][-1]).lower(), part.model_fields, n=1, cutoff=0.7)
        return f"{printable(at)} is no known key" + (f" (did you mean {near[0]}?)" if near else "")
    if fault["type"] == "missing":
        return f"{at} is missing"
    if fault["type"] == "value_error":
        return f"{at} {fault['msg'].removeprefix('Value error, ')}"
    _, _, must = fault["msg"].partition(" should ")  # "Input should be greater than 0"
    return f"{at} must {must or 'be another: ' + fault['msg']}; got {printable(fault['input'])[:80]}"


class _PlainLoader(yaml.SafeLoader):
    """A safe loader that also refuses duplicate keys, aliases and tags."""

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


def seed_sequence(seed: int, *names: str | int) -> np.random.SeedSequence:
    """Return the child of `seed` that goes by `names`, the same wherever and whenever it is asked for.

    >>> seed_sequence(0, "folds").generate_state(1) == seed_sequence(0, "folds").generate_state(1)
    array([ True])
    """
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return np.random.SeedSequence(seed, spawn_key=tuple(np.frombuffer(digest, "<u4").tolist()))
