"""What a step costs: against real steps, and on models that are hard to follow."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ftkit import FtkitError
from ftkit._cost.measure import _default_loss, measure
from ftkit._cost.meter import shapes_in
from tests.cost.helpers import Calls, kept_besides, matmul, real_step


@pytest.mark.parametrize("frozen", [(), ("features",), ("classifier",)])
def test_agrees_with_a_real_step(frozen):
    """FLOPs and saved bytes of a real network are those of its real step, however it is frozen."""
    import torchvision

    model = torchvision.models.squeezenet1_1().eval()
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    inputs = (torch.randn(2, 3, 64, 64),)
    cost = measure(model, inputs, {})
    assert (cost.forward_flops, cost.backward_flops, cost.saved_bytes) == real_step(model, inputs)


@pytest.mark.parametrize(
    ("model", "shape", "classes"),
    [
        (nn.Linear(8, 5), (6, 8), lambda output: output),
        (nn.Linear(8, 5), (6, 7, 8), lambda output: output.flatten(0, 1)),
        (nn.Conv2d(3, 5, 1), (2, 3, 4, 4), lambda output: output),
        (
            Calls(lambda self, x: {"logits": self.layer(x), "mask": x > 0}, layer=nn.Linear(8, 5)),
            (6, 8),
            lambda output: output["logits"],
        ),
    ],
)
def test_the_loss_is_taken_for_a_cross_entropy(model, shape, classes):
    """Of the logits: where a classifier's head alone trains, the loss keeps a good part of all."""

    def loss(output):
        logits = classes(output)
        return F.cross_entropy(logits, torch.zeros(len(logits), *logits.shape[2:], dtype=torch.long))

    x = torch.randn(shape)
    taken, given = measure(model, (x,), {}), measure(model, (x,), {}, loss=loss)
    assert taken.saved_bytes == given.saved_bytes > taken.modules[0].saved_bytes


@pytest.mark.parametrize(
    "output",
    [
        lambda x: x[:, :1],
        lambda x: x[:, 0],
        lambda x: (x, x.sin()),
        lambda x: torch.complex(x, x),
        lambda x: {"hidden": x, "pooled": x[0]},
    ],
)
def test_where_nothing_looks_like_logits_the_loss_is_a_sum(output):
    """It keeps nothing, and every output gets its gradient."""
    cost = measure(Calls(lambda self, x: output(self.layer(x)), layer=nn.Linear(8, 5)), (torch.randn(6, 8),), {})
    assert cost.saved_bytes == cost.modules[0].saved_bytes
    assert cost.backward_flops == matmul(6, 8, 5)


class Pair(NamedTuple):
    """Two tensors by name."""

    first: torch.Tensor
    second: torch.Tensor


def deep(self, x, levels=4):
    return self.layer(x) if levels == 0 else deep(self, self.layer(x), levels - 1)


def in_turn(self, x):
    for layer in self.layers:
        for one in layer if isinstance(layer, nn.ModuleList) else [layer]:
            x = one(x)
    return x


def odd():
    """A model with all that a module may hold besides layers."""
    model = Calls(lambda self, x: self.alias(x) * self.scale, scale=nn.Parameter(torch.ones(8)))
    model.register_parameter("missing", None)
    model.register_buffer("nothing", None)
    model.counts = nn.Parameter(torch.ones(2, dtype=torch.long), requires_grad=False)
    model.empty, model.none = nn.ModuleDict(), nn.Sequential()
    model.layers = nn.Sequential(nn.Linear(8, 8))
    model.alias = model.layers[0]
    return model


def half():
    model = nn.Sequential(nn.Linear(8, 8), Calls(lambda self, x: self.layer(x.bfloat16()), layer=nn.Linear(8, 4)))
    model[1].bfloat16()
    return model


MODELS = {
    "named tuple": lambda: (
        Calls(lambda self, pair: Pair(self.layer(pair.first), pair.second), layer=nn.Linear(8, 4)),
        Pair(torch.randn(2, 8), torch.randn(3)),
    ),
    "dict": lambda: (
        Calls(lambda self, x: {"out": [self.layer(x["x"]), None]}, layer=nn.Linear(8, 4)),
        {"x": torch.randn(2, 8), "more": [torch.ones(1)]},
    ),
    "odd": lambda: (odd(), torch.randn(2, 8)),
    "empty": lambda: (nn.Sequential(), torch.randn(2, 8)),
    "recursive": lambda: (Calls(deep, layer=nn.Conv2d(4, 4, 3, padding=1)), torch.randn(1, 4, 9, 9)),
    "container": lambda: (
        Calls(in_turn, layers=nn.ModuleList([nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 8)]), nn.Linear(8, 8)])),
        torch.randn(2, 8),
    ),
    "parameters": lambda: (
        Calls(
            lambda self, x: x @ self.some[0] @ self.more["a"],
            some=nn.ParameterList([torch.randn(8, 8)]),
            more=nn.ParameterDict({"a": torch.randn(8, 8)}),
        ),
        torch.randn(2, 8),
    ),
    "several precisions": lambda: (half(), torch.randn(2, 8)),
    "script inside": lambda: (
        Calls(lambda self, x: self.head(self.body(x)), body=torch.jit.script(nn.Linear(8, 8)), head=nn.Linear(8, 4)),
        torch.randn(2, 8),
    ),
    "autoencoder": lambda: (
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1)),
        torch.randn(2, 3, 16, 16),
    ),
    "generator and critic": lambda: (
        Calls(
            lambda self, z: self.critic(self.generator(z)),
            generator=nn.Sequential(nn.Linear(8, 16), nn.ReLU()),
            critic=nn.Sequential(nn.Linear(16, 8), nn.LeakyReLU(), nn.Linear(8, 1)),
        ),
        torch.randn(4, 8),
    ),
    "norm of weights": lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), torch.randn(2, 8)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_models_of_all_kinds_agree_with_a_real_step(name):
    """FLOPs, saved bytes and shapes, whatever goes in and comes out."""
    model, given = MODELS[name]()
    cost = measure(model, (given,), {})
    with kept_besides(model, given) as kept, FlopCounterMode(display=False) as one:
        output = model(given)
        loss = _default_loss(output)
    assert cost.modules[0].output_shape == shapes_in(output)
    assert cost.forward_flops == one.get_total_flops()
    assert cost.saved_bytes == sum(storage.nbytes() for storage in kept.values())
    with FlopCounterMode(display=False) as two:
        if loss is not None:
            loss.backward()
    assert cost.backward_flops == two.get_total_flops()


def test_a_failure_names_the_module():
    """The message says where, on what, and why."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(9, 9)))
    with pytest.raises(
        FtkitError, match=r"failed in '1\.0', a Linear called with \(4, 8\): RuntimeError: mat1 and mat2"
    ):
        measure(model, (torch.randn(4, 8),), {})


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda output: output / (0 * output.shape[0] // 0), "The loss of Linear failed: ZeroDivisionError"),
        (lambda output: output, "The backward pass of Linear failed: RuntimeError: grad can be implicitly created"),
        (lambda output: "much", "The loss of Linear failed: TypeError: it returned a str"),
    ],
)
def test_a_bad_loss_is_not_blamed_on_the_model(loss, said):
    """The message says what failed, and what a loss is."""
    with pytest.raises(
        FtkitError, match=said + r".*Expected a loss that takes the model's output and returns a scalar"
    ):
        measure(nn.Linear(8, 8), (torch.randn(4, 8),), {}, loss=loss)


def test_values_that_decide_take_one_real_step():
    """A branch on data is taken as the data say, and the result says how it was found."""
    model = Calls(lambda self, x: self.layer(x) if x.sum().item() > 0 else x, layer=nn.Linear(8, 4))
    cost = measure(model, (torch.ones(2, 8),), {})
    assert cost.modules[0].output_shape == (2, 4)
    assert cost.real == "aten._local_scalar_dense.default depends on values"


def test_lazy_modules_stay_lazy():
    """Their shapes are found, and forgotten by the model."""
    model = nn.Sequential(nn.LazyLinear(64), nn.LazyBatchNorm1d())
    cost = measure(model, (torch.randn(4, 32),), {})
    assert cost.forward_flops == matmul(4, 32, 64)
    assert cost.lazy[id(model[0].weight)] == (64, 32)
    assert [type(module) for module in model] == [nn.LazyLinear, nn.LazyBatchNorm1d]
    assert all(nn.parameter.is_lazy(parameter) for parameter in model.parameters())


def test_meta_models_take_inputs_from_anywhere():
    """A model without memory can be planned, with an input on the CPU."""
    with torch.device("meta"):
        model = nn.Linear(4096, 4096)
    cost = measure(model, (torch.randn(4, 4096),), {})
    assert cost.forward_flops == matmul(4, 4096, 4096)
    assert cost.held_bytes == 4 * (4096 * 4096 + 4096 + 4 * 4096)


@pytest.mark.filterwarnings("ignore")
def test_scripted_and_quantized_models():
    """Kernels that take real tensors only are run once, and counted."""
    scripted = torch.jit.script(nn.Sequential(nn.Linear(32, 64), nn.ReLU()))
    cost = measure(scripted, (torch.randn(4, 32),), {})
    assert (cost.forward_flops, cost.backward_flops) == (matmul(4, 32, 64), matmul(4, 32, 64))
    assert all(parameter.grad is None for parameter in scripted.parameters())
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(32, 64)), {nn.Linear})
    assert measure(quantized, (torch.randn(4, 32),), {}).forward_flops == matmul(4, 32, 64)


@pytest.mark.parametrize("transform", ["jacrev", "grad"])
def test_derivatives_inside_the_forward_pass(transform):
    """torch.func's allow no hook on what autograd keeps: what is alive after the forward pass is kept."""

    def run(self, x):
        if transform == "grad":
            return torch.func.grad(lambda y: self.layer(y).tanh().sum())(x)
        return torch.func.vmap(torch.func.jacrev(lambda y: self.layer(y).tanh()))(x)

    cost = measure(Calls(run, layer=nn.Linear(32, 8)), (torch.randn(4, 32),), {})
    assert cost.real is None
    assert cost.forward_flops > matmul(4, 32, 8)
    assert cost.backward_flops > 0
    assert 0 < cost.saved_bytes < cost.peak_bytes


def test_an_operator_without_a_fake_kernel_names_itself():
    """With how to register one."""

    @torch.library.custom_op("ftkit_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    model = Calls(lambda self, x: torch.ops.ftkit_tests.twice(x).detach())
    cost = measure(model, (torch.randn(4, 32),), {})
    assert "ftkit_tests.twice.default has no fake kernel" in cost.real
    assert "torch.library.register_fake('ftkit_tests::twice')" in cost.real


def test_peak_takes_an_optimizer_as_it_is():
    """An instance with its own groups and state is foreseen, and not stepped."""
    model = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.1}])
    cost = measure(model, (torch.randn(4, 64),), {})
    before = model.weight.clone()
    assert cost.peak_training_bytes(optimizer) == cost.peak_training_bytes(torch.optim.AdamW)
    assert torch.equal(model.weight, before)
    assert not optimizer.state


@pytest.mark.parametrize("instance", [False, True])
def test_an_optimizer_that_divides_by_what_it_remembers(instance):
    """NAdam keeps the product of its momenta, by 1 minus which it divides. It holds one number more than Adam."""
    model = nn.Linear(64, 64)
    cost = measure(model, (torch.randn(4, 64),), {})
    nadam = torch.optim.NAdam(model.parameters()) if instance else torch.optim.NAdam
    adam = cost.peak_training_bytes(torch.optim.Adam)
    assert cost.peak_training_bytes(nadam) == adam + 2 * 4
    if instance:
        model(torch.randn(4, 64)).sum().backward()
        nadam.step()
        assert cost.peak_training_bytes(nadam) == adam + 2 * 4


def test_an_optimizer_of_nothing_says_so():
    """It is the model that trains nothing; an optimizer of other parameters steps all the same."""
    cost = measure(nn.Linear(4, 4).requires_grad_(False), (torch.randn(2, 4),), {})
    with pytest.raises(FtkitError, match="Nothing in the model trains"):
        cost.peak_training_bytes(torch.optim.SGD)
    assert cost.peak_training_bytes(torch.optim.SGD(nn.Linear(4, 4).parameters())) > 0


def test_an_optimizer_that_can_not_step_says_so():
    """One that needs a closure can't be simulated."""
    cost = measure(nn.Linear(4, 4), (torch.randn(2, 4),), {})
    with pytest.raises(FtkitError, match="A step of LBFGS can't be simulated"):
        cost.peak_training_bytes(torch.optim.LBFGS)
