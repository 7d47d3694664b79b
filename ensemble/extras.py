"""The optional dependencies of thera, and the one refusal where some of them are not installed."""

from __future__ import annotations

from importlib.util import find_spec

from ensemble.errors import ResourceError, some

TRAINING = (
    *("torch", "timm", "albumentations", "scipy", "sklearn", "pandas", "cleanlab"),
    *("safetensors", "huggingface_hub", "matplotlib", "jinja2"),
)
"""What every command needs that does more than label images with an exported model."""

EXTRAS = {
    "train": TRAINING,
    "runtime": ("onnxruntime",),
    "export": (*TRAINING, "onnx", "onnxscript", "onnxruntime"),
    "peers": (*TRAINING, "onnx", "onnxscript", "onnxruntime", "openvino"),
    "serve": ("onnxruntime", "fastapi", "uvicorn", "python_multipart"),
    "tensorboard": (*TRAINING, "tensorboard"),
    "cluster": (*TRAINING, "ray"),
    "parquet": ("pyarrow",),
}
"""The modules that an extra of pyproject.toml adds to the base installation, by the name of the extra."""


def refuse_missing(extra: str, where: str) -> None:
    """Raise `ResourceError` where a module of an extra is not installed. Nothing is imported.

    Parameters
    ----------
    extra : str
        A key of `EXTRAS`.
    where : str
        What needs it, such as ``thera fit``.
    """
    missing = [name.replace("_", "-") for name in EXTRAS[extra] if not _is_installed(name)]
    if not missing:
        return
    noun = "package" if len(missing) == 1 else "packages"
    named = some(missing)
    what = f"the training extra (not installed: {named})" if extra == "train" else f"the {noun} {named}"
    raise ResourceError(where, f"needs {what}", f"pip install 'thera[{extra}]'")


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # an import hook refuses it, or a module without a spec was put in its place
        return False
