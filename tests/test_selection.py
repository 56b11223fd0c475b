"""The selector language: one matcher that everything else stands on."""

from __future__ import annotations

import collections
import copy
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit.errors import FtkitError, SelectionError
from ftkit.selection import compile_pattern, select, tied, unwrap

# Two letters and short names make collisions and near misses likely.
component = st.text("ab1", min_size=1, max_size=3)
dotted = st.lists(component, min_size=1, max_size=4).map(".".join)
pattern_component = st.text("ab1*?", min_size=1, max_size=4)
patterns = st.lists(pattern_component, min_size=1, max_size=4).map(".".join)


def reference(pattern: str, name: str) -> bool:
    """Match by walking both texts, component by component: no regular expressions, no shared code."""
    while "***" in pattern:
        pattern = pattern.replace("***", "**")
    return _components(pattern.split("."), name.split(".") if name else [])


def _components(pattern: list[str], name: list[str]) -> bool:
    if not pattern:
        return not name
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return any(_components(rest, name[skip:]) for skip in range(len(name) + 1))
    # "x**" may swallow dots: try every number of components as the text of this one.
    most = len(name) if "**" in first else min(1, len(name))
    return any(_text(first, ".".join(name[:taken])) and _components(rest, name[taken:]) for taken in range(1, most + 1))


def _text(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern.startswith("*"):
        crosses = pattern.startswith("**")
        rest = pattern.lstrip("*") if crosses else pattern[1:]
        return any(_text(rest, text[skip:]) for skip in range(len(text) + 1) if crosses or "." not in text[:skip])
    return (
        bool(text)
        and (pattern[0] == text[0] or (pattern[0] == "?" and text[0] != "."))
        and _text(pattern[1:], text[1:])
    )


@given(patterns, dotted)
def test_patterns_agree_with_the_reference(pattern: str, name: str) -> None:
    """The compiled expression and a plain recursive matcher say the same of any name."""
    assert bool(compile_pattern(pattern).fullmatch(name)) == reference(pattern, name)


@given(dotted, st.data())
def test_a_name_made_wild_still_matches_itself(name: str, data: st.DataObject) -> None:
    """Any letter may become `?`, any component `*`, any run of components `**`."""
    letters = [data.draw(st.sampled_from([letter, "?"])) if letter != "." else "." for letter in name]
    assert compile_pattern("".join(letters)).fullmatch(name)
    parts = name.split(".")
    assert compile_pattern(".".join(data.draw(st.sampled_from([part, "*"])) for part in parts)).fullmatch(name)
    low, high = sorted((data.draw(st.integers(0, len(parts))), data.draw(st.integers(0, len(parts)))))
    assert compile_pattern(".".join([*parts[:low], "**", *parts[high:]])).fullmatch(name)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("layer1", ["layer1"], ["layer10", "layer1.0", "xlayer1", "a.layer1"]),
        ("layer?", ["layer1"], ["layer10", "layer", "layer."]),
        ("features.*", ["features.0"], ["features", "features.0.conv"]),
        ("**.norm?", ["norm1", "a.norm1", "a.b.norm2"], ["a.norm10", "norm", "norm1.a"]),
        ("blocks.**", ["blocks", "blocks.1", "blocks.1.attn"], ["blocks1", "a.blocks"]),
        ("enc**weight", ["enc.0.weight", "encweight", "encoder.a.b.weight"], ["dec.0.weight"]),
        ("a+b.(c)", ["a+b.(c)"], ["aab.c"]),
        ("**", ["a", "a.b"], []),
        ("", [""], ["a"]),
    ],
)
def test_pattern_language_by_example(pattern: str, yes: list[str], no: list[str]) -> None:
    """What the documentation promises."""
    compiled = compile_pattern(pattern)
    assert [name for name in yes if not compiled.fullmatch(name)] == []
    assert [name for name in no if compiled.fullmatch(name)] == []


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> nn.Module:
    """Draw a random module tree with parameters, buffers, bare modules and odd names."""
    module = nn.Module()
    for name in draw(st.lists(component, max_size=3, unique=True)):
        kind = draw(st.sampled_from(["linear", "norm", "dropout", "parameter", "buffer", "tree"]))
        if kind == "parameter":
            module.register_parameter(name, nn.Parameter(torch.zeros(1)))
        elif kind == "buffer":
            module.register_buffer(name, torch.zeros(1))
        elif kind == "tree" and depth:
            module.add_module(name, draw(trees(depth=depth - 1)))
        else:
            leaf = {"linear": lambda: nn.Linear(1, 1), "norm": lambda: nn.BatchNorm1d(1)}.get(kind, nn.Dropout)
            module.add_module(name, leaf())
    return module


@given(trees(), patterns)
def test_select_means_subtrees_of_matched_modules(model: nn.Module, pattern: str) -> None:
    """On a random tree: exactly the tensors that match, or lie under a module that matches."""
    inside = [name for name, _ in model.named_modules() if reference(pattern, name)]

    def wanted(name: str) -> bool:
        return reference(pattern, name) or any(not root or name.startswith(root + ".") for root in inside)

    parameters = [name for name, _ in model.named_parameters() if wanted(name)]
    buffers = [name for name, _ in model.named_buffers() if wanted(name)]
    if not parameters and not buffers and not inside:
        with pytest.raises(SelectionError):
            select(model, pattern)
        return
    selection = select(model, pattern)
    assert list(selection.parameters) == parameters
    assert list(selection.buffers) == buffers
    assert set(inside) <= set(selection.modules)


@given(trees(), patterns, patterns)
def test_several_selectors_are_their_union(model: nn.Module, first: str, second: str) -> None:
    """A list of selectors, several arguments, and the two alone add up to the same."""
    try:
        alone = [select(model, first), select(model, second)]
    except SelectionError:
        return
    together = select(model, first, second)
    assert together.parameters == select(model, [first, second]).parameters
    assert set(together.parameters) == set(alone[0].parameters) | set(alone[1].parameters)
    assert set(together.buffers) == set(alone[0].buffers) | set(alone[1].buffers)


@pytest.fixture
def model() -> nn.Module:
    """Return a small network with the usual parts."""
    block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    return nn.ModuleDict(
        {"stem": block, "layer1": nn.Linear(4, 4), "layer10": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    )


def names(model: nn.Module, *selectors: object) -> list[str]:
    """Return the names of the selected parameters."""
    return list(select(model, *selectors).parameters)  # type: ignore[arg-type]  # any selector


def test_a_name_is_no_prefix(model: nn.Module) -> None:
    """layer1 never matches layer10."""
    assert names(model, "layer1") == ["layer1.weight", "layer1.bias"]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (re.compile(r"stem\.[01]\.weight"), ["stem.0.weight", "stem.1.weight"]),
        (nn.BatchNorm2d, ["stem.1.weight", "stem.1.bias"]),
        (nn.modules.batchnorm._BatchNorm, ["stem.1.weight", "stem.1.bias"]),
        (lambda name, module: name.endswith("10"), ["layer10.weight", "layer10.bias"]),
        (["stem.*.bias", "head"], ["stem.0.bias", "stem.1.bias", "head.weight", "head.bias"]),
        ("head.weight", ["head.weight"]),
    ],
)
def test_every_kind_of_selector(model: nn.Module, selector: object, expected: list[str]) -> None:
    """Each row of the table of selectors."""
    assert names(model, selector) == expected


def test_modules_parameters_and_heads_are_selectors(model: nn.Module) -> None:
    """What a function of ftkit gave back, or the user has at hand, goes in as it is."""

    class TwoHeads:
        modules = (model["head"], model["layer1"])  # type: ignore[index]  # a ModuleDict

    assert names(model, model.head) == ["head.weight", "head.bias"]
    assert names(model, model.head.bias) == ["head.bias"]
    assert names(model, TwoHeads()) == ["layer1.weight", "layer1.bias", "head.weight", "head.bias"]


def test_a_module_whose_every_parameter_is_selected_is_selected(model: nn.Module) -> None:
    """So a norm or a dropout is known to lie inside, whichever way its parameters were named."""
    by_expression = select(model, re.compile(r"^stem\."))
    assert list(by_expression.modules) == ["stem", "stem.0", "stem.1", "stem.2"]
    assert list(select(model, "stem").modules) == list(by_expression.modules)
    assert list(select(model, "stem.0.*").modules) == ["stem.0"]
    assert "stem" not in select(model, "stem.*.weight").modules


def test_tied_parameters_are_one_under_all_their_names() -> None:
    """Either name selects it; it is reported once, by its first name."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "out": nn.Linear(3, 5, bias=False)})
    model["out"].weight = model["embed"].weight
    assert names(model, "out") == names(model, "embed") == names(model, "out", "embed") == ["embed.weight"]
    assert tied(model) == {"embed.weight": ("out.weight",)}
    assert names(model, re.compile("^out")) == ["embed.weight"]


def test_shared_modules_are_one_under_all_their_names() -> None:
    """A module with two parents is found by both paths."""
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared, nn.Linear(2, 2))})
    assert names(model, "b.0") == ["a.0.weight", "a.0.bias"]
    assert list(select(model, "b.0").modules) == ["a", "a.0"]


def test_wrappers_are_looked_through(model: nn.Module) -> None:
    """Names stay those of the model when it is compiled or data-parallel."""
    wrapped = torch.compile(nn.DataParallel(model))
    assert unwrap(wrapped) is model
    assert names(wrapped, "layer1") == ["layer1.weight", "layer1.bias"]
    assert len(names(model, wrapped)) == 10


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("weights.pt", "'weights.pt': load or build"),
        (nn.Linear, "the class Linear: call it"),
        (collections.OrderedDict(weight=torch.zeros(9)), "an OrderedDict: load_weights puts"),
        (None, r"None\."),
    ],
)
def test_what_is_no_model(given: object, words: str) -> None:
    """A path in the model's place, a class or a state dict is said to be one."""
    with pytest.raises(FtkitError, match=f"must be a torch.nn.Module, but this is {words}"):
        unwrap(given)


def test_a_model_that_is_one_layer() -> None:
    """Its parameters have undotted names, and its type selects it."""
    layer = nn.Linear(2, 2)
    assert names(layer, "weight") == ["weight"]
    assert (
        names(layer, nn.Linear) == names(layer, "**") == names(layer, lambda name, module: True) == ["weight", "bias"]
    )


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("layer2", r"'layer2' matches no module.*Did you mean 'layer1'"),
        ("steem.1", r"Did you mean 'stem.1'"),
        ("xyz.[01]", r"use re.compile"),
        ("qqqqq", r"Its children are 'stem', 'layer1', 'layer10', 'head'"),
        ("", r"'' matches no module"),
        (re.compile("zzz"), r"matches no parameter or buffer.*look like 'stem.0.weight'"),
        (nn.BatchNorm1d, r"no module of type BatchNorm1d. Did you mean 'BatchNorm2d'"),
        (nn.Linear(1, 1), r"not part of the ModuleDict"),
        (nn.Parameter(torch.zeros(2, 3)), r"shape \(2, 3\) is not part"),
        (lambda name, module: False, r"true for no module"),
        ([], r"An empty list selects nothing"),
        (["stem", "hed"], r"Did you mean 'head'"),
        (7, r"7 is not a selector"),
    ],
)
def test_what_matches_nothing_is_an_error_that_helps(model: nn.Module, selector: object, message: str) -> None:
    """Never a silent nothing: the message says what was expected and what comes close."""
    with pytest.raises(SelectionError, match=message):
        names(model, selector)


def test_a_module_of_a_copy_is_foreign(model: nn.Module) -> None:
    """Identity decides: the same layer of a deep copy is another layer."""
    twin = copy.deepcopy(model)
    with pytest.raises(SelectionError, match="belongs to another model"):
        select(twin, model.head)


def test_no_selector_selects_nothing(model: nn.Module) -> None:
    """What that means is the caller's business."""
    selection = select(model)
    assert (selection.modules, selection.parameters, selection.buffers) == ({}, {}, {})


predicates: list[Callable[[str, nn.Module], bool]] = [lambda name, module: isinstance(module, nn.Linear)]


@given(trees())
def test_types_and_predicates_agree(model: nn.Module) -> None:
    """A type is the predicate `isinstance`."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        with pytest.raises(SelectionError):
            select(model, nn.Linear)
        return
    assert names(model, nn.Linear) == names(model, predicates[0])
    assert set(linears) <= set(select(model, nn.Linear).modules)
