"""The config models: every option of the command line, of a YAML file and of Python; checked as a whole, frozen.

An option is declared once, here: its type, default, bounds, description and the panel of `--help` that shows it. The
command line is made from these models (options.py), and a YAML file is read into them (config_reading.py).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Tag, field_validator, model_validator

from ensemble.config_fields import (
    AUGMENTATION,
    DECISION,
    LOSS,
    MODEL,
    OPTIMISATION,
    RUN,
    SPEED,
    TRAINING,
    Classes,
    Clean,
    Device,
    Exif,
    FollowLinks,
    Frozen,
    ImageColumn,
    Images,
    LabelColumn,
    LabelFile,
    Log,
    NearDuplicates,
    OnBad,
    Overlay,
    Positive,
    Resize,
    Seed,
    option,
    separated_by_commas,
)
from ensemble.predict_config import Precision, PredictConfig

if TYPE_CHECKING:
    import numpy as np

SHORT_NAMES = {"resnet18": "resnet18", "mobilenetv2": "mobilenetv2_100", "convnext_nano": "convnext_nano"}
"""Names of the three default members, and the timm architectures that they stand for."""

WITHOUT_WEIGHTS = ("small_cnn", "simple_cnn", "lenet")
"""Architectures of thera itself, which have no pretrained weights: unless requested, they start from scratch."""

VIEWS = ("identity", "hflip")
"""The views that every logit is computed for: the image as it is, and mirrored left to right."""

VIEW_SETS = {"plain": VIEWS[:1], "tta": VIEWS}
"""The views that plain prediction and `--tta` average; each set has its own stacker and threshold."""


class DataConfig(Frozen):
    """Where the labelled images are."""

    images: Images
    labels: LabelFile = None
    classes: Classes = None
    positive: Positive = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    follow_links: FollowLinks = False
    on_bad: OnBad = "error"
    exif: Exif = "ignore"
    resize: Resize = None
    near_duplicates: NearDuplicates = "ignore"


class AugmentConfig(Frozen):
    """Random changes of each training image, drawn anew in every epoch.

    With `rotate` or `scale`, a tenth of the images is neither rotated nor scaled.
    """

    flip: Annotated[bool, option(AUGMENTATION, "Mirror half of the images left to right.")] = False
    shift: Annotated[float, option(AUGMENTATION, "Shift by at most this share of the side.", ge=0, le=0.5)] = 0.0
    rotate: Annotated[float, option(AUGMENTATION, "Rotate by at most this many degrees.", ge=0, le=180)] = 0.0
    scale: Annotated[float, option(AUGMENTATION, "Change the size by at most this share.", ge=0, lt=1)] = 0.0
    colour: Annotated[
        float,
        option(
            AUGMENTATION,
            "Change brightness, contrast and saturation of half of the images by at most this share.",
            ge=0,
            lt=1,
        ),
    ] = 0.0


def _form(value: Any) -> str:
    return "(a mapping)" if isinstance(value, (dict, AugmentConfig)) else "(a name)"


Augment = Annotated[
    Annotated[Literal["none", "light", "standard"], Tag("(a name)")] | Annotated[AugmentConfig, Tag("(a mapping)")],
    Discriminator(_form),
]
"""The name of one of `AUGMENTATIONS`, or the single changes as a mapping."""

AUGMENTATIONS = {
    "none": AugmentConfig(),
    "light": AugmentConfig(flip=True, shift=0.06),
    "standard": AugmentConfig(flip=True, shift=0.06, rotate=8, scale=0.1, colour=0.2),
}
"""The augmentations that have a name."""


class MemberConfig(Frozen):
    """How one member is built and trained. Times are in epochs, sizes in pixels, rates per update."""

    arch: Annotated[str, option(MODEL, "Train resnet18, mobilenetv2, convnext_nano, or any timm architecture.")]
    name: Annotated[
        str,
        option(MODEL, "Give the member this name.", unset="the arch", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"),
    ] = ""
    pretrained: Annotated[
        Literal[True, False, "if-possible"],
        option(MODEL, "Start from timm's pretrained weights; if-possible: from scratch where they cannot be loaded."),
    ] = True
    weights: Annotated[
        Path | None,
        option(
            MODEL,
            "Start from this safetensors file, or from the fold models of the member in this folder, not from timm's "
            "weights; in YAML also by from: RUN/MEMBER.",
        ),
    ] = None
    stem: Annotated[
        Literal["standard", "half-stride"], option(MODEL, "Give the first convolution stride 1 with half-stride.")
    ] = "standard"
    input_size: Annotated[
        int | None,
        option(
            MODEL, "Give the network images of this side in pixels.", unset="the size of the images", ge=16, le=1024
        ),
    ] = None
    drop_rate: Annotated[
        float | None, option(MODEL, "Apply this dropout before the last layer.", unset="the architecture's", ge=0, lt=1)
    ] = None
    drop_path_rate: Annotated[
        float | None,
        option(MODEL, "Apply this stochastic depth where the network has it.", unset="the architecture's", ge=0, lt=1),
    ] = None
    freeze: Annotated[bool, option(MODEL, "Train the last layer alone; the backbone and its statistics stay.")] = False
    epochs: Annotated[int, option(TRAINING, "Train for this many epochs; none is chosen afterwards.", ge=1)] = 20
    batch_size: Annotated[int, option(TRAINING, "Train on batches of this many images.", ge=2)] = 128
    sampler: Annotated[
        Literal["plain", "balanced"], option(TRAINING, "Draw all classes equally often with balanced.")
    ] = "plain"
    clean: Clean = False
    overlay: Overlay = None
    lr: Annotated[float, option(OPTIMISATION, "Raise the learning rate of AdamW to this peak.", gt=0)] = 2e-3
    weight_decay: Annotated[float, option(OPTIMISATION, "Apply this weight decay in AdamW.", ge=0)] = 0.05
    warmup_epochs: Annotated[
        float | None,
        option(
            OPTIMISATION,
            "Raise the rate to its peak over this many epochs.",
            unset="a tenth of the epochs, at most 1",
            ge=0,
        ),
    ] = None
    schedule: Annotated[Literal["cosine", "step"], option(OPTIMISATION, "Lower the learning rate this way.")] = "cosine"
    step_epochs: Annotated[int, option(OPTIMISATION, "Step once in this many epochs of the step schedule.", ge=1)] = 20
    step_factor: Annotated[float, option(OPTIMISATION, "Multiply the rate by this at each step.", gt=0, le=1)] = 0.7
    backbone_lr_factor: Annotated[
        float, option(OPTIMISATION, "Multiply the last layer's rate by this for the backbone.", gt=0)
    ] = 1.0
    ema_decay: Annotated[
        float, option(OPTIMISATION, "Average the weights exponentially with this decay.", ge=0, lt=1)
    ] = 0.999
    clip_norm: Annotated[float, option(OPTIMISATION, "Clip gradients to this norm.", gt=0)] = 1.0
    loss: Annotated[
        Literal["focal", "weighted-focal", "bce", "weighted-bce"],
        option(
            LOSS, "Minimise this loss; bce is cross-entropy; weighted ones weigh a class by the inverse of its share."
        ),
    ] = "focal"
    gamma: Annotated[float, option(LOSS, "Set the focal loss's focusing exponent; 0 is cross-entropy.", ge=0)] = 2.0
    alpha: Annotated[
        float | None,
        option(
            LOSS,
            "Weigh label 1 of two classes by this in the focal loss, and label 0 by 1 - alpha.",
            unset="all weigh 1",
            gt=0,
            lt=1,
        ),
    ] = None
    label_smoothing: Annotated[
        float, option(LOSS, "Spread this share of each label evenly over all labels.", ge=0, lt=1)
    ] = 0.0
    augment: Annotated[
        Augment, option(AUGMENTATION, "Augment by none, light or standard; in YAML also by a mapping of changes.")
    ] = "standard"
    precision: Annotated[Precision, option(SPEED, "Compute in this number format; auto measures the fastest.")] = "auto"
    convolutions: Annotated[
        Literal["auto", "native", "lowered", "compiled", "graphed"],
        option(
            SPEED,
            "Compute convolutions natively, as matrix products, by torch.compile, or each update as one CUDA graph; "
            "auto measures the fastest.",
        ),
    ] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _name_after_arch(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name") and isinstance(values.get("arch"), str):
            # the name of a repository of the hub holds characters that the name of a folder may not have
            values = {**values, "name": re.sub("[^A-Za-z0-9._-]+", "-", values["arch"])}
        return values

    @field_validator("weights", mode="before")
    @classmethod
    def _folder_of_a_member(cls, value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"from"} and isinstance(value["from"], str):
            path = Path(value["from"])
            return path.parent / "members" / path.name
        return value

    @model_validator(mode="after")
    def _one_weight(self) -> Self:
        if self.alpha is not None and self.loss != "focal":
            raise ValueError(f"alpha belongs to the focal loss, not to {self.loss}: leave it out, or set loss to focal")
        return self

    @model_validator(mode="after")
    def _scratch_without_weights(self) -> Self:
        if self.arch in WITHOUT_WEIGHTS and "pretrained" not in self.model_fields_set:
            self.__dict__["pretrained"] = False  # not set as given, so that training can say it
        return self

    @property
    def augmentation(self) -> AugmentConfig:
        """The single changes, also where `augment` is a name."""
        return self.augment if isinstance(self.augment, AugmentConfig) else AUGMENTATIONS[self.augment]

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, also where `warmup_epochs` is not set."""
        return min(1.0, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    @property
    def timm_name(self) -> str:
        """The architecture's name in timm."""
        return SHORT_NAMES.get(self.arch, self.arch)

    @property
    def from_hub(self) -> bool:
        """Whether the architecture is that of a repository of the Hugging Face hub."""
        return self.arch.startswith(("hf-hub:", "hf_hub:"))


class DecisionConfig(Frozen):
    """How the members' logits become labels: what the threshold minimises, and how the members are stacked."""

    objective: Annotated[
        str,  # decision/objective.py parses it
        option(
            DECISION,
            "Minimise hter, or cost:A,B, the costs of a false positive and of a false negative; or hold fpr:R or fnr:R "
            "to at most R on the OOF rows (fpr:R,0.95: with 95 % confidence). Of more than two classes: "
            "mean-class-error, macro-f1 or accuracy.",
        ),
    ] = "hter"
    stacker: Annotated[
        Literal["mean", "calibrated", "nonnegative", "logistic"],
        option(DECISION, "Combine the members by this stacker; logistic may give a member a negative weight."),
    ] = "nonnegative"
    members: Annotated[
        tuple[str, ...] | None,
        option(
            DECISION,
            "Stack these members, separated by commas.",
            unset="all that are finished, except distilled ones",
        ),
    ] = None
    force_members: Annotated[
        tuple[str, ...] | None,
        option(DECISION, "Stack these members even where their logits are constant.", unset="none"),
    ] = None
    repeats: Annotated[
        int, option(DECISION, "Repeat the nested estimate on this many other partitions of the rows.", ge=0, le=1000)
    ] = 0

    _names = field_validator("members", "force_members", mode="before")(separated_by_commas)


class ComputeConfig(Frozen):
    """Where to compute. It changes how long a run takes; of the results, only the order of floating-point sums."""

    device: Device = "auto"
    workers: Annotated[
        int | None,
        option(SPEED, "Load images in this many processes; no result changes.", unset="chosen by the cores", ge=0),
    ] = None
    jobs: Annotated[
        int | None,
        option(
            SPEED,
            "Compute this many networks at once, each on a share of the cores; with GPUs in a cluster, on each GPU.",
            unset="on a CPU one a core, where it pays",
            ge=1,
        ),
    ] = None
    cluster: Annotated[
        str | None,
        option(
            SPEED,
            "Compute on the Ray cluster of this address; auto joins that of this machine, local starts one.",
            unset="on this machine alone",
        ),
    ] = None
    task_cores: Annotated[
        int | None, option(SPEED, "Give each network on a cluster this many cores.", unset="1", ge=1)
    ] = None
    save_every: Annotated[
        float, option(SPEED, "Save a training after this many seconds, within an epoch too; no result changes.", ge=0)
    ] = 60.0
    log: Log = None


class RunConfig(Frozen):
    """A whole run: what `thera run` does, in order."""

    about: Annotated[str, option(RUN, "Describe the file in one line, for people.")] = ""
    run: Annotated[Path, option(RUN, "Use this folder for the run, for example checkpoints/faces.")]
    seed: Seed = 0
    folds: Annotated[int, option(RUN, "Cross-validate with this many folds.", ge=2, le=100)] = 5
    targets: Annotated[
        tuple[str, ...] | None,
        option(
            RUN,
            "Make a run for each of these columns of the manifest, below the run's folder and on the same folds.",
            unset="one run for the column of labels",
        ),
    ] = None
    joined: Annotated[
        str | None,
        option(RUN, "Read the class that the targets make together from this column of the manifest.", unset="none"),
    ] = None
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

    @model_validator(mode="after")
    def _targets_have_the_columns(self) -> Self:
        if self.targets is None:
            if self.joined is not None:
                raise ValueError("joined needs targets: leave it out, or list the columns of the targets")
            return self
        for name in self.targets:
            if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
                raise ValueError(f"targets must be names of columns that can be names of folders; got {name!r}")
        if len(self.targets) < 2 or len(set(self.targets)) < len(self.targets):
            raise ValueError("targets must be at least two different columns")
        for key in ("label_column", "classes", "labels", "positive"):
            if getattr(self.data, key) is not None:
                raise ValueError(f"with targets, leave {key} out of data: labels and classes are those of the columns")
        return self


def seed_sequence(seed: int, *names: str | int) -> np.random.SeedSequence:
    """Return the random stream of `seed` with this name; it is the same wherever and whenever it is requested.

    >>> seed_sequence(0, "folds").generate_state(1) == seed_sequence(0, "folds").generate_state(1)
    array([ True])
    """
    import numpy as np

    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return np.random.SeedSequence(seed, spawn_key=tuple(np.frombuffer(digest, "<u4").tolist()))
