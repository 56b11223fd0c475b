import gc

import pytest
import torch
from torch._subclasses import FakeTensorMode

from ftkit._models.contents import bytes_of


def test_a_tensor_is_read_and_written_through_its_bytes() -> None:
    tensor = torch.zeros(2, 3)
    bytes_of(tensor)[4:8] = torch.tensor([7.0]).numpy().tobytes()
    assert tensor.flatten().tolist() == [0, 7, 0, 0, 0, 0]
    assert not bytes_of(torch.empty(0, 3))
    assert tensor.resize_(4, 3).shape == (4, 3)


def test_bytes_keep_a_copy_alive() -> None:
    turned = torch.arange(100_000).view(100, 1000).t()
    there = bytes_of(turned)
    gc.collect()
    others = [torch.ones_like(turned) for _ in range(4)]
    assert bytes(there) == turned.contiguous().numpy().tobytes()
    assert len(others) == 4


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.complex64, torch.float8_e4m3fn, torch.int64])
def test_bytes_of_any_type(dtype: torch.dtype) -> None:
    tensor = torch.tensor([0, 1, 1, 0]).to(dtype)
    assert bytes(bytes_of(tensor[1])) == bytes(tensor.view(torch.uint8).numpy())[tensor.itemsize : 2 * tensor.itemsize]
    assert bytes(bytes_of(tensor.conj())) == bytes(bytes_of(tensor.conj().resolve_conj()))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_what_has_no_memory_has_no_bytes() -> None:
    fake = FakeTensorMode().from_tensor(torch.ones(3))
    with pytest.raises(ValueError, match=r"data|scalar"):
        bytes_of(fake)
    with pytest.raises(NotImplementedError, match="meta"):
        bytes_of(torch.ones(3, device="meta"))
