"""Models that start their heads in all kinds of ways, for a number of classes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from timm.models import named_apply
from torch import nn
from torch.nn import init

from tests.heads.nets import features

WIDTH = 32
STARTS: dict[str, Callable[[int], nn.Module]] = {}


class Base(nn.Module):
    """A body and a head."""

    def __init__(self, classes: int, *, bias: bool = True) -> None:
        super().__init__()
        self.body = features(WIDTH)
        self.fc = nn.Linear(WIDTH, classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify."""
        return self.fc(self.body(x))


def start(build: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Add a model to the list."""
    STARTS[getattr(build, "__name__", "").strip("_")] = build
    return build


# ---- lines of a constructor

LINES: dict[str, Callable[[nn.Module], object]] = {}


@start
class PriorBias(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        prior = 0.01
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.constant_(self.fc.bias, -math.log((1 - prior) / prior))


@start
class PriorBiasByVariable(Base):
    def __init__(self, classes: int, prior_prob: float = 0.02) -> None:
        super().__init__(classes)
        bias_value = -math.log((1 - prior_prob) / prior_prob)
        torch.nn.init.normal_(self.fc.weight, mean=0, std=0.01)
        torch.nn.init.constant_(self.fc.bias, bias_value)


@start
class PriorBiasOfCount(Base):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.num_classes = num_classes
        init.xavier_uniform_(self.fc.weight)
        init.constant_(self.fc.bias, -math.log(num_classes))


@start
class ZeroInit(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)


@start
class ZeroWeightOnly(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc.weight.data.zero_()


@start
class ZeroByMul(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc.weight.data.mul_(0.001)
        self.fc.bias.data.mul_(0.001)


@start
class TruncByFan(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        fan_in = self.fc.in_features
        nn.init.trunc_normal_(self.fc.weight, std=math.sqrt(1 / fan_in) / 0.87962566103423978 * 0.1)
        nn.init.zeros_(self.fc.bias)


@start
class TruncAtTwo(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        std = 0.05
        nn.init.trunc_normal_(self.fc.weight, std=std, a=-2 * std, b=2 * std)


@start
class XavierGain(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        nn.init.xavier_uniform_(self.fc.weight, gain=0.1)


@start
class XavierGainOfActivation(Base):
    def __init__(self, classes: int, activation: str = "tanh") -> None:
        super().__init__(classes)
        nn.init.xavier_normal_(self.fc.weight, gain=nn.init.calculate_gain(activation) * 3)


@start
class Kaiming(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        nn.init.kaiming_normal_(self.fc.weight, mode="fan_out", nonlinearity="relu")


@start
class Orthogonal(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        nn.init.orthogonal_(self.fc.weight, gain=0.01)
        nn.init.constant_(self.fc.bias, 0.0)


@start
class ByIndex(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(WIDTH, classes))
        nn.init.uniform_(self.fc[-1].weight, -0.01, 0.01)


@start
class ByGetattr(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        for name in ("fc",):
            nn.init.normal_(getattr(self, name).weight, std=0.01)


@start
class LoopOverTuple(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        for layer in (self.fc,):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)


@start
class LoopOverParameters(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p, gain=0.2)


@start
class LoopOverNames(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        for name, p in self.named_parameters():
            if "weight" in name and p.dim() > 1:
                nn.init.orthogonal_(p, 0.1)
            elif "bias" in name:
                nn.init.constant_(p, 0.1)


@start
class LoopHe(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                n = m.kernel_size[0] * m.kernel_size[1] * m.out_channels
                m.weight.data.normal_(0, math.sqrt(2.0 / n))
            elif isinstance(m, nn.Linear):
                n = m.weight.size(1)
                m.weight.data.normal_(0, 0.001)
                m.bias.data.zero_()


@start
class UnderNoGrad(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        with torch.no_grad():
            self.fc.weight.normal_(0, 0.01)
            self.fc.bias.fill_(-2.0)


@start
class UnderACondition(Base):
    def __init__(self, classes: int, zero: bool = False) -> None:
        super().__init__(classes)
        if zero:
            nn.init.zeros_(self.fc.weight)
        else:
            nn.init.normal_(self.fc.weight, std=0.01)


@start
class ByData(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc.weight.data = torch.randn(self.fc.weight.shape) * 0.01
        self.fc.bias.data[:] = -3.0


@start
class ByInPlaceArithmetic(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc.weight.data *= 0.01
        self.fc.bias.data *= 0


@start
class LocalLayer(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        layer = nn.Linear(WIDTH, classes)
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
        self.fc = layer


@start
class LocalLayerInASequential(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        layer = nn.Linear(WIDTH, classes)
        nn.init.normal_(layer.weight, std=0.01)
        self.fc = nn.Sequential(nn.Dropout(), layer)


@start
class NoBias(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes, bias=False)
        nn.init.normal_(self.fc.weight, std=0.01)


# ---- a bias alone, as a focal loss wants it


@start
class BiasAsParameter(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc.bias = nn.Parameter(torch.full((classes,), -4.6))


@start
class BiasAsParameterOfTheLayersSize(Base):
    def __init__(self, classes: int, prior: float = 0.01) -> None:
        super().__init__(classes)
        self._set_prior(prior)

    def _set_prior(self, prior: float) -> None:
        self.fc.bias = nn.Parameter(torch.full((self.fc.out_features,), -math.log((1 - prior) / prior)))


@start
class BiasByData(Base):
    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__(num_classes)
        self.fc.bias.data = torch.full((num_classes,), -4.6)


@start
class BiasByConstant(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        nn.init.constant_(self.fc.bias, -math.log(99))


@start
class BiasOfALocalLayer(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        layer = nn.Linear(WIDTH, classes)
        layer.bias = nn.Parameter(torch.ones_like(layer.bias) * -3.0)
        self.fc = nn.Sequential(nn.Dropout(), layer)


@start
class WeightAsParameter(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc.weight = nn.Parameter(torch.randn(classes, WIDTH) * 0.001)


# ---- functions


def init_weights(module: nn.Module, std: float = 0.01) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def initialize_head_weights(model: nn.Module, gain: float) -> None:
    nn.init.xavier_normal_(model.fc.weight, gain=gain)


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(layer.weight, std=0.002)
    nn.init.zeros_(layer.bias)
    return layer


@start
class ApplyFunction(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.apply(init_weights)


@start
class ApplyPartial(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.apply(functools.partial(init_weights, std=0.002))


@start
class ApplyLambda(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.apply(lambda m: nn.init.normal_(m.weight, std=0.003) if isinstance(m, nn.Linear) else None)


@start
class ApplyToHead(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc.apply(init_weights)


@start
class ApplyNested(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)

        def _init(m: nn.Module) -> None:
            if isinstance(m, nn.Linear):
                nn.init.constant_(m.bias, 0.5)
                nn.init.normal_(m.weight, std=0.004)

        self.apply(_init)


@start
class FunctionOfSelf(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        initialize_head_weights(self, 0.05)


@start
class FactoryFunction(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = linear(WIDTH, classes)


def downwards(module: nn.Module) -> None:
    for child in module.children():
        downwards(child)
    if isinstance(module, nn.Linear):
        nn.init.constant_(module.bias, 0.25)
        nn.init.normal_(module.weight, std=0.004)


@start
class FunctionThatCallsItself(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)

        def again(module: nn.Module) -> None:
            for child in module.children():
                again(child)
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.bias)

        downwards(self)
        again(self)


# ---- methods


@start
class MethodWithArguments(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.init_weights(0.003)

    def init_weights(self, std: float) -> None:
        nn.init.normal_(self.fc.weight, std=std)
        nn.init.zeros_(self.fc.bias)


@start
class MethodWithMode(Base):
    def __init__(self, classes: int, weight_init: str = "jax") -> None:
        super().__init__(classes)
        if weight_init != "skip":
            self.init_weights(weight_init)

    def init_weights(self, mode: str = "") -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight) if mode == "jax" else nn.init.normal_(module.weight)
                nn.init.constant_(module.bias, -5.0)


@start
class MethodThenZero(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.apply(self._init_weights)
        nn.init.zeros_(self.fc.weight)

    def _init_weights(self, m: nn.Module) -> None:
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            nn.init.zeros_(m.bias)


@start
class MethodThenScale(Base):
    def __init__(self, classes: int, head_init_scale: float = 0.01) -> None:
        super().__init__(classes)
        self.apply(self._init_weights)
        self.fc.weight.data.mul_(head_init_scale)
        self.fc.bias.data.mul_(head_init_scale)

    def _init_weights(self, m: nn.Module) -> None:
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            nn.init.zeros_(m.bias)


@start
class MethodFixes(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.init_scale = 0.001
        self.apply(self._init_weights)
        self.fix_init_weight()

    @staticmethod
    def _init_weights(m: nn.Module) -> None:
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02)
            nn.init.zeros_(m.bias)

    def fix_init_weight(self) -> None:
        self.fc.weight.data.mul_(self.init_scale)


@start
class MethodOfAnyName(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.prepare()

    def prepare(self) -> None:
        nn.init.normal_(self.fc.weight, std=0.005)
        nn.init.zeros_(self.fc.bias)


@start
class ByThis(Base):
    """Nothing but habit asks for the name ``self``."""

    def __init__(this, classes: int, std: float = 0.005) -> None:
        super().__init__(classes)
        nn.init.normal_(this.fc.weight, std=std)
        this.prepare()

    def prepare(this) -> None:
        nn.init.constant_(this.fc.bias, -3.0)


def _init_by_name(module: nn.Module, name: str, scale: float = 0.1) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=scale if name == "fc" else 0.5)
        nn.init.zeros_(module.bias)


@start
class ByNamedApply(Base):
    def __init__(self, classes: int, scale: float = 0.01) -> None:
        super().__init__(classes)
        named_apply(functools.partial(_init_by_name, scale=scale), self)


@start
class MethodOfAnyNameWithoutBias(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.prepare()

    def prepare(self) -> None:
        nn.init.uniform_(self.fc.weight, -0.005, 0.005)


@start
class BuildsInAMethod(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = self._create_classifier(classes)

    def _create_classifier(self, classes: int) -> nn.Module:
        classifier = nn.Linear(WIDTH, classes)
        init.xavier_normal_(classifier.weight)
        classifier.bias.data.zero_()
        return nn.Sequential(classifier, nn.Identity())


@start
class OverriddenMethod(MethodWithArguments):
    def init_weights(self, std: float) -> None:
        nn.init.constant_(self.fc.weight, std)


@start
class ResetsItself(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.fc.weight, gain=0.01)
        nn.init.zeros_(self.fc.bias)


# ---- parents, wrappers and children


class Parent(Base):
    def __init__(self, classes: int, std: float) -> None:
        super().__init__(classes)
        nn.init.normal_(self.fc.weight, std=std)
        nn.init.zeros_(self.fc.bias)


@start
class ByParent(Parent):
    def __init__(self, classes: int) -> None:
        super().__init__(classes, 0.001)


@start
class ByParentThenSelf(Parent):
    def __init__(self, classes: int) -> None:
        super().__init__(classes, 0.3)
        nn.init.zeros_(self.fc.weight)


@start
class ByWrapper(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = Base(classes)
        nn.init.normal_(self.net.fc.weight, std=0.001)
        nn.init.constant_(self.net.fc.bias, -4.6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@start
class ByWrapperLoop(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = MethodThenZero(classes)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class StartsTooEarly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = features(WIDTH)
        self._weights_init()

    def _weights_init(self) -> None:
        for m in self.modules():
            if isinstance(m, nn.Linear | nn.Conv2d):
                nn.init.zeros_(m.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))


@start
class RegisteredLater(StartsTooEarly):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self._weights_init()
        if classes:
            self.fc = nn.Linear(WIDTH, classes)


@start
class RegisteredLaterByName(StartsTooEarly):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self._weights_init()
        self.add_module("fc", nn.Linear(WIDTH, classes))
        nn.init.normal_(self.fc.weight, std=0.01)


class Head(nn.Module):
    def __init__(self, inputs: int, num_classes: int, pi: float = 0.01) -> None:
        super().__init__()
        self.cls = nn.Linear(inputs, num_classes)
        self._init(pi)

    def _init(self, pi: float) -> None:
        nn.init.normal_(self.cls.weight, std=0.01)
        self.cls.bias.data.fill_(-math.log((1 - pi) / pi))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cls(x)


@start
class ByHead(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = Head(WIDTH, classes)


@start
class ByHeadWithAnotherPrior(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = Head(WIDTH, classes, pi=0.2)


class OwnLinear(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.001)
        nn.init.ones_(self.bias)


@start
class ByLayer(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = OwnLinear(WIDTH, classes)


class DenseLinear(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        nn.init.normal_(self.weight, std=0.001)
        nn.init.zeros_(self.bias)


@start
class ByLayersConstructor(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = DenseLinear(WIDTH, classes)


class Cosine(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


@start
class ByCosine(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = Cosine(WIDTH, classes)


class Plainly(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * 0.02)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


@start
class ByParametersOfItsOwn(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = Plainly(WIDTH, classes)


# ---- from outside, which no class tells


def outside(act: Callable[[Base], object]) -> Callable[[int], nn.Module]:
    def build(classes: int) -> nn.Module:
        model = Base(classes)
        with torch.no_grad():
            act(model)
        return model

    return build


STARTS |= {
    f"outside-{name}": outside(act)
    for name, act in {
        "apply": lambda m: m.apply(init_weights),
        "zeros": lambda m: (m.fc.weight.zero_(), m.fc.bias.zero_()),
        "prior": lambda m: (m.fc.weight.normal_(0, 0.01), m.fc.bias.fill_(-4.6)),
        "uniform": lambda m: m.fc.weight.uniform_(-0.01, 0.01),
        "trunc": lambda m: (nn.init.trunc_normal_(m.fc.weight, 0, 0.01, -0.02, 0.02), m.fc.bias.zero_()),
        "xavier": lambda m: (nn.init.xavier_normal_(m.fc.weight, 0.1), m.fc.bias.zero_()),
        "kaiming": lambda m: (nn.init.kaiming_normal_(m.fc.weight, mode="fan_out"), m.fc.bias.zero_()),
        "orthogonal": lambda m: (nn.init.orthogonal_(m.fc.weight), m.fc.bias.zero_()),
        "sparse": lambda m: (nn.init.sparse_(m.fc.weight, 0.5, 0.1), m.fc.bias.zero_()),
        "scaled": lambda m: (m.fc.weight.mul_(0.01), m.fc.bias.mul_(0)),
    }.items()
}


@start
def put_in_from_outside(classes: int) -> nn.Module:
    """Another kind of module than the constructor has made, which starts all its layers."""
    model = ByIndexAndLoop(classes)
    model.fc = nn.Linear(WIDTH, classes)
    return model


class ByIndexAndLoop(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(WIDTH, classes))
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.001)


# ---- weights that are computed


@start
class WeightNorm(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        self.fc = nn.utils.parametrizations.weight_norm(self.fc)


@start
class WeightNormOfLength(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes, bias=False)
        self.fc = nn.utils.parametrizations.weight_norm(self.fc)
        self.fc.parametrizations.weight.original0.data.fill_(1)


class MaxNorm(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.renorm(2, 0, 0.25)


@start
class Parametrized(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        nn.init.zeros_(self.fc.bias)
        nn.utils.parametrize.register_parametrization(self.fc, "weight", MaxNorm())


@start
class SpectralNorm(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        nn.init.xavier_uniform_(self.fc.weight, gain=0.02)
        self.fc = nn.utils.parametrizations.spectral_norm(self.fc)


# ---- convolutions, several layers, biases with something to tell


@start
class ConvPrior(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.body = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.fc = nn.Conv2d(WIDTH, classes, 1)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.constant_(self.fc.bias, -math.log(99))


@start
class Several(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.body = features(WIDTH)
        self.classifiers = nn.ModuleList(nn.Linear(WIDTH, num_classes) for _ in range(3))
        for layer in self.classifiers:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, -math.log(num_classes - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return sum(layer(x) for layer in self.classifiers)


@start
class LogFrequencies(Base):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        counts = torch.arange(1, classes + 1)
        nn.init.normal_(self.fc.weight, std=0.01)
        self.fc.bias.data.copy_((counts / counts.sum()).log())


# ---- what must not be run again


class Reading(Base):
    """A constructor that does more than to start its layers, in the same lines too."""

    calls: ClassVar[list[str]] = []

    def __init__(self, classes: int, path: str = "weights.pth") -> None:
        super().__init__(classes)
        self.calls.append("constructor")
        checkpoint = self.read(path)
        self.calls.append(f"read {len(checkpoint)}")
        self.init_and_report(0.5)
        nn.init.normal_(self.fc.weight, std=0.01)
        self.fc.bias.data.fill_(self.count())
        for name in ("a", "b"):
            self.calls.append(name)
        if self.count() > 1e9:
            nn.init.zeros_(self.fc.weight)

    def read(self, path: str) -> dict[str, torch.Tensor]:
        """Stand for something with an effect."""
        self.calls.append(path)
        return {}

    def count(self) -> float:
        self.calls.append("count")
        return 0.0

    def init_and_report(self, std: float) -> None:
        nn.init.normal_(self.fc.weight, std=std)
        self.calls.append("reported")


class ReadingHelper(Base):
    """A helper that starts the layers by what it reads."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.prepare()

    def prepare(self) -> None:
        with open(__file__) as file:
            scale = len(file.readline()) * 1e-4
        nn.init.normal_(self.fc.weight, std=scale)


class MappedHelper(Base):
    """A start in a call that isn't known to do nothing else."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        list(map(self.prepare, self.modules()))

    @staticmethod
    def prepare(m: nn.Module) -> None:
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=0.001)


class FunctionThatReads(Base):
    """A start by a function outside of the class."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        prepare_from_file(self, __file__)


def prepare_from_file(model: nn.Module, path: str) -> None:
    with open(path) as file:
        scale = len(file.readline()) * 1e-4
    for m in model.modules():
        if isinstance(m, nn.Linear):
            m.weight.data.normal_(0, scale)


class BiasThatIsRead(Base):
    """A bias that comes from elsewhere."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        with open(__file__) as file:
            self.fc.bias = nn.Parameter(torch.full((classes,), -float(len(file.readline()))))


class BiasOfAnotherSize(Base):
    """A size that nothing tells, where the default would be taken for it."""

    def __init__(self, outputs: int = 9) -> None:
        super().__init__(outputs)
        self.fc.bias.data = torch.full((outputs,), -4.6)


class OfAnotherLayer(Base):
    """What can't be repeated is of no concern for the head."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.neck = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.neck.weight, std=len(str(open)) * 1e-4)
