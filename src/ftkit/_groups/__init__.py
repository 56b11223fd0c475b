"""Parameter groups for an optimizer: layer-wise rates, rates by selector, and no decay where it does harm."""

from ftkit._groups.joining import join, layout, restore_layout
from ftkit._groups.recipe import param_groups

__all__ = ["join", "layout", "param_groups", "restore_layout"]
