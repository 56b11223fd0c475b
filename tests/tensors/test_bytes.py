"""Bytes of tensors: views where that is possible, whole reads or an error, and threads that leave nothing undone."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftkit._models.contents import bytes_of
from ftkit._tensors.bytes import CHUNK, chunks, in_threads, mark_changed, rare_kind, read_at, takes_bytes


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (1, 4)])
@pytest.mark.parametrize(
    "layout", [lambda t: t, lambda t: t.mT if t.ndim > 1 else t, lambda t: t[::2] if t.ndim else t]
)
def test_bytes_are_those_of_numpy(shape, layout):
    """The bytes are those of the values in order, however they lie in memory."""
    tensor = layout(torch.randn(shape))
    assert bytes(bytes_of(tensor)) == tensor.numpy().tobytes()


def test_bytes_of_a_plain_tensor_are_its_memory():
    """What is written into the bytes of a contiguous tensor is in the tensor."""
    tensor = torch.zeros(2, 3)
    bytes_of(tensor)[:4] = np.float32(7).tobytes()
    assert tensor[0, 0] == 7


@pytest.mark.parametrize(
    ("target", "takes"),
    [
        (torch.zeros(2, 3), True),
        (torch.zeros(3, 2).mT, False),
        (torch.zeros(2, 3, dtype=torch.float64), False),
        (torch.zeros(2, 3, device="meta"), False),
        (torch.zeros(2, dtype=torch.complex64).conj(), False),
        (torch.zeros(2, dtype=torch.complex64).conj().imag, False),
    ],
)
def test_who_takes_bytes(target, takes):
    """Only plain memory of the stored type is filled with bytes as they are."""
    assert takes_bytes(target, target.dtype if target.is_complex() else torch.float32) == takes


@pytest.mark.parametrize("positional", [True, False])
def test_reads_at_a_position(tmp_path, monkeypatch, positional):
    """A read fills all that it is given, or says that the file ends before."""
    if not positional:
        monkeypatch.delattr(os, "preadv", raising=False)
    (tmp_path / "x").write_bytes(bytes(range(100)))
    with (tmp_path / "x").open("rb", buffering=0) as file:
        read_at(file, memoryview(into := bytearray(10)), 90)
        assert bytes(into) == bytes(range(90, 100))
        with pytest.raises(EOFError):
            read_at(file, memoryview(into), 91)


@given(st.binary(max_size=20), st.integers(1, 7))
def test_chunks_are_all_of_it(data, size):
    """Pieces put together are the whole; each but the last is full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ftkit._tensors.bytes.CHUNK", size)
        pieces = list(chunks(memoryview(data)))
    assert b"".join(pieces) == data
    assert all(len(piece) == size for piece in pieces[:-1])


@pytest.mark.parametrize("nbytes", [0, 2 * CHUNK])
def test_every_job_is_done_once(nbytes):
    """Few bytes are read by the caller, many by two threads; every job is done once."""
    done: list[int] = []
    by: set[int] = set()

    def work(job: int) -> None:
        by.add(threading.get_ident())
        done.append(job)

    in_threads(work, range(100), nbytes)
    assert sorted(done) == list(range(100))
    assert (threading.get_ident() in by) == (nbytes == 0)


@pytest.mark.parametrize("nbytes", [0, 2 * CHUNK])
def test_the_first_error_ends_the_work(nbytes):
    """An error in a thread is raised where the caller waits, and the jobs behind it are left."""
    done: list[int] = []

    def work(job: int) -> None:
        if job == 3:
            raise ValueError("three")
        done.append(job)

    with pytest.raises(ValueError, match="three"):
        in_threads(work, range(100_000), nbytes)
    assert len(done) < 100_000


def test_a_change_is_marked():
    """A backward pass notices values that were changed behind its back; an inference tensor has no count to mark."""
    weight = torch.ones(2, requires_grad=True)
    loss = (weight * weight).sum()
    mark_changed(weight.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        mark_changed(torch.ones(2))


def test_kinds_that_are_not_dense_have_names():
    """Dense tensors have none."""
    assert rare_kind(torch.ones(2)) == ""
    assert rare_kind(torch.eye(2).to_sparse()) == "sparse_coo"
