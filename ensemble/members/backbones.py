"""Build the timm network for the name of an architecture, with one logit or one for each class; load its weights."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

import timm
import torch
from timm.layers import ClassifierHead
from torch import nn

from ensemble.config import MemberConfig
from ensemble.errors import ArtifactError, ConfigError, ResourceError, TheraError, first_line
from ensemble.members import small_cnns as small_cnns  # registers them
from ensemble.members.devices import memory_format
from ensemble.members.hub_cache import HubSource, hub_source
from ensemble.members.hub_download import alternatives, fetched
from ensemble.members.safe_convolutions import sample_strided
from ensemble.members.weights import first_of, load_weights, misfit, unloaded_names
from ensemble.progress import Say, silent


class Backbone(nn.Module):
    """A timm network that takes uint8 pixels. It has one logit for two classes and C logits for more.

    The features are computed in the caller's precision. Normalisation and the last layers run in float32, so that a
    logit is never rounded to half precision. Most networks have one last layer, which is applied to their features. The
    others run as a whole: those with several last layers, such as distilled ones, and those whose last layer is a
    convolution or has a norm before it.

    Parameters
    ----------
    model : torch.nn.Module
        A timm model with `outputs(classes)` logits.
    input_size : int
        Side in pixels to which images are resampled (antialiased bilinear).
    classes : int
        The number of classes C.
    """

    def __init__(self, model: Any, input_size: int, classes: int = 2) -> None:
        super().__init__()
        self.model, self.input_size, self.frozen, self.compiled = model, input_size, False, False
        self.convolutions, self.classes = "native", classes
        self.whole = _runs_whole(model)
        if self.whole:
            _compute_in_float32(last_layers(model))
        timm_config: Any = model.pretrained_cfg
        self.mean: torch.Tensor
        self.std: torch.Tensor
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(timm_config[name]).view(1, 3, 1, 1) * 255, persistent=False)

    @property
    def logit_shape(self) -> tuple[int, ...]:
        """The shape of an image's logits: () for two classes, (C,) for more."""
        return () if self.classes == 2 else (self.classes,)

    def forward(self, pixels: torch.Tensor, precision: torch.dtype = torch.float32) -> torch.Tensor:
        """pixels (b, H, W, 3) uint8 -> logits (b,) float32, or (b, C) for more than two classes."""
        x = pixels.permute(0, 3, 1, 2).float()  # (b, 3, H, W), channels last in memory
        if x.shape[-2:] != (self.input_size, self.input_size):
            x = nn.functional.interpolate(x, (self.input_size, self.input_size), mode="bilinear", antialias=True)
        x = x.sub_(self.mean).div_(self.std).contiguous(memory_format=memory_format(x.device))
        with torch.autocast(pixels.device.type, precision, enabled=precision != torch.float32):
            features = self.features(x)
        with torch.autocast(pixels.device.type, enabled=False):
            logits = features.float() if self.whole else self.model.get_classifier()(features.float())
        return logits.squeeze(1) if self.classes == 2 else logits

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x (b, 3, H, W), normalised -> features (b, c), the input of the last layer; the logits if `whole`."""
        compute = _compiled(x.device.type) if self.compiled and self.training else _features
        return compute(self.model, x, self.whole)

    def freeze(self) -> None:
        """Train only the last layers: all other parameters, batch-norm statistics and dropout stay as in evaluation."""
        head = {id(parameter) for parameter in last_layers(self.model).parameters()}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in head)
        self.frozen = True

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)


def _features(model: Any, x: torch.Tensor, whole: bool) -> torch.Tensor:
    features: torch.Tensor = model(x) if whole else model.forward_head(model.forward_features(x), pre_logits=True)
    return features


def last_layers(model: Any) -> nn.ModuleList:
    """Return the layers of a timm model that give its logits: one in most models, several in distilled ones."""
    layers = model.get_classifier()
    return nn.ModuleList(layers if isinstance(layers, (tuple, nn.ModuleList)) else [layers])


def _runs_whole(model: Any) -> bool:
    """Return whether the last layer cannot be applied to what `forward_head(..., pre_logits=True)` returns."""
    layer, head = model.get_classifier(), getattr(model, "head", None)
    after_a_norm = isinstance(head, nn.Sequential) and len(head) > 1 and head[-1] is layer
    # several layers, a layer that takes a map, or one that pools the map itself
    return isinstance(layer, (tuple, nn.ModuleList, nn.Conv2d, ClassifierHead)) or after_a_norm


class _Float32Linear(nn.Linear):
    """A linear layer that autocast does not round."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class _Float32Conv2d(nn.Conv2d):
    """A convolution that autocast does not round."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def _compute_in_float32(layers: nn.Module) -> None:
    """Change linear layers and convolutions so that they compute in float32 in any precision, in place."""
    for module in layers.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Float32Linear
        elif type(module) is nn.Conv2d:
            module.__class__ = _Float32Conv2d


@functools.cache
def _compiled(device_type: str) -> Callable[[Any, torch.Tensor, bool], torch.Tensor]:
    """Return `_features` compiled once for each architecture and shape, so that all folds share the compiled code.

    On a GPU the kernels of a pass are launched as one CUDA graph. Random numbers are those of the uncompiled network.
    """
    import torch._dynamo.config

    # One entry for each architecture, input size and precision of a process; torch's own limit is 8.
    torch._dynamo.config.recompile_limit = 64
    options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": device_type == "cuda"}
    compiled: Callable[[Any, torch.Tensor, bool], torch.Tensor] = torch.compile(
        _features, dynamic=False, options=options
    )
    return compiled


def outputs(classes: int) -> int:
    """Return the number of a network's logits: one for two classes, and one for each of more classes."""
    return 1 if classes == 2 else classes


def build(
    config: MemberConfig,
    image_size: int,
    weights: Mapping[str, torch.Tensor] | None = None,
    say: Say = silent,
    classes: int = 2,
    address: str | None = None,
) -> Backbone:
    """Build a member's network; torch's global generator draws the parameters that are not loaded.

    Parameters
    ----------
    config : MemberConfig
        Its architecture, stem, input size, drop rates and `pretrained` are used.
    image_size : int
        Side of the images in pixels; also the network's input size if `config.input_size` is None.
    weights : mapping, optional
        A state dict to start from instead of timm's, of this class or of the timm model. Last layers with another
        number of logits are not loaded.
    say : callable
        Receives notes on the weights.
    classes : int
        The number of classes.
    address : str, optional
        The repository and commit of the Hugging Face hub from which the pretrained weights come, as OWNER/NAME@COMMIT.
        By default, the repository that timm names for the architecture, at the commit that is in the hub's cache; where
        none is there, the newest, which is downloaded.

    Raises
    ------
    ConfigError
        There is no such architecture, or it has no such stem.
    ResourceError
        Pretrained weights are requested and not available, or the architecture is in a repository of the Hugging Face
        hub that is neither reachable nor cached.
    ArtifactError
        `weights`, or the pretrained weights, are damaged or do not fit the architecture.
    """
    name = config.timm_name
    pretrained = config.pretrained and weights is None
    if not config.from_hub:
        _refuse_unknown(name, pretrained)
    rates = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    given = {key: value for key, value in rates.items() if value is not None}
    source = hub_source(name, address) if pretrained or config.from_hub else None
    if source is not None:
        source = fetched(source, pretrained)
    model = _created(config, pretrained, source, outputs(classes), given)
    _rescale_head(model)
    if weights is not None:
        load_weights(model, last_layers(model), weights, str(config.weights), say)
    if config.stem == "half-stride":
        _halve_stem_stride(model, name)
    sample_strided(model)
    return Backbone(model, config.input_size or image_size, classes)


def _refuse_unknown(name: str, pretrained: bool) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise ConfigError(f"architecture {name}", "is not known to timm", hint)
    if pretrained and not _has_weights(name):
        hint = "train from scratch with --no-pretrained, or give --weights FILE.safetensors"
        raise ConfigError(f"architecture {name}", "has no pretrained weights", hint)


def _created(
    config: MemberConfig, pretrained: bool, source: HubSource | None, logits: int, rates: Mapping[str, float]
) -> Any:
    """Return the timm model with so many logits; `source` is where it is in the hub, with all files in the cache."""
    name, options = config.timm_name, dict[str, Any](rates)
    if source is not None and source.in_hub:
        name = f"hf-hub:{source.address}"
    elif source is not None:
        options["pretrained_cfg_overlay"] = {"hf_hub_id": source.address, "custom_load": source.custom_load}
    try:
        with unloaded_names() as unloaded:
            model = timm.create_model(name, pretrained=pretrained, num_classes=logits, **options)
    except TypeError as error:
        lacking = [key for key in rates if key in str(error)]
        if not lacking:
            raise
        problem = f"knows no {lacking[0]}"
        raise ConfigError(f"architecture {config.timm_name}", problem, f"leave {lacking[0]} out") from error
    except Exception as error:
        if not (pretrained or config.from_hub):
            raise
        raise _unusable(error, config, source) from error
    if pretrained and source is not None:
        source.refuse_damaged()
    head = {id(parameter) for parameter in last_layers(model).parameters()}
    optional = {key for key, parameter in model.named_parameters() if id(parameter) in head}
    if lacking := [key for key in unloaded if key not in optional]:
        where = (source and source.cached()) or f"pretrained weights of {config.timm_name}"
        raise ArtifactError(where, f"lacks {first_of(lacking)}", alternatives(config.from_hub))
    return model


def _unusable(error: Exception, config: MemberConfig, source: HubSource | None) -> TheraError:
    """Return the error for a network that timm cannot build, or whose pretrained weights it cannot load."""
    path = None if source is None else source.cached()
    if source is not None:
        source.refuse_damaged()
    if path is not None and (differences := misfit(error)):
        return ArtifactError(path, differences, f"take another architecture, or {alternatives(config.from_hub)}")
    message = first_line(error)
    if config.from_hub:
        problem = f"names no repository of a timm network ({message})"
        return ConfigError(f"architecture {config.timm_name}", problem, "give it as hf-hub:OWNER/NAME")
    if path is not None:
        remedy = f"delete it, and it is downloaded again, or {alternatives(False)}"
        return ArtifactError(path, f"cannot be loaded ({message})", remedy)
    problem = f"cannot be downloaded ({message})"
    return ResourceError(f"pretrained weights of {config.timm_name}", problem, f"connect, or {alternatives(False)}")


def _has_weights(name: str) -> bool:
    try:
        facts = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # no such tag
        tags = ", ".join(timm.list_pretrained(name.partition(".")[0] + ".*")[:5])
        raise ConfigError(f"architecture {name}", "has no such pretrained weights", f"timm has {tags}") from error
    return bool(getattr(facts, "has_weights", False))


def check(
    config: MemberConfig,
    image_size: int,
    weights: Mapping[str, torch.Tensor] | None = None,
    say: Say = silent,
    classes: int = 2,
) -> None:
    """Check that `build` can build a network, without pretrained weights, and that it gives the logits of an image.

    Raises
    ------
    ConfigError, ArtifactError, ResourceError
        As `build`; also if the network does not take images of this size, or does not give its number of logits at
        any size.
    """
    network = build(config.model_copy(update={"pretrained": False}), image_size, weights, say, classes).eval()
    if not (reason := _refusal(network)):
        return
    given, where = network.input_size, f"architecture {config.timm_name}"
    network.input_size = network.model.pretrained_cfg["input_size"][-1]
    if _refusal(network):
        logits = "one logit" if classes == 2 else f"{classes} logits"
        raise ConfigError(where, f"does not give {logits} for an image ({reason})", "take another architecture")
    problem = f"cannot take images of {given} pixels ({reason})"
    raise ConfigError(where, problem, f"give --input-size {network.input_size}, or take another architecture")


@torch.inference_mode()
def _refusal(network: Backbone) -> str:
    """Return why a network does not give the logits of an image of its input size, or ""."""
    try:
        shape = tuple(network(torch.zeros((1, network.input_size, network.input_size, 3), dtype=torch.uint8)).shape)
    except Exception as error:  # a network's code may raise anything
        return first_line(error)
    return "" if shape == (1, *network.logit_shape) else f"its result has the shape {shape}"


def _rescale_head(model: Any) -> None:
    """Draw a last layer again if timm drew it far too large for its few logits.

    timm's MobileNets and EfficientNets draw it from U(-1, 1) / sqrt(classes). That is small for a thousand classes; for
    one logit, the first logits are in the tens, and the focal loss starts at several times its value at chance. DLA
    draws a convolution by its number of outputs, with the same effect.
    """
    for layer in last_layers(model):
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.std() > 3 / layer.weight[0].numel() ** 0.5:
            layer.reset_parameters()


def _halve_stem_stride(model: Any, name: str) -> None:
    """Halve the stride of the stem; the shapes of parameters stay, so pretrained weights still fit."""
    first = model.pretrained_cfg.get("first_conv")
    stem = model.get_submodule(first) if isinstance(first, str) else None
    if hasattr(model, "maxpool"):  # ResNets: stride 4 -> 2
        model.maxpool = nn.Identity()
    elif isinstance(stem, nn.Conv2d) and stem.stride == (2, 2):  # MobileNets, EfficientNets, RegNets: 2 -> 1
        stem.stride = (1, 1)
    elif isinstance(stem, nn.Conv2d) and stem.kernel_size == stem.stride == (4, 4) and hasattr(model, "stages"):
        stem.stride, stem.padding = (2, 2), (1, 1)  # ConvNeXts: patches of 4 every 4 -> every 2
    else:
        raise ConfigError(f"architecture {name}", "has no half-stride stem", "use --stem standard")
