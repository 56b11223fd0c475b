"""Which part of a model the names in a group of parameters start from: groups may be made of a part alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from torch import nn

from ftkit._groups.recipe import Recipe


class Root(NamedTuple):
    """Where the names in a group start.

    Attributes:
        inside: What comes before them in the model's names, such as ``"net."``; empty if they are the model's own.
        around: What they have before the model's names, if the groups were made of something that contains the model.
    """

    inside: str = ""
    around: str = ""

    def module(self, model: nn.Module) -> nn.Module:
        """The part of the model that the names start from, or the model."""
        return model.get_submodule(self.inside[:-1]) if self.inside else model

    def holds(self, name: str) -> bool:
        """Whether a name of the model is inside."""
        return name.startswith(self.inside)

    def relative(self, name: str) -> str:
        """A name of the model as the group has it."""
        return self.around + name.removeprefix(self.inside)

    def absolute(self, name: str) -> str:
        """A name in the group as the model has it."""
        return self.inside + name.removeprefix(self.around)

    def recipe(self, recipe: Recipe) -> Recipe:
        """A recipe in terms of the module that the names start from: what is said of parts around it is left out."""
        if not self.around:
            return recipe
        rates = [(self._inner(names), rate) for names, rate in recipe["rates"]]
        said: dict[str, Any] = {**recipe, "rates": [(names, rate) for names, rate in rates if names]}
        if "layers" in said:
            said["layers"] = [inner for names in said["layers"] if (inner := self._inner(names))]
        return cast("Recipe", said)

    def _inner(self, names: list[str]) -> list[str]:
        whole = self.around[:-1]
        inner = [name.removeprefix(self.around) for name in names if name.startswith(self.around)]
        around = any(name == "**" or f"{whole}.".startswith(f"{name}.") for name in names)
        return ["**"] if around else inner


def root_of(named: Iterable[tuple[str, nn.Parameter]], group: Mapping[str, Any]) -> Root:
    """Find where the names in a group start, by the parameters that it has in common with those named in a model.

    Example:
        >>> import torch
        >>> from ftkit import param_groups
        >>> from ftkit._groups.roots import root_of
        >>> model = torch.nn.ModuleDict({"net": torch.nn.Linear(2, 2)})
        >>> root_of(model.named_parameters(), param_groups(model["net"], 0.1)[0])
        Root(inside='net.', around='')
    """
    names: dict[int, list[str]] = {}
    for name, parameter in named:
        names.setdefault(id(parameter), []).append(name)
    for parameter, given in zip(group["params"], group.get("param_names") or (), strict=False):
        known = names.get(id(parameter), [])
        if given in known:
            return Root()
        for name in known:
            if name.endswith(f".{given}"):
                return Root(inside=name.removesuffix(given))
            if given.endswith(f".{name}"):
                return Root(around=given.removesuffix(name))
    return Root()
