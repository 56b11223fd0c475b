"""Networks as people write them in courses and for papers, each by a function of the number of classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.heads.families import images
from tests.heads.nets import features, wired

Built = Callable[[int], nn.Module]
WRITTEN: dict[str, tuple[Built, Callable[[], tuple[Tensor, ...]] | None]] = {}


def network(inputs: Callable[[], tuple[Tensor, ...]] | None = None) -> Callable[[Built], Built]:
    """List a function that builds a network, with what that takes if it can't be made up."""

    def listed(build: Built) -> Built:
        WRITTEN[f"written-{build.__name__}"] = build, inputs
        return build

    return listed


def texts(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.zeros(shape, dtype=torch.long),)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


# ---- images


@network()
def lenet(n: int) -> nn.Module:
    return wired(
        lambda self, x: self.fc3(F.relu(self.fc2(F.relu(self.fc1(self.pool(F.relu(self.conv1(x))).flatten(1)))))),
        conv1=nn.Conv2d(3, 6, 5),
        pool=nn.AdaptiveAvgPool2d(4),
        fc1=nn.Linear(96, 120),
        fc2=nn.Linear(120, 84),
        fc3=nn.Linear(84, n),
    )


@network()
def log_softmax(n: int) -> nn.Module:
    """The example for MNIST, on colors."""
    return wired(
        lambda self, x: F.log_softmax(self.fc2(self.dropout(F.relu(self.fc1(self.body(x))))), dim=1),
        body=features(),
        fc1=nn.Linear(8, 20),
        dropout=nn.Dropout(),
        fc2=nn.Linear(20, n),
    )


@network()
def all_convolutional(n: int) -> nn.Module:
    return nn.Sequential(conv(3, 16), conv(16, 32, 2), nn.Conv2d(32, n, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@network()
def normed_scores(n: int) -> nn.Module:
    """A network in network for CIFAR."""
    last = nn.Sequential(nn.Conv2d(16, n, 1), nn.BatchNorm2d(n), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return wired(
        lambda self, x: self.classifier(self.features(x)), features=conv(3, 16), classifier=last, num_classes=n
    )


@network()
def squeeze_and_excite(n: int) -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * self.gate(x.mean((2, 3)))[..., None, None]
        return self.out(x.amax((2, 3)))

    gate = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), nn.Sigmoid())
    return wired(forward, stem=conv(3, 16), gate=gate, out=nn.Linear(16, n))


@network()
def side_outputs(n: int) -> nn.Module:
    """Deep supervision, summed up in training as GoogLeNet has it."""

    def forward(self: nn.Module, x: Tensor) -> object:
        x = self.one(x)
        aux = self.aux_head(x.mean((2, 3)))
        out = self.head(self.two(x).mean((2, 3)))
        return (out, aux) if self.training else out

    return wired(
        forward, one=conv(3, 16), two=conv(16, 32, 2), aux_head=nn.Linear(16, n), head=nn.Linear(32, n), num_classes=n
    )


@network(images(2, 3, 32, 32))
def vit(n: int) -> nn.Module:
    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 32, 8, 8)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 32))
            self.pos_embed = nn.Parameter(torch.randn(1, 17, 32) * 0.02)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2)
            self.mlp_head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, n))

        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
            return self.mlp_head(self.encoder(x)[:, 0])

    return ViT()


@network()
def cosine_classifier(n: int) -> nn.Module:
    """For few shots: directions of the classes, and one temperature."""

    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(n, 8))
            self.scale = nn.Parameter(torch.tensor(10.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * F.linear(F.normalize(x), F.normalize(self.weight))

    return wired(lambda self, x: self.classifier(self.body(x)), body=features(), classifier=Cosine())


@network(lambda: (torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)))
def siamese(n: int) -> nn.Module:
    """Two images, and which of the relations holds between them."""
    return wired(lambda self, a, b: self.fc((self.body(a) - self.body(b)).abs()), body=features(), fc=nn.Linear(8, n))


@network()
def discriminator_with_classes(n: int) -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.validity(x).sigmoid(), self.label(x).softmax(1)

    return wired(forward, body=features(), validity=nn.Linear(8, 1), label=nn.Linear(8, n))


@network()
def coarse_to_fine(n: int) -> nn.Module:
    """A hierarchy: the fine classes are those that change, and are told by a counter."""

    def forward(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        coarse = self.coarse(x)
        return coarse, self.fine(torch.cat([x, coarse], 1))

    return wired(forward, body=features(), coarse=nn.Linear(8, 4), fine=nn.Linear(12, n), num_classes=n)


@network()
def boxes_and_classes(n: int) -> nn.Module:
    """One object in an image."""
    return wired(
        lambda self, x: {"boxes": self.bbox(self.body(x)).sigmoid(), "scores": self.cls(self.body(x))},
        body=features(),
        bbox=nn.Linear(8, 4),
        cls=nn.Linear(8, n),
    )


@network(images(2, 6, 3, 16, 16))
def attention_over_instances(n: int) -> nn.Module:
    """Gated attention over a bag of patches."""

    def forward(self: nn.Module, bag: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(bag.flatten(0, 1)).unflatten(0, bag.shape[:2])
        weights = self.attention_w(torch.tanh(self.attention_v(x)) * torch.sigmoid(self.attention_u(x))).softmax(1)
        return self.classifier((weights * x).sum(1)), weights

    return wired(
        forward,
        body=features(),
        attention_v=nn.Linear(8, 6),
        attention_u=nn.Linear(8, 6),
        attention_w=nn.Linear(6, 1),
        classifier=nn.Linear(8, n),
    )


@network()
def soft_mixture(n: int) -> nn.Module:
    """Experts that all give classes, weighted by a gate."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.body(x)
        weights = self.gate(x).softmax(1)
        return torch.stack([expert(x) for expert in self.experts], 1).mul(weights[..., None]).sum(1)

    experts = nn.ModuleList(nn.Linear(8, n) for _ in range(3))
    return wired(forward, body=features(), gate=nn.Linear(8, 3), experts=experts, num_classes=n)


@network()
def mixture_inside(n: int) -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.body(x)
        weights = self.router(x).softmax(1)
        return self.head(sum(weights[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts)))

    experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3))
    return wired(forward, body=features(), router=nn.Linear(8, 3), experts=experts, head=nn.Linear(8, n))


@network()
def task_by_name(n: int) -> nn.Module:
    """Heads in a ModuleDict, of which the forward takes one."""
    heads = nn.ModuleDict({"species": nn.Linear(8, n)})
    return wired(lambda self, x: self.heads["species"](self.body(x)), body=features(), heads=heads)


@network()
def ordinal_thresholds(n: int) -> nn.Module:
    """Classes in an order: a layer for each class, squashed."""
    return wired(lambda self, x: self.fc(self.body(x)).sigmoid(), body=features(), fc=nn.Linear(8, n))


# ---- maps


class UNet(nn.Module):
    """Two levels; with ``deep``, each level of the decoder gives classes."""

    def __init__(self, n: int, *, deep: bool) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv(3, 8), conv(8, 16, 2), conv(16, 32, 2)
        self.up2, self.dec2 = nn.ConvTranspose2d(32, 16, 2, 2), conv(32, 16)
        self.up1, self.dec1 = nn.ConvTranspose2d(16, 8, 2, 2), conv(16, 8)
        self.outc = nn.Conv2d(8, n, 1)
        self.ds2 = nn.Conv2d(16, n, 1) if deep else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        one = self.down1(x)
        two = self.down2(one)
        y2 = self.dec2(torch.cat([self.up2(self.bottom(two)), two], 1))
        y1 = self.outc(self.dec1(torch.cat([self.up1(y2), one], 1)))
        return y1 if self.ds2 is None else (y1, F.interpolate(self.ds2(y2), x.shape[-2:]))


@network(images(2, 3, 32, 32))
def unet(n: int) -> nn.Module:
    return UNet(n, deep=False)


@network(images(2, 3, 32, 32))
def unet_with_deep_supervision(n: int) -> nn.Module:
    model = UNet(n, deep=True)
    model.n_classes = n
    return model


@network()
def keypoint_heatmaps(n: int) -> nn.Module:
    """A map for each keypoint, which count as classes here."""
    return nn.Sequential(
        conv(3, 16, 2), conv(16, 32, 2), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, n, 1)
    )


@network(images(2, 3, 64, 64))
def grid_detector(n: int) -> nn.Module:
    """YOLO's first version, three anchors of five numbers and the classes."""

    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_classes = n
            self.body = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2))
            self.boxes, self.classes = nn.Conv2d(32, 3 * 5, 1), nn.Conv2d(32, 3 * n, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body(x)
            scores = self.classes(x).unflatten(1, (3, self.num_classes)).permute(0, 1, 3, 4, 2)
            return self.boxes(x).unflatten(1, (3, 5)).permute(0, 1, 3, 4, 2), scores

    return Grid()


# ---- texts, speech and other series


@network(texts(2, 9))
def lstm_of_texts(n: int) -> nn.Module:
    def forward(self: nn.Module, tokens: Tensor) -> Tensor:
        _, (last, _) = self.lstm(self.embedding(tokens))
        return self.fc(torch.cat([last[-2], last[-1]], 1))

    return wired(
        forward,
        embedding=nn.Embedding(50, 16, padding_idx=0),
        lstm=nn.LSTM(16, 12, 2, batch_first=True, bidirectional=True),
        fc=nn.Linear(24, n),
    )


@network(lambda: (torch.zeros(2, 9, dtype=torch.long), torch.tensor([9, 5])))
def lstm_of_packed_texts(n: int) -> nn.Module:
    def forward(self: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return self.fc(last[-1])

    return wired(forward, embedding=nn.Embedding(50, 16), lstm=nn.LSTM(16, 12, batch_first=True), fc=nn.Linear(12, n))


@network(lambda: (torch.zeros(2, 9, dtype=torch.long), torch.tensor([9, 9])))
def tagger_of_packed_texts(n: int) -> nn.Module:
    def forward(self: nn.Module, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(tokens), lengths.cpu(), batch_first=True)
        out, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.hidden2tag(out)

    return wired(
        forward, embedding=nn.Embedding(50, 16), gru=nn.GRU(16, 12, batch_first=True), hidden2tag=nn.Linear(12, n)
    )


@network(texts(2, 9))
def convolutions_over_texts(n: int) -> nn.Module:
    def forward(self: nn.Module, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).transpose(1, 2)
        return self.fc(self.dropout(torch.cat([one(x).relu().amax(2) for one in self.convs], 1)))

    return wired(
        forward,
        embedding=nn.Embedding(50, 16),
        convs=nn.ModuleList(nn.Conv1d(16, 10, size) for size in (2, 3, 4)),
        dropout=nn.Dropout(),
        fc=nn.Linear(30, n),
    )


@network(lambda: (torch.zeros(12, dtype=torch.long), torch.tensor([0, 5])))
def bag_of_words(n: int) -> nn.Module:
    return wired(
        lambda self, text, offsets: self.fc(self.embedding(text, offsets)),
        embedding=nn.EmbeddingBag(50, 16),
        fc=nn.Linear(16, n),
    )


@network(texts(2, 9))
def transformer_of_texts(n: int) -> nn.Module:
    def forward(self: nn.Module, tokens: Tensor) -> Tensor:
        return self.decoder(self.encoder(self.embedding(tokens)).mean(1))

    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return wired(
        forward, embedding=nn.Embedding(50, 16), encoder=nn.TransformerEncoder(layer, 2), decoder=nn.Linear(16, n)
    )


@network(images(2, 1, 40, 60))
def speech_with_ctc(n: int) -> nn.Module:
    """Deep Speech in small: spectra to characters."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.cnn(x).flatten(1, 2).transpose(1, 2)
        return F.log_softmax(self.classifier(self.rnn(x)[0]), dim=2).transpose(0, 1)

    return wired(
        forward,
        cnn=nn.Conv2d(1, 4, 3, 2, 1),
        rnn=nn.GRU(80, 16, batch_first=True, bidirectional=True),
        classifier=nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, n)),
    )


@network(images(2, 5, 64))
def convolutions_over_time(n: int) -> nn.Module:
    """Activities from sensors: dilated convolutions, the last step counts."""
    body = nn.Sequential(
        nn.Conv1d(5, 16, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv1d(16, 16, 3, padding=4, dilation=4)
    )
    return wired(lambda self, x: self.linear(self.tcn(x)[:, :, -1]), tcn=body, linear=nn.Linear(16, n))


@network(texts(2, 9))
def generator_of_words(n: int) -> nn.Module:
    """A language model; words are its classes, and the embedding has its own weight."""
    return wired(
        lambda self, tokens: self.lm_head(self.rnn(self.embed(tokens))[0]),
        embed=nn.Embedding(50, 16),
        rnn=nn.LSTM(16, 16, batch_first=True),
        lm_head=nn.Linear(16, n, bias=False),
    )


# ---- tables and graphs


@network(lambda: (torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 4)))
def table_with_categories(n: int) -> nn.Module:
    """Embeddings of categories beside numbers, as in fastai's course."""

    def forward(self: nn.Module, categories: Tensor, numbers: Tensor) -> Tensor:
        found = [embed(categories[:, i]) for i, embed in enumerate(self.embeds)]
        return self.layers(torch.cat([*found, self.bn_cont(numbers)], 1))

    return wired(
        forward,
        embeds=nn.ModuleList(nn.Embedding(size, 4) for size in (5, 9, 3)),
        bn_cont=nn.BatchNorm1d(4),
        layers=nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.BatchNorm1d(20), nn.Linear(20, n)),
    )


@network(images(2, 12))
def residual_table(n: int) -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.output(self.norm(x).relu())

    blocks = nn.ModuleList(
        nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(2)
    )
    return wired(forward, first=nn.Linear(12, 16), blocks=blocks, norm=nn.LayerNorm(16), output=nn.Linear(16, n))


@network(lambda: (torch.zeros(6, 8), torch.eye(6)))
def graph_convolutions(n: int) -> nn.Module:
    """Kipf and Welling's, on a dense adjacency."""
    return wired(
        lambda self, x, adjacency: F.log_softmax(adjacency @ self.gc2(F.relu(adjacency @ self.gc1(x))), dim=1),
        gc1=nn.Linear(8, 16),
        gc2=nn.Linear(16, n),
    )


@network(lambda: (torch.zeros(2, 16, 3),))
def point_cloud(n: int) -> nn.Module:
    """PointNet without its transforms."""
    return wired(
        lambda self, points: self.classifier(self.mlp(points.transpose(1, 2)).amax(2)),
        mlp=nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 1)),
        classifier=nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, n)),
    )


@network(lambda: (torch.zeros(2, 3, 16, 16), torch.zeros(2, 9, dtype=torch.long)))
def image_and_text(n: int) -> nn.Module:
    """Late fusion of two towers."""

    def forward(self: nn.Module, image: Tensor, tokens: Tensor) -> Tensor:
        return self.fusion(torch.cat([self.vision(image), self.text(tokens).mean(1)], 1))

    return wired(
        forward,
        vision=features(),
        text=nn.Embedding(50, 12),
        fusion=nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, n)),
    )
