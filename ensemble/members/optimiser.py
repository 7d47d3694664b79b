"""Build the parameter groups of the optimiser and the schedule of its learning rate."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler

from ensemble.config import MemberConfig
from ensemble.members.backbones import Backbone, last_layers
from ensemble.members.fold_job import FoldJob


def parameter_groups(network: Backbone, config: MemberConfig) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimiser.

    timm splits the parameters into those with and without weight decay. If the backbone's rate differs, each group is
    split once more into the last layers and the rest, the last layers first. timm's schedulers multiply a group's rate
    by its `lr_scale`: 1 for the last layers, `backbone_lr_factor` for the rest.
    """
    if config.backbone_lr_factor == 1:
        return list(param_groups_weight_decay(network, config.weight_decay))
    head = {id(parameter) for parameter in last_layers(network.model).parameters()}
    groups = []
    for group in param_groups_weight_decay(network, config.weight_decay):
        for of_head, scale in ((True, 1.0), (False, config.backbone_lr_factor)):
            parameters = [parameter for parameter in group["params"] if (id(parameter) in head) == of_head]
            if parameters:
                groups.append({**group, "params": parameters, "lr_scale": scale})
    return sorted(groups, key=lambda group: id(group["params"][0]) not in head)


def learning_rates(optimizer: torch.optim.Optimizer, job: FoldJob) -> Scheduler:
    """Return the schedule of the learning rate over the updates: a linear warm-up, then cosine decay or steps."""
    config, updates = job.config, job.updates_per_epoch
    warmup: dict[str, Any] = {
        "warmup_t": round(config.warmup * updates),
        "warmup_lr_init": config.lr / 100,
        "t_in_epochs": False,
    }
    if config.schedule == "step":
        return StepLRScheduler(optimizer, config.step_epochs * updates, config.step_factor, **warmup)
    return CosineLRScheduler(optimizer, config.epochs * updates, **warmup)
