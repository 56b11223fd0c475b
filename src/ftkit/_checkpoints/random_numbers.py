"""The global random generators: Python's, NumPy's, torch's, and those of the accelerators in use."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch

from ftkit._models.undo import Undo
from ftkit._wording import cause
from ftkit.errors import CheckpointError

_log: Final = logging.getLogger("ftkit")

_MAX_WORDS: Final = 4096  # python's state has 625


def state() -> dict[str, Any]:
    """Return the state of every global random generator, long ones as tensors of a dtype that every format supports."""
    version, words, gauss = random.getstate()
    numbers: dict[str, Any] = dict(np.random.get_state(legacy=False))  # noqa: NPY002
    inner = dict(numbers["state"])
    if "key" in inner:
        inner["key"] = _as_tensor(inner["key"])
    found: dict[str, Any] = {
        "python": {"version": version, "words": _as_tensor(np.array(words, np.uint32)), "gauss": gauss},
        "numpy": {**numbers, "state": inner},
        "torch": torch.get_rng_state().view(torch.int64),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps.get_rng_state()
    return found


def _as_tensor(words: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(words.view(np.int32).copy())


def _as_words(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    if tensor.numel() > _MAX_WORDS:
        raise ValueError(f"{tensor.numel():,} words can't be the state of a generator")
    return tensor.numpy().view(np.uint32)


def plan(saved: Mapping[str, Any]) -> Callable[[Undo], None]:
    """Plan to set every global random generator to what :func:`state` returned.

    Raises:
        CheckpointError: This is not such a state.
    """
    try:
        wanted = _tried(saved)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"The checkpoint's random state is not one this version can use: {cause(error)}."
        ) from error
    cuda = list(saved.get("cuda", ()))
    usable = min(len(cuda), torch.cuda.device_count()) if cuda else 0
    if usable < len(cuda):
        _log.warning(
            "The checkpoint contains random states of %d CUDA devices, this machine has %d: the others are skipped, "
            "so training will not be reproduced bit for bit.",
            len(cuda),
            usable,
        )

    def load(undo: Undo) -> None:
        now = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
        undo.callback(_put, now | {"cuda": [torch.cuda.get_rng_state(device) for device in range(usable)]})
        _put({**saved, **wanted, "cuda": cuda[:usable]})

    return load


def _tried(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The states as their generators expect them, tried out on generators of our own."""
    python = saved["python"]
    python_state = (python["version"], tuple(_as_words(python["words"]).tolist()), python["gauss"])
    random.Random().setstate(python_state)  # noqa: S311
    numbers = {**saved["numpy"], "state": dict(saved["numpy"]["state"])}
    if "key" in numbers["state"]:
        numbers["state"]["key"] = _as_words(numbers["state"]["key"])
        np.random.RandomState().set_state(numbers)
    torch_state = saved["torch"].view(torch.uint8)
    torch.Generator().set_state(torch_state)
    return {"python": python_state, "numpy": numbers, "torch": torch_state}


def _put(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    for device, one in enumerate(states["cuda"]):
        torch.cuda.set_rng_state(one, device)
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
