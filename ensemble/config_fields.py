"""The panels of `--help`, the metadata of an option, and the fields that several config models have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

RUN, DATA, MODEL, TRAINING, OPTIMISATION = "Run", "Data", "Model", "Training", "Optimisation"
LOSS, AUGMENTATION, DECISION, SPEED = "Loss", "Augmentation", "Decision", "Speed"
PANELS = (RUN, DATA, MODEL, TRAINING, OPTIMISATION, LOSS, AUGMENTATION, DECISION, SPEED)
"""The panels of `--help` in their order: each option belongs to one."""


class Frozen(BaseModel):
    """A model that refuses unknown keys, changes, numbers that are not finite, and true or false for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number: pydantic reads them as 1 and 0."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError(f"must be a number; got {str(value).lower()}")
        return value


def option(panel: str, description: str, *, unset: str = "", **bounds: Any) -> Any:
    """Return the metadata of a field, to stand in its `Annotated` type.

    Parameters
    ----------
    panel : str
        The panel of `--help` that shows the option.
    description : str
        One sentence, with units.
    unset : str
        What happens where the value is None, shown in place of the default.
    **bounds
        Bounds as pydantic names them (`gt`, `ge`, `lt`, `le`, `pattern`), and `validation_alias` for other names.
    """
    return Field(description=description, json_schema_extra={"panel": panel, "unset": unset}, **bounds)


Images = Annotated[
    Path, option(DATA, "Read a folder of images or of one folder for each class, a zip, a CSV or a Parquet file.")
]
ToLabel = Annotated[
    tuple[Path, ...],
    option(DATA, "Label a folder, a zip, image files, a glob, a list of paths or a manifest."),
]
LabelFile = Annotated[
    Path | None,
    option(DATA, "Read the label of image i from line i, or from a CSV file with name,label."),
]
Positive = Annotated[
    str | None,
    option(DATA, "Take the class of this name as label 1.", unset="the second by the alphabet"),
]
ImageColumn = Annotated[
    str | None,
    option(DATA, "Read the names or paths of a table's images from this column.", unset="path, file, name and others"),
]
LabelColumn = Annotated[
    str | None,
    option(
        DATA,
        "Read the labels of a table from this column; target is a second name of this setting.",
        unset="label, target, class or category",
        validation_alias=AliasChoices("label_column", "target"),
    ),
]
Classes = Annotated[
    int | None,
    option(DATA, "Read labels of this many classes, all of which must be present.", unset="2", ge=2, le=127),
]
OutFile = Annotated[
    Path | None,
    option(
        DATA,
        "Write the labels to this file; with the suffix .csv, as a table with name,label.",
        unset="label_val.txt in the run's folder, or labels.csv where the names are no numbers",
    ),
]
Force = Annotated[bool, option(DATA, "Replace the label file although this run did not write it.")]
FollowLinks = Annotated[bool, option(DATA, "Read images behind links that lead out of the images' folder.")]
OnBad = Annotated[
    Literal["error", "skip"],
    option(DATA, "Skip images that cannot be used and list them in bad_images.csv, or stop with an error."),
]
Exif = Annotated[
    Literal["ignore", "apply"],
    option(DATA, "Use the pixels as they are stored, or apply EXIF orientations; prediction does as training did."),
]
Resize = Annotated[
    int | None,
    option(DATA, "Resize every image to this size in pixels.", unset="as they are", ge=16, le=4096),
]
NearDuplicates = Annotated[
    Literal["ignore", "group"],
    option(DATA, "Hold out nearly identical images together with group, as identical ones always are."),
]
BadLabel = Annotated[
    int | None,
    option(
        DATA,
        "Give skipped images this label in label_val.txt, which needs a line for each image.",
        unset="the file is not written if images are skipped",
        ge=0,
        le=126,
    ),
]
Clean = Annotated[
    Literal[True, False, "drop", "flip", "weight"],
    BeforeValidator(lambda value: True if value == "drop" else value),
    option(
        TRAINING,
        "Leave out (drop; yes is the same), flip or weigh down the training rows whose labels are doubtful, found "
        "within the training rows of each fold.",
    ),
]
Overlay = Annotated[
    Path | None,
    option(
        TRAINING,
        "Change training rows as this table says, which thera clean writes; held-out rows keep their labels.",
        unset="none",
    ),
]
Seed = Annotated[int, option(RUN, "Seed every random stream with this number.", ge=0)]
Log = Annotated[
    Literal["tensorboard"] | None,
    option(
        TRAINING,
        "Write loss, HTER on held-out images and learning rate of each epoch for this tracker to tensorboard/ in the "
        "run's folder.",
        unset="no log",
    ),
]
DEVICES, DEVICE_PATTERN = "auto, cpu, mps, cuda or cuda:N", "auto|cpu|mps|cuda(:[0-9]+)?"
"""The names of devices, for messages and as a regular expression."""

Device = Annotated[str, option(SPEED, f"Compute on {DEVICES}; cuda is all GPUs.")]
"""Options that several models have."""


def separated_by_commas(value: Any) -> Any:
    """Return names that are separated by commas as a tuple, each name once; other values as they are.

    Examples
    --------
    >>> separated_by_commas("a, b,a")
    ('a', 'b')
    """
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
        return value
    names = [name.strip() for each in value for name in each.split(",")]
    if not all(names):
        raise ValueError("must be names separated by commas, such as a,b")
    return tuple(dict.fromkeys(names))


def one_or_several(value: Any) -> Any:
    """Return a path as a tuple of one, so that YAML and Python may give one path or several."""
    return (value,) if isinstance(value, str | Path) else value
