"""Which sample of a batch each element of a tensor comes from: by what operators do, whatever the values are."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch

from ftkit._torch import operator_name, storage_id, tree_leaves, tree_map_only, written_by


class NotAlone(str):
    """Why a value is not known to be of one sample alone."""

    __slots__ = ()


MIXED: Final = NotAlone("it depends on the other samples of the batch")
PLACED: Final = NotAlone("it depends on the place of a sample in the batch")

_NOBODY: Final = 0  # a constant; the samples count from 1, so that what operators fill with zeros is a constant


def _named(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MOVES: Final = _named("""
    cat stack flip roll index_select index gather repeat constant_pad_nd tril triu diag_embed diagonal_scatter
    embedding reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d im2col pixel_shuffle pixel_unshuffle channel_shuffle slice_scatter select_scatter
    repeat_interleave rot90 unfold_copy view_copy permute_copy slice_copy select_copy expand_copy transpose_copy
    unsqueeze_copy squeeze_copy t_copy split_copy split_with_sizes_copy unbind_copy _unsafe_view _reshape_copy
    _reshape_alias_copy take_along_dim index_put index_put_ _unsafe_index scatter scatter_ index_copy
    index_copy_
""")
_BY_ELEMENT: Final = _named("""
    clone _to_copy copy_ copy where masked_fill masked_fill_ lift_fresh_copy contiguous native_dropout
    threshold_ hardtanh_ nan_to_num_ view_as_complex_copy view_as_real_copy complex
""")
_ALONG: Final = _named("""
    sum mean prod any all amax amin argmax argmin max min median nanmedian mode std var var_mean std_mean
    logsumexp norm linalg_vector_norm _softmax _log_softmax _safe_softmax cumsum cumsum_ cumprod cummax cummin
    logcumsumexp sort argsort topk kthvalue glu _fft_r2c _fft_c2c _fft_c2r nansum count_nonzero aminmax
""")
_BY_FIRST: Final = _named("""
    convolution mkldnn_convolution _slow_conv2d_forward max_pool2d_with_indices max_pool3d_with_indices
    mkldnn_max_pool2d max_pool1d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d
    _adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d _upsample_nearest_exact2d
    upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa upsample_linear1d
    upsample_trilinear3d native_group_norm native_layer_norm _fused_rms_norm grid_sampler_2d bmm
    cudnn_convolution mps_convolution _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
    _scaled_dot_product_cudnn_attention
""")
_BY_SHAPE: Final = _named("""
    empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones new_full
    new_empty_strided zero_ fill_ sym_size sym_stride sym_numel resize_ bernoulli_ uniform_ normal_
""")
_TAKES: Final = _named("""
    select slice narrow split split_with_sizes unbind as_strided diagonal chunk unfold
""")


class Mixing(Exception):  # noqa: N818
    """An operator has joined samples, or may have."""


class Owners:
    """The samples that the elements of tensors come from, through a run in which operators are followed.

    A sample's result is its own if every operator that leads to it is known to keep samples apart. Each element has a
    number: of the one sample that it was computed from, or none for a constant. What an operator does with them follows
    from its kind: it works element by element, moves elements, works along some dimensions or on each item of a batch.
    Of any other operator it is tried out: one sample after the other is filled with NaN, which no arithmetic loses.

    Args:
        samples: How many there are.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._maps: dict[int, _Map] = {}
        self._before: dict[int, torch.Tensor] = {}
        self._chosen: dict[Any, set[int]] = {}  # views of some samples alone, and all that there were

    def give(self, tensor: torch.Tensor) -> None:
        """Let the parts of a tensor along its first dimension be the samples; a single number is nobody's."""
        if not tensor.dim():
            return
        if len(tensor) == self.samples:
            owners = torch.arange(1, self.samples + 1, dtype=torch.int8, device=tensor.device)
            self._put(tensor, owners.view(-1, *[1] * (tensor.dim() - 1)))
        else:
            self._put(tensor, torch.full([1] * tensor.dim(), 1, dtype=torch.int8, device=tensor.device))

    def copy(self, tensor: torch.Tensor, of: torch.Tensor) -> None:
        """Let a tensor have the owners of another one."""
        owners = self.of(of)
        if owners is not None:
            self._put(tensor, owners)

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The owner of each element; None if all are constants."""
        kept = self._maps.get(storage_id(tensor)) if tensor.layout is torch.strided else None
        return None if kept is None else kept.of(tensor)

    def keeps_apart(self, tensor: torch.Tensor, parts: Callable[[torch.Tensor], torch.Tensor]) -> bool:
        """Whether each part of a tensor, where ``parts`` cuts it for the samples, is of its own sample alone."""
        owners = self.of(tensor)
        if owners is None:
            return True
        cut = parts(owners.expand(tensor.shape))
        number = torch.arange(1, len(cut) + 1, dtype=cut.dtype, device=cut.device)
        return bool(((cut == number.view(-1, *[1] * (cut.dim() - 1))) | (cut == _NOBODY)).all())

    def _put(self, tensor: torch.Tensor, owners: torch.Tensor) -> None:
        place = storage_id(tensor)
        if place in self._maps and not self._maps[place].covers(tensor):
            self._maps[place].write(tensor, owners)
        else:
            self._maps[place] = _Map(tensor, owners)

    def before(self, func: Any, written: Iterable[torch.Tensor]) -> dict[int, torch.Tensor]:
        """What constants hold that an operator will write to, by identity, for :meth:`follow`."""
        if torch.Tag.pointwise not in func.tags and _name(func) not in _BY_ELEMENT:
            return {}
        return {id(one): one.clone() for one in written if self.of(one) is None}

    def follow(self, func: Any, args: Any, kwargs: Any, output: Any, before: dict[int, torch.Tensor]) -> None:
        """Note whose the results of an operator are that has run.

        Raises:
            Mixing: They are not known to be of one sample each; the message says why.
        """
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if any(one.layout is not torch.strided for one in given):
            raise Mixing(MIXED)
        self._before = before
        known = {id(one): owners for one in given if (owners := self.of(one)) is not None}
        written = list(written_by(func, args, kwargs))
        if not known and not any(storage_id(one) in self._maps for one in written):
            return
        name = _name(func)
        made = [one for one in tree_leaves(output) if isinstance(one, torch.Tensor)]
        views = not written and bool(made) and all(self._is_view(one, given) for one in made)
        chosen = set[int]().union(*(self._chosen.get(_place(one), ()) for one in given))
        if chosen and not views:
            raise Mixing(PLACED)
        if torch.Tag.inplace_view in func.tags and not name.startswith(("resize", "set_")):
            return  # only the shape has changed
        if views:
            if chosen or (name in _TAKES and not self._is_even(name, args, known)):
                every = chosen or self._present(known.values())
                for one in made:  # it is a choice by place only if what is left in the end is used
                    owners = self.of(one)
                    if owners is not None and self._present([owners]) not in (every, set()):
                        self._chosen[_place(one)] = every
            return
        targets = written or made
        for tensor, owners in zip(targets, self._owners(name, func, args, kwargs, known, targets), strict=True):
            self._put(tensor, owners)

    def _is_even(self, name: str, args: Any, known: dict[int, torch.Tensor]) -> bool:
        """Whether all that follows itself along the dimension from which something is taken is of one sample."""
        if name in ("as_strided", "diagonal") or id(args[0]) not in known:
            return False
        at = 2 if name.startswith("split") else 1
        return known[id(args[0])].shape[args[at] if len(args) > at else 0] == 1

    def _is_view(self, tensor: torch.Tensor, given: list[torch.Tensor]) -> bool:
        return any(storage_id(tensor) == storage_id(one) for one in given)

    def _see_whole(self, before: Iterable[torch.Tensor], after: Iterable[torch.Tensor | None]) -> None:
        """See that no samples were chosen by their places."""
        then = self._present(before)
        for one in after:
            if one is not None and self._present([one]) not in (then, set()):
                raise Mixing(PLACED)

    def _present(self, several: Iterable[torch.Tensor]) -> set[int]:
        return {at for one in several for at in range(1, self.samples + 1) if bool((one == at).any())}

    def _owners(
        self, name: str, func: Any, args: Any, kwargs: Any, known: dict[int, torch.Tensor], made: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        plain = name.removesuffix("_")
        for_results = {one.name for one in func._schema.arguments if one.is_out}  # what they held is gone
        read = args, {key: one for key, one in kwargs.items() if key not in for_results}
        tensors = [one for one in tree_leaves(read) if isinstance(one, torch.Tensor)]
        if name in _BY_SHAPE:
            return [_constant(one) for one in made]
        if plain == "copy":
            return [known[id(args[1])] if id(args[1]) in known else _constant(made[0])]
        if name in _MOVES:
            owners = _moved(plain, func, args, kwargs, known)
            self._see_whole(known.values(), owners)
            return owners
        if torch.Tag.pointwise in func.tags or name in _BY_ELEMENT:
            return [self._by_element(tensors, known)] * len(made)
        if name in _ALONG and isinstance(args[0], torch.Tensor) and id(args[0]) in known:
            return _along(func, args, kwargs, known[id(args[0])], made)
        if plain in ("mm", "addmm", "bmm", "baddbmm"):
            return [_product(plain, args, known)]
        if plain in ("native_batch_norm", "cudnn_batch_norm") and not args[5] and list(known) == [id(args[0])]:
            return [known[id(args[0])], *map(_constant, made[1:])]
        if name == "mkldnn_rnn_layer" and not args[8] and list(known) == [id(args[0])]:
            steps = _lines(known[id(args[0])], [0, 2])
            return [_of_recurrence(one, steps, args[0].shape[1]) for one in made]
        if name in ("_embedding_bag", "_embedding_bag_forward_only") and not {id(args[0]), id(args[2])} & known.keys():
            return [self._of_bags(args, known, len(made[0])), *map(_constant, made[1:])]  # those serve for backward
        if name in _BY_FIRST:
            with contextlib.suppress(Mixing):
                return _by_first(tensors, known, made)
        return self._tried(func, args, kwargs, tensors, known, made)

    def _by_element(self, tensors: list[torch.Tensor], known: dict[int, torch.Tensor]) -> torch.Tensor:
        owners = functools.reduce(_joined, (known[id(one)] for one in tensors if id(one) in known))
        for one in tensors:
            if id(one) not in known and one.dim():
                self._see_even(self._before.get(id(one), one), owners)
        return owners

    def _of_bags(self, args: Any, known: dict[int, torch.Tensor], count: int) -> torch.Tensor:
        """Whose each sum of embeddings is."""
        indices, offsets, weights = args[1], args[2], args[6:7]
        each = self._by_element([indices, *(one for one in weights if one is not None)], known).expand(len(indices))
        bags = torch.searchsorted(offsets, torch.arange(len(indices)).to(offsets), right=True) - 1
        whose = torch.zeros(count, dtype=each.dtype, device=each.device).scatter_reduce(0, bags, each, "amax")
        if bool(((each != whose[bags]) & (each != _NOBODY)).any()):
            raise Mixing(MIXED)
        self._see_even(torch.bincount(bags, minlength=count), whose)
        return whose[:, None]

    def _see_even(self, constant: torch.Tensor, owners: torch.Tensor) -> None:
        """See that a constant is the same for each sample that it meets."""
        shape = (torch.empty(constant.shape, device="meta") + torch.empty(owners.shape, device="meta")).shape
        meets = [
            at
            for at in range(1, min(constant.dim(), owners.dim()) + 1)
            if constant.shape[-at] > 1 and constant.stride(-at) and owners.shape[-at] > 1
        ]
        if not any(bool((owners.narrow(-at, 0, 1) != owners).any()) for at in meets):
            return
        whole, whose = constant.expand(shape), owners.expand(shape)
        parts = [whole[whose == at] for at in sorted(self._present([owners]))]
        if not all(one.shape == parts[0].shape and bool(((one == parts[0]) | one.isnan()).all()) for one in parts):
            raise Mixing(PLACED)

    def _tried(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        tensors: list[torch.Tensor],
        known: dict[int, torch.Tensor],
        made: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Find out by NaN in the place of one sample after the other.

        Raises:
            NotImplementedError: There is no NaN among integers.
        """
        if any(id(one) in known and not one.is_floating_point() and not one.is_complex() for one in tensors):
            raise NotImplementedError
        draw = torch.Generator().manual_seed(0)
        plain = {key: torch.empty(0) for key in known}
        for one in tensors:
            if id(one) in known:
                plain[id(one)] = torch.randn(one.shape, generator=draw, dtype=torch.float64).to(one)
        owners = [_constant(one).expand(one.shape).clone() for one in made]
        for sample in (0, *range(1, self.samples + 1)):

            def put(one: torch.Tensor, sample: int = sample) -> torch.Tensor:
                if id(one) not in known:
                    return one.clone()
                return (
                    plain[id(one)].masked_fill(known[id(one)].expand(one.shape) == sample, math.nan)
                    if sample
                    else (plain[id(one)].clone())
                )

            replaced = tree_map_only(torch.Tensor, put, (args, kwargs))
            results = [one for one in tree_leaves(func(*replaced[0], **replaced[1])) if isinstance(one, torch.Tensor)]
            if written := list(written_by(func, *replaced)):
                results = written
            for at, (one, like) in enumerate(zip(results, made, strict=True)):
                if not one.numel():
                    continue
                beside = None
                if not one.is_floating_point() and not one.is_complex():
                    beside = next((x for x in results if x.is_floating_point() and x.shape == one.shape), None)
                    if beside is None:
                        raise NotImplementedError
                met = (one if beside is None else beside).isnan()
                if one.shape != like.shape or bool((met & ((owners[at] != _NOBODY) | (sample == 0))).any()):
                    raise Mixing(MIXED)
                owners[at].masked_fill_(met, sample)
        self._see_whole(known.values(), [one for one in owners if one.numel()])
        return owners


class _Map:
    """The owners of what lies in a storage; as one tensor with the shape of all of it, until a view asks for less."""

    def __init__(self, tensor: torch.Tensor, owners: torch.Tensor) -> None:
        self._geometry: Any = _geometry(tensor)
        self._owners = _small(owners.to(torch.int8).reshape([1] * (tensor.dim() - owners.dim()) + [*owners.shape]))
        self._buffer = torch.empty(0)
        self._views: dict[Any, torch.Tensor] = {}
        self._item = tensor.itemsize
        self._bytes = tensor.untyped_storage().nbytes()
        self.like = tensor

    def covers(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is all that is known here."""
        return bool(self._geometry == _geometry(tensor))

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._geometry == _geometry(tensor):
            return self._owners
        if _geometry(tensor) in self._views:
            return self._views[_geometry(tensor)]
        self._spread(tensor.itemsize)
        ratio = tensor.itemsize // self._item
        strides = [one * ratio for one in tensor.stride()]
        first, *others = [
            self._buffer.as_strided(tensor.shape, strides, tensor.storage_offset() * ratio + at) for at in range(ratio)
        ]
        found = self._views[_geometry(tensor)] = _small(functools.reduce(_joined, others, first)).clone()
        return found

    def write(self, tensor: torch.Tensor, owners: torch.Tensor) -> None:
        self._views = {}
        self._spread(tensor.itemsize)
        ratio = tensor.itemsize // self._item
        strides = [one * ratio for one in tensor.stride()]
        for at in range(ratio):
            self._buffer.as_strided(tensor.shape, strides, tensor.storage_offset() * ratio + at).copy_(
                owners.expand(tensor.shape)
            )

    def _spread(self, item: int) -> None:
        if self._geometry is not None:
            size, strides, offset, _ = self._geometry
            self._buffer = torch.zeros(self._bytes // self._item, dtype=torch.int8, device=self._owners.device)
            self._buffer.as_strided(size, strides, offset).copy_(self._owners.expand(size))
            self._geometry = None
        if item < self._item:
            self._buffer = self._buffer.repeat_interleave(self._item // item)
            self._item = item


def _name(func: Any) -> str:
    return operator_name(func).partition("::")[2]


def _place(tensor: torch.Tensor) -> Any:
    return storage_id(tensor), _geometry(tensor)


def _geometry(tensor: torch.Tensor) -> Any:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.itemsize


def _small(owners: torch.Tensor) -> torch.Tensor:
    """The same with one element along each dimension where all are equal."""
    for at in sorted(range(owners.dim()), key=lambda at: -owners.shape[at]):
        if owners.shape[at] > 1 and bool((owners.narrow(at, 0, 1) == owners).all()):
            owners = owners.narrow(at, 0, 1)
    return owners


def _constant(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros([1] * like.dim(), dtype=torch.int8, device=like.device)


def _joined(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Whose the elements are that are made of two each."""
    if bool(((one != other) & (one != _NOBODY) & (other != _NOBODY)).any()):
        raise Mixing(MIXED)
    return torch.maximum(one, other)


def _lines(owners: torch.Tensor, dims: list[int]) -> torch.Tensor:
    """Whose the lines along some dimensions are."""
    if not owners.numel() or not dims:
        return owners
    most = owners.amax(dims, keepdim=True)
    if bool(((owners != most) & (owners != _NOBODY)).any()):
        raise Mixing(MIXED)
    return most


def _moved(name: str, func: Any, args: Any, kwargs: Any, known: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """Move the owners as the elements; what an element is found by counts, too."""

    def owners_of(one: torch.Tensor) -> torch.Tensor:
        found = known.get(id(one))
        return torch.zeros(one.shape, device=one.device) if found is None else found.expand(one.shape).float()

    found = [known[id(one)] for one in tree_leaves(args) if isinstance(one, torch.Tensor) and id(one) in known]
    if name == "constant_pad_nd" and set(found[0].shape[-(len(args[1]) // 2) :]) == {1}:
        return found  # what is put in has no owner, and may be said to have one
    every = len(found) == sum(isinstance(one, torch.Tensor) for one in tree_leaves(args))  # and no constant
    if name == "cat" and every and all(one.shape == found[0].shape and bool((one == found[0]).all()) for one in found):
        along = args[1] if len(args) > 1 else 0
        if found[0].shape[along] == 1:
            return found[:1]
    if name == "embedding":
        if id(args[0]) in known or id(args[1]) not in known:
            raise Mixing(MIXED)
        return [known[id(args[1])][..., None]]
    indices: list[torch.Tensor] = []
    if name in ("index", "_unsafe_index", "index_put"):
        indices = [one for one in args[1] if one is not None]
    elif name in ("gather", "scatter", "index_select", "index_copy"):
        indices = [args[2]]
    kept = {id(one) for one in indices}
    changed = tree_map_only(torch.Tensor, lambda one: one if id(one) in kept else owners_of(one), list(args))
    if name == "constant_pad_nd":
        changed = changed[:2]
    elif name == "scatter" and not isinstance(args[3], torch.Tensor):
        changed[3] = 0
    plain = {key: value for key, value in kwargs.items() if not isinstance(value, torch.Tensor)}
    result = func(*changed, **plain)
    moved = [one.to(torch.int8) for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
    telling = {id(one): known[id(one)].expand(one.shape) for one in indices if id(one) in known}
    if not telling:
        return moved
    if name == "gather":
        return [_joined(moved[0], telling[id(indices[0])])]
    if name == "index_put" and len(args[1]) == 1 and indices[0].dtype is torch.bool:
        mask = telling[id(indices[0])]
        return [_joined(moved[0], mask.reshape(*mask.shape, *[1] * (moved[0].dim() - mask.dim())))]
    if name in ("index", "_unsafe_index") and all(one.dtype is not torch.bool for one in indices):
        whose = functools.reduce(_joined, telling.values())
        at = [number for number, one in enumerate(args[1]) if one is not None]
        together = at == list(range(at[0], at[-1] + 1))
        behind = args[0].dim() - (at[-1] + 1 if together else len(at))
        return [_joined(moved[0], whose.reshape(*whose.shape, *[1] * behind))]
    raise Mixing(MIXED)


def _along(func: Any, args: Any, kwargs: Any, owners: torch.Tensor, made: list[torch.Tensor]) -> list[torch.Tensor]:
    arguments = func._schema.arguments
    given = dict(zip((one.name for one in arguments), args, strict=False)) | kwargs
    dims = next((given.get(one.name, one.default_value) for one in arguments if one.name == "dim"), None)
    dims = [dims] if isinstance(dims, int) else list(dims or range(owners.dim()))
    dims = [at % max(owners.dim(), 1) for at in dims]
    lines = _lines(owners, dims) if owners.dim() else owners
    return [lines if one.dim() == lines.dim() else lines.squeeze(tuple(dims)) for one in made]


def _product(name: str, args: Any, known: dict[int, torch.Tensor]) -> torch.Tensor:
    """Whose a matrix product is: of the rows of one, the columns of the other, and of what is added."""
    added = args[0] if name in ("addmm", "baddbmm") else None
    one, other = args[:2] if added is None else args[1:3]
    parts = [known[id(added)]] if id(added) in known else []
    if id(one) in known:
        parts.append(_lines(known[id(one)], [one.dim() - 1]))
    if id(other) in known:
        parts.append(_lines(known[id(other)], [other.dim() - 2]))
    return functools.reduce(_joined, parts)


def _of_recurrence(made: torch.Tensor, steps: torch.Tensor, samples: int) -> torch.Tensor:
    """Whose the results of a recurrent layer are: its steps, its last state; what is kept for backward is not read."""
    if made.dim() == 3 and made.shape[1] == samples:
        return steps
    return steps[0] if made.dim() == 2 and len(made) == samples else _constant(made)


def _by_first(
    tensors: list[torch.Tensor], known: dict[int, torch.Tensor], made: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Whose the items of a batch are."""
    lines = [
        _lines(known[id(one)], list(range(1, one.dim()))).flatten().expand(len(one))
        for one in tensors
        if id(one) in known
    ]
    if len({len(one) for one in lines}) > 1:
        raise Mixing(MIXED)
    owners = functools.reduce(_joined, lines)
    found = []
    for one in made:
        if one.numel() and one.dim() and len(one) == len(owners):
            found.append(owners.view(-1, *[1] * (one.dim() - 1)))
        elif one.numel() < 3 and not one.is_floating_point():  # seeds and offsets of attention
            found.append(_constant(one))
        else:
            raise Mixing(MIXED)
    return found
