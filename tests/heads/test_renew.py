"""A new layer is like the old one, and starts as the model starts its own."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import timm
import torch
import torch.nn.utils.prune
import torchvision
from torch import nn

from ftkit import freeze, is_frozen, replace_head
from ftkit._heads.starts import _initializers
from ftkit.errors import HeadError
from tests.heads.nets import Net, features


def test_keep_carries_rows_over() -> None:
    """Rows of classes that stay are those of the old layer, weight-normed or not."""
    for layer in (nn.Linear(8, 10), nn.utils.parametrizations.weight_norm(nn.Linear(8, 10))):
        old = copy.deepcopy(layer)
        model = Net(fc=layer)
        replace_head(model, 4, keep={2: 9, 0: 1})
        torch.testing.assert_close(model.fc.weight[[2, 0]], old.weight[[9, 1]])
        torch.testing.assert_close(model.fc.bias[[2, 0]], old.bias[[9, 1]])


def test_device_dtype_mode_bias_and_gradients_are_kept() -> None:
    """The new layer is like the old one."""
    model = Net(fc=nn.Linear(8, 10, bias=False)).double().eval()
    replace_head(model, 3)
    assert model.fc.weight.dtype == torch.float64
    assert model.fc.bias is None
    assert not model.fc.training
    model = Net(fc=nn.Linear(8, 10))
    model.fc.weight.requires_grad_(False)
    replace_head(model, 3)
    assert [p.requires_grad for p in model.fc.parameters()] == [False, True]
    model = Net(fc=nn.Linear(8, 10))
    freeze(model, "**")
    replace_head(model, 3)
    assert all(p.requires_grad for p in model.fc.parameters())
    assert not is_frozen(model, "fc")
    assert not model.fc._forward_pre_hooks


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("width", [12, 10])
def test_normed_weights_stay_normed(wrap: object, width: int) -> None:
    """A computed weight is computed for the new count too, and trains."""
    model = nn.Sequential(nn.Flatten(), wrap(nn.Linear(width, 10)))
    replace_head(model, 4)
    out = model(torch.randn(2, width))
    assert out.shape == (2, 4)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if "spectral" in str(wrap):
        assert torch.linalg.matrix_norm(model.eval()[1].weight.detach(), 2).item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("width", [5, 8, 16])
@pytest.mark.parametrize("how", ["matrix_exp", "cayley", "householder"])
@pytest.mark.parametrize("trivialized", [True, False])
def test_an_orthogonal_head_stays_orthogonal(width: int, how: str, trivialized: bool) -> None:
    """Whichever way it is computed, the weight is orthogonal for the new count, and a fresh layer loads its state."""

    def layer(outputs: int) -> nn.Module:
        return nn.utils.parametrizations.orthogonal(
            nn.Linear(width, outputs), orthogonal_map=how, use_trivialization=trivialized
        )

    model = nn.Sequential(nn.Flatten(), layer(11))
    assert replace_head(model, 7).proven
    weight = model[1].weight.detach()
    short = weight if width >= 7 else weight.T
    torch.testing.assert_close(short @ short.T, torch.eye(min(width, 7)), atol=1e-5, rtol=0)
    fresh = layer(7)
    fresh.load_state_dict(model[1].state_dict())
    torch.testing.assert_close(fresh.weight, weight)


class MaxNorm(nn.Module):
    """A parametrization that can't be inverted, as EEG models have it."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.renorm(2, 0, 0.1)


def test_a_parametrization_without_an_inverse_starts_from_the_weight() -> None:
    """So it does when torch registers one; kept rows that it would change are an error, and nothing has changed."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    nn.utils.parametrize.register_parametrization(model[1], "weight", MaxNorm())
    old = model[1].weight.detach()
    replace_head(model, 4, keep={1: 3})
    torch.testing.assert_close(model[1].weight[1].detach(), old[3])
    replace_head(model, 6)
    assert model[1].parametrizations.weight.original.shape == (6, 12)
    assert (model[1].weight.norm(dim=1) <= 0.1001).all()

    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    nn.utils.parametrize.register_parametrization(model[1], "weight", Doubled())
    with pytest.raises(HeadError, match="keep="):
        replace_head(model, 4, keep={1: 3})
    assert model[1].weight.shape == (10, 12)


def test_a_parametrization_of_one_shape_is_an_error() -> None:
    """The message says how to take it off."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mask = torch.ones(1, 10, 12)

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return (weight * self.mask)[0]

        def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / self.mask[0]

    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    nn.utils.parametrize.register_parametrization(model[1], "weight", Masked())
    with pytest.raises(HeadError, match="remove_parametrizations"):
        replace_head(model, 4)
    assert model[1].out_features == 10


def test_a_pruned_head_is_an_error() -> None:
    """A mask of the old shape can't follow; the message says how to end it."""
    model = Net(fc=nn.Linear(8, 10))
    nn.utils.prune.l1_unstructured(model.fc, "weight", amount=3)
    with pytest.raises(HeadError, match=r"prune\.remove"):
        replace_head(model, 4)


def test_a_cosine_head_keeps_its_temperature() -> None:
    """A layer of the user's own is resized by its shape."""

    class Cosine(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(outputs, inputs))
            self.scale = nn.Parameter(torch.tensor(16.0))
            self.out_features = outputs

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))

    model = Net(last=Cosine(8, 10))
    replace_head(model, 3)
    assert (model.last.out_features, model.last.scale.item()) == (3, 16.0)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 3)
    assert 0 < model.last.weight.abs().max() < 2


def test_retinanet_starts_with_its_prior_and_keeps_rows_by_anchor() -> None:
    """The focal loss's prior comes along; the row of a class that stays does so for each anchor."""
    from torchvision.models.detection import retinanet_resnet50_fpn

    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    layer = model.head.classification_head.cls_logits
    with torch.no_grad():
        layer.bias.copy_(torch.arange(819.0))
    replace_head(model, 5, keep={2: 90})
    new = model.head.classification_head
    assert new.num_classes == 5
    bias = new.cls_logits.bias.detach().view(9, 5)
    assert bias[:, 2].tolist() == [91.0 * anchor + 90 for anchor in range(9)]
    assert bias[:, 0].tolist() == pytest.approx([-4.595] * 9, abs=1e-3)
    torch.testing.assert_close(new.cls_logits.weight.view(9, 5, -1)[:, 2], layer.weight.view(9, 91, -1)[:, 90])


CALLED: list[object] = []


def telemetry_init(project: object) -> None:
    """A stranger beside the model, which takes one argument."""
    CALLED.append(project)


def scale_weights_init(factor: float) -> object:
    """Another one, which the model does call, and whose name speaks of weights."""
    CALLED.append(factor)
    return factor


def _constant_init(layer: nn.Module) -> None:
    nn.init.constant_(layer.weight, 0.25)
    nn.init.zeros_(layer.bias)


class Plain(nn.Module):
    """A model whose own code refers to neither of the functions above that initialize."""

    def __init__(self) -> None:
        super().__init__()
        self.body = features()
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify."""
        return self.fc(self.body(x))


class Reporting(Plain):
    """A model that calls strangers itself."""

    def __init__(self) -> None:
        super().__init__()
        telemetry_init("pets")
        self.factor = scale_weights_init(2.0)


class Constant(Plain):
    """A model that starts its layers by a function beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        [_constant_init(layer) for layer in (self.fc,)]


class Inherited(Constant):
    """A class of somebody else's: the function is found where the class that calls it stands."""


class Answering(Plain):
    """A model that answers to any name, and carries a function of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["_init_weights"] = CALLED.append

    def __getattr__(self, name: str) -> object:
        return super().__getattr__(name) if name in ("body", "fc", "head") else CALLED.append


@pytest.mark.parametrize(
    "stranger",
    [
        "def telemetry_init(project): calls.append(project)",
        "def weights_init(path): calls.append(path)",
        "def _xavier_init(layer): calls.append(layer); layer.weight.data.zero_()",  # by nobody's wish
    ],
)
def test_the_only_function_beside_a_model_is_not_called(stranger: str) -> None:
    """That it stands in the same file and takes one argument says nothing."""
    lines = f"""
from tests.heads.test_renew import Plain
calls = []
{stranger}
class Beside(Plain):
    pass
"""
    module = types.ModuleType("beside_a_model")
    sys.modules[module.__name__] = module
    try:
        exec(lines, vars(module))
        replace_head(module.Beside(), 3)
    finally:
        del sys.modules[module.__name__]
    assert module.calls == []


@pytest.mark.parametrize("name", ["Plain", "Reporting", "Answering", "Uncalled", "Loading"])
def test_strangers_functions_are_not_called(name: str) -> None:
    """Whatever they are called and whoever calls them: only what initializes layers does."""
    model = globals()[name]()
    CALLED.clear()
    replace_head(model, 3, verify=False)  # a run would copy the model, and ask for its __deepcopy__
    assert CALLED == []
    assert model.fc.weight.std() > 0


@pytest.mark.parametrize("kind", [Constant, Inherited])
def test_a_function_that_the_models_class_refers_to_starts_its_layers(kind: type[nn.Module]) -> None:
    """By its name in the code of a method, of the class or of one that it inherits from."""
    model = kind()
    nn.init.normal_(model.fc.weight)
    replace_head(model, 3)
    assert (model.fc.weight == 0.25).all()


def test_a_local_function_of_a_local_class_is_found() -> None:
    """A notebook's cell may be a function."""

    def weights_init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.5)

    class Local(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.apply(weights_init)

    model = Local()
    nn.init.normal_(model.fc.weight)
    replace_head(model, 3)
    assert (model.fc.weight == 0.5).all()


def test_ssd_and_senet_start_by_the_functions_of_their_files() -> None:
    """Real ones: torchvision's and timm's."""
    ssd = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    replace_head(ssd, 5)
    for _, convolution in ssd.head.classification_head.module_list:
        assert convolution.weight.std().item() == pytest.approx(0.03, rel=0.2)
        assert not convolution.bias.any()
    assert [one.__name__ for one in _initializers(timm.create_model("legacy_seresnet18"))] == ["_weight_init"]


@pytest.mark.parametrize(
    ("name", "spread"), [("mobilenet_v3_small", 0.01), ("vgg11_bn", 0.01), ("efficientnet_b0", None)]
)
def test_torchvisions_models_start_in_a_loop_of_their_constructors(name: str, spread: float | None) -> None:
    """With numbers of their own, which may hang on how many classes there are."""
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(num_classes=12)
    model.classifier[-1] = nn.Linear(model.classifier[-1].in_features, 12)
    replace_head(model, 64, verify=False)
    found = model.classifier[-1].weight.std().item()
    assert found == pytest.approx(spread or (64 * 3) ** -0.5, rel=0.1)
    assert not model.classifier[-1].bias.any()


class Showing(Plain):
    """Its code starts the head when it is shown the whole model, as ModernBERT's does."""

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Showing):
            nn.init.constant_(module.fc.weight, 0.125)
            for parameter in module.body.parameters():
                nn.init.zeros_(parameter)  # which must not reach the pretrained body


def test_code_that_starts_a_head_when_it_sees_its_holder() -> None:
    """And nothing else of the model moves."""
    model = Showing()
    nn.init.normal_(model.fc.weight)
    before = [value.clone() for value in model.body.parameters()]
    replace_head(model, 3)
    assert (model.fc.weight == 0.125).all()
    assert all(map(torch.equal, before, model.body.parameters()))


class ByMethod(Plain):
    """Its constructor applies a method of its own, as monai's DynUNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.apply(self.initialize_weights)

    @staticmethod
    def initialize_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.5)


class AllAtOnce(Plain):
    """Its constructor calls a method that starts all layers in a loop, as VGGs and EfficientNets do."""

    def __init__(self) -> None:
        super().__init__()
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.constant_(module.weight, 0.5)


def init_cnn(module: nn.Module) -> None:
    """As fastai starts its XResNets: a module and all in it."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.constant_(module.weight, 0.5)
    for child in module.children():
        init_cnn(child)


class Downward(Plain):
    """Its constructor calls a function that calls itself."""

    def __init__(self) -> None:
        super().__init__()
        init_cnn(self)


class InALoop(Plain):
    """Its constructor starts all layers itself, as torchvision's MobileNet does."""

    def __init__(self, init_weights: bool = True) -> None:
        super().__init__()
        if init_weights:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.constant_(module.weight, 0.5)


class ByName(Plain):
    """Its constructor starts one layer by its name, as many hand-written models do."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Sequential(self.fc)
        nn.init.normal_(self.body[0].weight, std=0.1)
        nn.init.normal_(self.fc.weight)
        self.fc.weight.data.fill_(0.5)
        CALLED.append("a line that starts nothing")


class Around(nn.Module):
    """A model inside another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize(
    "build",
    [ByMethod, AllAtOnce, Downward, InALoop, ByName, lambda: Around(AllAtOnce()), lambda: Around(InALoop())],
    ids=["one", "all", "function", "loop", "name", "all inside", "loop inside"],
)
def test_a_method_that_the_constructor_calls_starts_the_layer(build: object) -> None:
    """And nothing else of the model moves."""
    model = build()
    inner = getattr(model, "inner", model)
    body = [nn.init.normal_(value).clone() for value in inner.body.parameters()]
    nn.init.normal_(inner.fc.weight)
    CALLED.clear()
    assert replace_head(model, 3).proven
    assert not CALLED
    assert (inner.fc.weight == 0.5).all()
    assert all(map(torch.equal, body, inner.body.parameters()))


class Uncalled(Plain):
    """Its constructor calls neither of these."""

    def initialize_weights(self, module: nn.Module) -> None:
        CALLED.append(module.weight)

    def _initialize_weights(self) -> None:
        CALLED.append(self.fc.weight)


class Loading(Plain):
    """Its constructor calls a method of such a name that sets no weights."""

    def __init__(self) -> None:
        super().__init__()
        self._init_weights()

    def _init_weights(self) -> None:
        CALLED.append("weights.pth")


class Lora(nn.Linear):
    """A linear layer with a product of two matrices on top."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lora_a = nn.Parameter(torch.randn(2, inputs))
        self.lora_b = nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.lora_a.T @ self.lora_b.T


def test_a_linear_layer_with_more_matrices_is_one() -> None:
    """What is added to its weight adds nothing at the start; kept classes keep what was added to them."""
    model = Net(readout=Lora(8, 10))
    head = replace_head(model, 4)
    assert (head.names, head.proven) == (("readout",), True)
    assert type(model.readout) is Lora
    assert model.readout.lora_b.shape == (4, 2)
    assert model.readout.lora_b.abs().max() == 0
    assert model.readout.weight.std() > 0.1
    model = Net(readout=Lora(8, 10))
    added = model.readout.lora_b.detach().clone()
    replace_head(model, 4, keep={1: 7})
    assert torch.equal(model.readout.lora_b[1], added[7])
    assert model.readout.lora_b[0].abs().max() == 0
