"""A layer on a model's outputs, and other channels at its input: both are proven by a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from ftkit import adapt_input, append_head
from ftkit.errors import HeadError
from tests.heads.nets import Wired, features, wired


def test_a_layer_on_logits_beside_other_outputs() -> None:
    """A model of the transformers kind is called with its own keywords."""

    def forward(self: Wired, pixel_values: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        x = self.body(pixel_values)
        return {"features": x, "logits": self.classifier(x) if scale is None else self.classifier(x) * scale}

    model = append_head(wired(forward, body=features(), classifier=nn.Linear(8, 10), num_labels=10), 3)
    images = torch.zeros(2, 3, 16, 16)
    assert model(pixel_values=images, scale=torch.ones(())).shape == model(images).shape == (2, 3)
    assert isinstance(model, nn.Sequential)


def test_maps_of_scores_get_a_convolution_of_one_pixel() -> None:
    """As many pixels in a row as classes don't make it a linear layer."""
    model = append_head(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1)), 2)
    assert isinstance(model.head, nn.Conv2d)
    assert model(torch.zeros(2, 3, 16, 5)).shape == (2, 2, 16, 5)


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Sequential(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 5, 1), nn.AdaptiveAvgPool1d(5)), (2, 3, 20), (2, 2, 5)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(5)), (2, 3, 9, 9), (2, 2, 5, 5)),
        (
            wired(
                lambda self, x: self.head(self.body(x).movedim(1, -1)), body=nn.Conv2d(3, 8, 5), head=nn.Linear(8, 5)
            ),
            (2, 3, 9, 9),
            (2, 5, 5, 2),
        ),
    ],
)
def test_where_there_are_as_many_places_as_scores_the_head_tells(
    model: nn.Module, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Whether scores are the second axis or the last."""
    images = torch.zeros(shape)
    assert append_head(model, 2, example_inputs=images)(images).shape == expected


def test_one_row_for_each_example_tells_the_width_where_no_head_is_found() -> None:
    """Of the logits, or of what comes first. Else the error says what to pass, and sends no one in a circle."""
    parts = {"a": nn.Linear(8, 16), "b": nn.Linear(16, 11)}
    for run in (
        lambda self, x: {"features": self.a(x), "logits": self.b(self.a(x))},
        lambda self, x: (self.b(self.a(x)), self.a(x)),
    ):
        assert append_head(wired(run, **parts), 3)(torch.zeros(2, 8)).shape == (2, 3)
    with pytest.raises(HeadError, match=r"can't be told.*pass the layer itself") as caught:
        append_head(wired(lambda self, x: self.a(x).view(2, 4, 4) * self.b(self.a(x)).mean(), **parts), 3)
    assert "replace_head" not in str(caught.value)


def test_a_layer_that_does_not_fit_is_refused() -> None:
    """The user's own."""
    with pytest.raises(HeadError, match="does not run with the new layer"):
        append_head(nn.Sequential(nn.Linear(8, 10)), nn.Linear(9, 3))


def test_a_convolution_with_as_many_outputs_as_channels_keeps_its_bias() -> None:
    """Only its inputs change."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 4, 3))
    bias = model[0].bias.detach().clone()
    assert adapt_input(model, 1) == ["0"]
    assert torch.equal(model[0].bias, bias)
    assert model(torch.zeros(1, 1, 9, 9)).shape == (1, 4, 5, 5)


def test_a_norm_before_and_the_mean_of_images_follow() -> None:
    """They have a number for each channel."""
    model = wired(
        lambda self, x: self.body(self.norm(x - self.mean)), norm=nn.BatchNorm2d(3), body=nn.Conv2d(3, 4, 3)
    ).eval()
    model.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
    assert adapt_input(model, 1) == ["body"]
    assert model.mean.tolist() == [[[[pytest.approx(0.2)]]]]
    assert model.norm.num_features == 1
    assert model(torch.zeros(1, 1, 9, 9)).shape == (1, 4, 7, 7)


def test_images_beside_a_text_are_found() -> None:
    """The text alone would do for a run."""

    def forward(self: Wired, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        x = self.table(input_ids).mean(1)
        return self.head(x if pixel_values is None else x + self.patches(pixel_values).flatten(2).mean(2))

    model = wired(forward, table=nn.Embedding(9, 6), patches=nn.Conv2d(3, 6, 4, 4), head=nn.Linear(6, 5))
    assert adapt_input(model, 4) == ["patches"]


def test_what_mixes_the_channels_otherwise_is_refused() -> None:
    """A point network turns its points by a matrix of its own."""

    def forward(self: Wired, x: torch.Tensor) -> torch.Tensor:
        turn = self.turn(self.first(x).mean(2)).view(-1, 3, 3)
        return self.second((x.mT @ turn).mT).mean(2)

    model = wired(forward, first=nn.Conv1d(3, 8, 1), turn=nn.Linear(8, 9), second=nn.Conv1d(3, 5, 1))
    old = model.first
    with pytest.raises(HeadError, match="no longer runs"):
        adapt_input(model, 6)
    assert model.first is old


def test_a_convolution_over_positions_is_not_one_over_images() -> None:
    """The model makes them up by itself, with channels of their own."""

    def forward(self: Wired, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(y + self.places(torch.ones(1, 10, *y.shape[2:], dtype=y.dtype, device=y.device)))

    model = wired(forward, first=nn.Conv2d(3, 8, 3), places=nn.Conv2d(10, 8, 1), second=nn.Conv2d(8, 4, 3))
    assert adapt_input(model, 5) == ["first"]
    assert model(torch.zeros(1, 5, 9, 9)).shape == (1, 4, 5, 5)


def test_channels_that_the_model_makes_itself_are_refused() -> None:
    """A convolution behind a rearrangement of pixels takes four for each of the image's."""
    model = wired(
        lambda self, x: self.first(nn.functional.pixel_unshuffle(x, 2)).mean((2, 3)), first=nn.Conv2d(12, 8, 3)
    )
    first = model.first
    with pytest.raises(HeadError, match=r"'first' .* takes 12 channels.* rearrangement of pixels"):
        adapt_input(model, 1)
    assert model.first is first


def test_lazy_layers_and_half_precision() -> None:
    """The one is told to run first, the other is no matter."""
    with pytest.raises(HeadError, match="run the model on one batch first"):
        adapt_input(nn.Sequential(nn.LazyConv2d(8, 3)), 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3)).to(torch.bfloat16)
    assert adapt_input(model, 1) == ["0"]
    assert model[0].weight.dtype is torch.bfloat16


class Standardized(nn.Conv2d):
    """A convolution whose filters have no mean, and one length, times a gain where it has one."""

    def __init__(self, *args: int, gain: torch.Tensor | None = None, device: str | None = None) -> None:
        super().__init__(*args, device=device)
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve with the standardized weight."""
        over = self.weight.flatten(1)
        over = (over - over.mean(1, keepdim=True)) / over.std(1, keepdim=True)
        weight = over.view_as(self.weight) * (1 if self.gain is None else self.gain)
        return self._conv_forward(x, weight, self.bias)


def with_gain() -> Standardized:
    """Gains of either sign, none alike."""
    return Standardized(3, 8, 3, 2, 1, gain=nn.Parameter(torch.linspace(-2, 2, 8).view(8, 1, 1, 1)))


def normed() -> nn.BatchNorm2d:
    """With the statistics of ImageNet."""
    norm = nn.BatchNorm2d(3)
    norm.running_mean = torch.tensor([0.485, 0.456, 0.406])
    norm.running_var = torch.tensor([0.229, 0.224, 0.225]).square()
    return norm


def change_by_gray(model: nn.Module) -> float:
    """How much a model's output on a gray image changes with the number of its channels, relative to its length."""
    image = torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        before = model.eval()(image.expand(-1, 3, -1, -1))
        adapt_input(model, 1)
        return float((model(image) - before).norm() / before.norm())


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(with_gain()),
        lambda: nn.Sequential(timm.layers.ScaledStdConv2d(3, 8, 7, 2), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.BatchNorm2d(8)),
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1)),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3, dilation=2))),
        pytest.param(
            lambda: nn.Sequential(nn.utils.weight_norm(nn.ConvTranspose2d(3, 8, 3))),
            marks=pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),
        ),
    ],
    ids=["gain", "gain of timm", "patches", "norm alike by channel", "weight norm", "old weight norm, transposed"],
)
def test_a_gray_image_gives_what_equal_channels_gave(
    build: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    """Exactly so, with no warning."""
    assert change_by_gray(build()) < 1e-4
    assert not caplog.records


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: nn.Sequential(Standardized(3, 8, 3)), "'0' (Standardized, 3 -> 8) computes its filters"),
        (lambda: nn.Sequential(timm.layers.StdConv2d(3, 8, 7, 2)), "'0' (StdConv2d, 3 -> 8) computes its filters"),
        (lambda: nn.Sequential(normed(), nn.Conv2d(3, 8, 3)), "'0.running_mean' had a number for each channel"),
    ],
    ids=["standardized", "of timm", "norm"],
)
def test_a_gray_image_that_gives_something_else_is_told(
    build: Callable[[], nn.Module], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With what to do instead; and once, since it is about the model."""
    assert change_by_gray(build()) > 0.01
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("ftkit", "WARNING")
    assert reason in record.message
    assert "repeat the gray channel 3 times" in record.message


@pytest.mark.parametrize("channels", [2, 3, 4, 6])
def test_of_other_channels_nothing_is_told(channels: int, caplog: pytest.LogCaptureFixture) -> None:
    """They are no gray image."""
    adapt_input(nn.Sequential(normed(), Standardized(3, 8, 3)), channels)
    assert not caplog.records


def test_the_comparison_leaves_no_trace() -> None:
    """Not in random numbers, modes, statistics or the hooks of the user."""
    model = nn.Sequential(normed(), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    seen: list[nn.Module] = []
    model[1].register_forward_hook(lambda module, *_: seen.append(module))
    rest = {name: value.clone() for name, value in model[2].state_dict().items()}
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    adapt_input(model, 1)
    assert torch.equal(torch.rand(4), wanted)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, rest[name]) for name, value in model[2].state_dict().items())
    assert not seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_gain_follows_in_other_precisions(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    """As far as they are exact; where there are no values, there is nothing to tell."""
    adapt_input(nn.Sequential(with_gain(), nn.Conv2d(8, 4, 3)).to(dtype), 1)
    adapt_input(nn.Sequential(Standardized(3, 8, 3, device="meta")), 1)
    assert not caplog.records
