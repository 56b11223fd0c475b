"""Parameter groups for an optimizer: layer-wise rates, rates by selector, and no decay where it does harm."""

from ftkit._groups.blocks import last_blocks
from ftkit._groups.joining import held, join, layout, restore_layout
from ftkit._groups.recipe import ParamGroups, param_groups
from ftkit._groups.roots import Root, root_of
from ftkit._groups.schedulers import Lists, catch_up, check_told, inner_optimizer, inner_scheduler, schedulers_in

__all__ = [
    "Lists",
    "ParamGroups",
    "Root",
    "catch_up",
    "check_told",
    "held",
    "inner_optimizer",
    "inner_scheduler",
    "join",
    "last_blocks",
    "layout",
    "param_groups",
    "restore_layout",
    "root_of",
    "schedulers_in",
]
