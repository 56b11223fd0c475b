"""Models of many families, each frozen up to its head or its last stage: it is compared with itself, without rows.

``python benchmarks/precompute.py zoo [WORD]`` prints the table, of the cases whose names have the word.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import inspect
import multiprocessing
import random
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torchvision
from timm.models._registry import _model_to_module
from torch import Tensor, nn
from torch.utils.data import default_collate

from ftkit import find_head, freeze, last_blocks, precompute, unfreeze
from ftkit._precompute.trace import same_bits
from ftkit._torch import tree_leaves
from ftkit.errors import FtkitError
from tests.heads.zoo import transformer
from tests.precompute.smallest import smallest

SAMPLES, BATCH = 8, 4
SIDES = 64, 96, 128, 160, 192, 224, 256, 384
SMALL_NAMES = "test", "atto", "femto", "pico", "nano", "tiny", "xxs", "xs", "small", "18", "lite", "_s", "0"
SECONDS, BYTES = 180, 5 << 30  # of CPU time and of memory, for one case

SAME, REFUSED, WRONG, TOO_MUCH, NOT_BUILT = "same", "refused", "WRONG", "too slow or too large", "not built"

Built = tuple[nn.Module, list[Any]]


class Outcome(NamedTuple):
    """What came of a case.

    Attributes:
        case: Its name.
        verdict: One of the constants above.
        why: More about that.
        kept: How many bytes are kept of each sample.
        least: How many would do.
        seconds: How long it took.
    """

    case: str
    verdict: str
    why: str = ""
    kept: int = 0
    least: int = 0
    seconds: float = 0.0


# ---------------- timm and torchvision


def images(side: int, *, frames: int = 0) -> list[Any]:
    """Samples of noise."""
    torch.manual_seed(0)
    return [(torch.randn(3, *[frames] * bool(frames), side, side), at % 5) for at in range(SAMPLES)]


def of_timm(family: str) -> Built:
    """The smallest model of a family, for the smallest images that it takes."""
    names = [name for name in timm.list_models() if _model_to_module[name] == family]
    some = [name for word in SMALL_NAMES for name in names if word in name][:6] or names[:6]
    sizes = {}
    for name in some:
        with torch.device("meta"), contextlib.suppress(RuntimeError, NotImplementedError):
            sizes[name] = sum(one.numel() for one in timm.create_model(name).parameters())
    name = min(sizes, key=lambda name: sizes[name])
    side = timm.get_pretrained_cfg(name).input_size[-1]
    for small in sorted({side, *(one for one in SIDES if one < side)}):
        for options in ({"img_size": small}, {}):
            with contextlib.suppress(Exception), torch.no_grad():
                model = timm.create_model(name, num_classes=5, **options)
                model.eval()(torch.randn(2, 3, small, small))
                return model, images(small)
    raise RuntimeError(f"{name} takes no images of {side} pixels.")


def of_torchvision(name: str) -> Built:
    """One for small images, or short clips."""
    options = {"weights_backbone": None} if name.startswith(("fcn", "deeplabv3", "lraspp")) else {}
    model = torchvision.models.get_model(name, num_classes=5, **options)
    clips = isinstance(model, torchvision.models.video.VideoResNet) or name.startswith(("s3d", "mvit", "swin3d"))
    side = next(side for word, side in {"inception": 96, "vit": 224, "s3d": 64, "": 64}.items() if word in name)
    return model, images(224 if name.startswith(("mvit", "maxvit")) else side, frames=16 * clips)


OF_TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
    mobilenet_v2 mobilenet_v3_small regnet_y_400mf regnet_x_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5
    squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_16 wide_resnet50_2 r3d_18 mc3_18 r2plus1d_18 s3d swin3d_t
    mvit_v1_b fcn_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large
"""


# ---------------- transformers: small configurations


def of_transformers(family: str, task: str) -> Built:
    """A model of a small configuration, with the samples that it takes."""
    model = transformer(family, f"{family}For{task}", OPTIONS.get(family, {}))(5)
    torch.manual_seed(0)
    of_sounds = family in ("Wav2Vec2", "Hubert", "WavLM")
    of_texts = task in ("SequenceClassification", "TokenClassification")
    samples = (sounds if of_sounds else texts if of_texts else pictures)(model)
    for at, sample in enumerate(samples):
        if task == "TokenClassification":
            sample["labels"] = torch.arange(len(sample["input_ids"])) % 5
        elif task != "SemanticSegmentation":
            sample["labels"] = torch.tensor(at % 5)
    return model, samples


def texts(model: nn.Module) -> list[dict[str, Tensor]]:
    """Texts of several lengths, padded."""
    found = []
    config: Any = model.config
    end = getattr(config, "eos_token_id", None)
    for name in ("pad_token_id", "decoder_start_token_id"):
        if getattr(config, name, None) is None:
            setattr(config, name, 0)
    for at in range(SAMPLES):
        ids = torch.randint(10, 90, (16,))
        ids[15 - at % 4 :] = config.pad_token_id
        if isinstance(end, int):
            ids[14 - at % 4] = end
        found.append({"input_ids": ids, "attention_mask": (torch.arange(16) < 15 - at % 4).long()})
    takes = inspect.signature(model.forward).parameters
    return [{name: one for name, one in sample.items() if name in takes} for sample in found]


def pictures(model: nn.Module) -> list[dict[str, Tensor]]:
    """Images, or clips, of the size that the model is for."""
    config: Any = model.config
    side = getattr(getattr(config, "vision_config", config), "image_size", 64) or 64
    shape = (side, side) if isinstance(side, int) else tuple(side)
    frames = (config.num_frames,) if "Video" in type(model).__name__ else ()
    return [{"pixel_values": torch.randn(*frames, 3, *shape)} for _ in range(SAMPLES)]


def sounds(_: nn.Module) -> list[dict[str, Tensor]]:
    """Half a second."""
    return [{"input_values": torch.randn(8000)} for _ in range(SAMPLES)]


OPTIONS: dict[str, dict[str, Any]] = {
    "DebertaV2": {"pooler_hidden_size": 32},
    "Swin": {"embed_dim": 24},
    "Swinv2": {"embed_dim": 24},
    "TextNet": {"image_size": [64, 64]},
}
OF_TRANSFORMERS = {
    "SequenceClassification": """
        Albert Bart Bert BigBird Bloom Camembert Canine ConvBert Deberta DebertaV2 DistilBert Electra Ernie Esm Falcon
        FNet Funnel Gemma GPT2 GPTNeo GPTNeoX IBert LayoutLM Llama Longformer LED MBart MegatronBert Mistral MobileBert
        ModernBert MPNet Mpt Nystromformer OpenAIGPT OPT Phi Qwen2 RemBert Roberta RoFormer SqueezeBert T5 UMT5 XLM
        XLMRoberta XLNet Yoso Wav2Vec2 Hubert WavLM
    """,
    "TokenClassification": "Bert DebertaV2 DistilBert GPT2 Roberta XLNet",
    "ImageClassification": """
        Beit Bit CLIP ConvNext ConvNextV2 Cvt Data2VecVision DeiT Dinov2 EfficientNet FocalNet Hiera Levit MobileNetV1
        MobileNetV2 MobileViT MobileViTV2 PoolFormer Pvt PvtV2 RegNet ResNet Segformer Siglip SwiftFormer Swin Swinv2
        TextNet ViT ViTMSN
    """,
    "VideoClassification": "VideoMAE Timesformer",
    "SemanticSegmentation": "Segformer MobileViT Beit UperNet DPT MobileNetV2",
}


# ---------------- the cases, and judging them


CASES: dict[str, Callable[[], Built]] = {
    **{
        f"timm-{family}": (lambda family=family: of_timm(family)) for family in dict.fromkeys(_model_to_module.values())
    },
    **{f"torchvision-{name}": (lambda name=name: of_torchvision(name)) for name in OF_TORCHVISION.split()},
}
if importlib.util.find_spec("transformers"):
    CASES |= {
        f"transformers-{family}For{task}": (lambda family=family, task=task: of_transformers(family, task))
        for task, families in OF_TRANSFORMERS.items()
        for family in families.split()
    }
STAGES = "head", "last stage"


def judge(case: str, stage: str) -> Outcome:
    """Train a step with rows and without, in batches of other samples than the first pass had.

    If that differs, it has to be the same in the batches of the first pass, and nearly so in the others.
    """
    name = f"{case}, {stage}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            model, dataset = CASES[case]()
            args, kwargs = called(default_collate(dataset[:3]))
            model(*args, **kwargs)
            head = find_head(model)
            freeze(model)
            unfreeze(model, last_blocks(model, 1) if stage == "last stage" else head)
        except Exception as error:
            return Outcome(name, NOT_BUILT, f"{type(error).__name__}: {error}")
        with tempfile.TemporaryDirectory() as folder:
            try:
                cached = precompute(model, dataset, folder, batch_size=BATCH)
            except FtkitError as error:
                return Outcome(name, TOO_MUCH if "can't allocate memory" in str(error) else REFUSED, str(error))
            inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            stay = sum(inputs[at].nbytes // len(inputs[at]) for at in cached._player.cut.stays)
            kept = sum(size for *_, size in cached.kept) + stay
            model.train()

            def differs(order: Tensor, *, at_all: bool = True) -> str:
                batches = order.view(-1, BATCH).tolist()
                plain = [default_collate([dataset[at] for at in several]) for several in batches]
                return differing(model, plain, list(cached.loader(batch_sampler=batches)), at_all=at_all)

            shuffled = torch.randperm(SAMPLES)
            with cached:
                try:
                    wrong = differs(shuffled)
                    if wrong:  # some kernels round by where in a batch a sample is
                        wrong = differs(torch.arange(SAMPLES)) or differs(shuffled, at_all=False)
                except FtkitError as error:
                    return Outcome(name, REFUSED, f"late: {error}", kept)
            least = smallest(model, cached._player.cut.skips, *args, **kwargs)
        return Outcome(name, WRONG if wrong else SAME, wrong, kept, least)


def called(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), batch) if isinstance(batch, dict) else (tuple(batch[:1]), {})


def differing(model: nn.Module, plain: list[Any], rows: list[Any], *, at_all: bool) -> str:
    """Say what differs, of outputs, gradients and buffers: at all, or by more than rounding."""
    state = copy.deepcopy(model.state_dict())  # with the versions in it, by which modules load it
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    for batches in zip(plain, rows, strict=True):
        found = []
        for batch in batches:
            torch.manual_seed(1)
            random.seed(1)
            np.random.seed(1)  # noqa: NPY002
            model.load_state_dict(state)
            args, kwargs = called(batch)
            output = [one for one in tree_leaves(model(*args, **kwargs)) if isinstance(one, Tensor)]
            loss = sum(one.square().sum() for one in output if one.requires_grad)
            grads = torch.autograd.grad(loss, [*trained.values()], allow_unused=True)
            values = {f"output {at}": one.detach() for at, one in enumerate(output)}
            values |= {f"the gradient of {name}": one for name, one in zip(trained, grads, strict=True)}
            found.append(values | {name: one.clone() for name, one in model.named_buffers()})
        one, other = found
        largest = max(float(grad.abs().max()) for grad in grads if grad is not None and grad.numel())
        for name in {**one, **other}:
            pair = one.get(name), other.get(name)
            if not all(isinstance(each, Tensor) for each in pair):
                if pair[0] is not pair[1]:
                    return name
            elif not (same_bits(*pair) if at_all else _nearly(*pair, largest)):
                return name
    return ""


def _nearly(one: Tensor, other: Tensor, largest: float) -> bool:
    """Whether tensors differ by a millionth of the largest value at most.

    Some gradients are nothing but rounding, as of the biases of keys, so a hundredth of that beside the largest of all.
    """
    return torch.allclose(one, other, rtol=0, atol=max(1e-6 * float(one.abs().max()), 1e-8 * largest))


def judged(cases: Iterable[str], stages: Iterable[str] = STAGES) -> Iterator[Outcome]:
    """Judge cases, each in a process that ends if it takes too long or too much memory."""
    context = multiprocessing.get_context("fork")
    for case in cases:
        for stage in stages:
            ours, theirs = context.Pipe()
            process = context.Process(target=_limited, args=(theirs, case, stage), daemon=True)
            begin = time.monotonic()
            process.start()
            theirs.close()
            try:
                outcome = ours.recv()
            except EOFError:
                process.join()
                outcome = Outcome(f"{case}, {stage}", TOO_MUCH, f"ended with {process.exitcode}")
            process.join()
            yield outcome._replace(seconds=time.monotonic() - begin)


def _limited(pipe: Any, case: str, stage: str) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    torch.set_num_threads(1)
    try:
        outcome = judge(case, stage)
    except (MemoryError, RuntimeError) as error:
        outcome = Outcome(f"{case}, {stage}", TOO_MUCH if "memory" in str(error) else WRONG, f"{error}")
    pipe.send(outcome)
    pipe.close()


def share_same(outcomes: Iterable[Outcome]) -> float:
    """Which share of the cases that could be tried is the same to the bit."""
    tried = [one.verdict == SAME for one in outcomes if one.verdict not in (NOT_BUILT, TOO_MUCH)]
    return sum(tried) / max(len(tried), 1)
