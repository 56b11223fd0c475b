"""Parameter groups for an optimizer: layer-wise rates, rates by selector, and no decay where it does harm."""

from ftkit._groups.blocks import last_blocks
from ftkit._groups.joining import held, join, layout, restore_layout
from ftkit._groups.recipe import ParamGroups, param_groups
from ftkit._groups.schedulers import Lists, catch_up, check_told, schedulers_in

__all__ = [
    "Lists",
    "ParamGroups",
    "catch_up",
    "check_told",
    "held",
    "join",
    "last_blocks",
    "layout",
    "param_groups",
    "restore_layout",
    "schedulers_in",
]
