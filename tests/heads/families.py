"""Models of many packages: where a class lives, and how it is called for a number of classes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn


class Family(NamedTuple):
    """A class of models: where it lives, how to call it for a number of classes, and what such a model takes."""

    module: str
    name: str
    call: Callable[[Any, int], nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]] | None = None  # where that can't be made up

    def build(self) -> Callable[[int], nn.Module]:
        """How to build one for a number of classes."""
        kind = getattr(importlib.import_module(self.module), self.name)
        return lambda classes: self.call(kind, classes)


def of(module: str, name: str) -> Any:
    """Another part of a package."""
    return getattr(importlib.import_module(module), name)


def images(*shape: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: (torch.zeros(shape),)


FAMILIES: dict[str, Family] = {}

# ---- vit_pytorch

VIT = {"image_size": 64, "patch_size": 16, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 32}
VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit.ViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "simple_vit.SimpleViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "ats_vit.ViT": ("image_size patch_size dim depth heads mlp_dim", {"max_tokens_per_depth": (8, 4)}),
    "attn_residual_with_dca_simple_vit.SimpleViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "cait.CaiT": ("image_size patch_size dim depth heads mlp_dim", {"cls_depth": 1}),
    "cross_vit.CrossViT": ("image_size", {"sm_dim": 16, "lg_dim": 32, "sm_patch_size": 8, "depth": 1}),
    "crossformer.CrossFormer": ("", {"dim": (32, 32, 64, 64), "depth": (1, 1, 1, 1)}),
    "cvt.CvT": ("", {"s3_depth": 1}),
    "deepvit.DeepViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "t2t.T2TViT": ("image_size dim depth heads mlp_dim", {"image_size": 224}),
    "jet_vit.JetViT": ("image_size patch_size dim depth heads mlp_dim", {"dim_head": 16}),
    "jumbo_vit.JumboViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "learnable_memory_vit.ViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "levit.LeViT": ("", {"image_size": 224, "dim": (32, 48, 64), "depth": 1, "heads": (2, 2, 2), "mlp_mult": 2}),
    "local_vit.LocalViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "look_vit.LookViT": ("dim image_size", {"image_size": 96, "depth": 1, "heads": 2}),
    "looped_vit.LoopedViT": (
        "dim image_size patch_size heads mlp_dim",
        {"pre_loop_depth": 1, "num_looped_blocks": 1, "post_loop_depth": 1, "loop_depth": 2},
    ),
    "max_vit.MaxViT": ("dim", {"depth": (1, 1, 1, 1), "dim_conv_stem": 16}),
    "max_vit_with_registers.MaxViT": ("dim", {"depth": (1, 1, 1, 1), "dim_conv_stem": 16}),
    "mobile_vit.MobileViT": (
        "",
        {
            "image_size": (64, 64),
            "dims": [24, 32, 40],
            "channels": [16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 96],
        },
    ),
    "mp3.ViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "nest.NesT": ("image_size dim heads", {"patch_size": 4, "num_hierarchies": 3, "block_repeats": (1, 1, 1)}),
    "normalized_vit.nViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "parallel_vit.ViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "pit.PiT": ("patch_size dim heads mlp_dim", {"image_size": 224, "depth": (1, 1, 1)}),
    "regionvit.RegionViT": ("", {"dim": (8, 16, 32, 64), "depth": (1, 1, 1, 1)}),
    "rvt.RvT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "scalable_vit.ScalableViT": (
        "dim",
        {
            "depth": (1, 1, 1, 1),
            "heads": (1, 2, 2, 2),
            "reduction_factor": (8, 4, 2, 1),
            "window_size": (64, 32, None, None),
        },
    ),
    "sep_vit.SepViT": ("dim", {"depth": (1, 1, 1, 1), "heads": (1, 1, 2, 2)}),
    "simple_flash_attn_vit.SimpleViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "simple_uvit.SimpleUViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "simple_vit_1d.SimpleViT": ("patch_size dim depth heads mlp_dim", {"seq_len": 128}),
    "simple_vit_3d.SimpleViT": (
        "image_size dim depth heads mlp_dim",
        {"image_patch_size": 16, "frames": 8, "frame_patch_size": 2},
    ),
    "simple_vit_attn_residual.SimpleViTAttnResidual": ("image_size patch_size dim depth heads mlp_dim", {}),
    "simple_vit_orthog_residual_update.SimpleViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "simple_vit_with_fft.SimpleViT": ("image_size patch_size dim depth heads mlp_dim", {"freq_patch_size": 8}),
    "simple_vit_with_hyper_connections.SimpleViT": (
        "image_size patch_size dim depth heads mlp_dim",
        {"num_residual_streams": 2},
    ),
    "simple_vit_with_patch_dropout.SimpleViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "simple_vit_with_qk_norm.SimpleViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "simple_vit_with_register_tokens.SimpleViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "simple_vit_with_sparse_gating.SimpleViTWithSparseGating": ("image_size patch_size dim depth heads mlp_dim", {}),
    "simple_vit_with_specialized_cls.SimpleViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "simple_vit_with_value_residual.SimpleViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "twins_svt.TwinsSVT": ("", {"s3_depth": 1, "s1_emb_dim": 16, "s2_emb_dim": 32, "s3_emb_dim": 32, "s4_emb_dim": 64}),
    "vit_1d.ViT": ("patch_size dim depth heads mlp_dim", {"seq_len": 128}),
    "vit_3d.ViT": (
        "image_size dim depth heads mlp_dim",
        {"image_patch_size": 16, "frames": 8, "frame_patch_size": 2},
    ),
    "vit_5.ViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "vit_detpool.ViTDetPool": ("image_size patch_size dim depth heads mlp_dim", {}),
    "vit_for_small_dataset.ViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "vit_with_decorr.ViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "vit_with_keel_post_ln.ViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "vit_with_patch_dropout.ViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "vit_with_patch_merger.ViT": ("image_size patch_size dim depth heads mlp_dim", {}),
    "vivit.ViViT": (
        "image_size dim heads mlp_dim",
        {"image_patch_size": 16, "frames": 8, "frame_patch_size": 2, "spatial_depth": 1, "temporal_depth": 1},
    ),
    "xcit.XCiT": ("image_size patch_size dim depth heads mlp_dim", {"cls_depth": 1}),
}
for _path, (_usual, _more) in VITS.items():
    _stem, _, _name = _path.partition(".")
    FAMILIES[f"vit_pytorch-{_path}"] = Family(
        f"vit_pytorch.{_stem}",
        _name,
        lambda kind, n, usual=_usual, more=_more: kind(
            num_classes=n, **({key: VIT[key] for key in usual.split()} | more)
        ),
    )
FAMILIES["vit_pytorch-cct.CCT"] = Family(
    "vit_pytorch.cct",
    "CCT",
    lambda kind, n: kind(img_size=64, embedding_dim=32, n_conv_layers=1, num_layers=2, num_heads=2, num_classes=n),
)
FAMILIES["vit_pytorch-vit_nd.ViTND"] = Family(
    "vit_pytorch.vit_nd",
    "ViTND",
    lambda kind, n: kind(ndim=2, input_shape=64, patch_size=16, num_classes=n, dim=32, depth=2, heads=2, mlp_dim=32),
)

# ---- monai

STAGES = {"channels": (8, 16, 32), "strides": (2, 2)}
MONAI: dict[str, Callable[[Any, int], nn.Module]] = {
    "AHNet": lambda kind, n: kind(spatial_dims=2, in_channels=3, out_channels=n),
    "AttentionUnet": lambda kind, n: kind(spatial_dims=2, in_channels=3, out_channels=n, **STAGES),
    "BasicUNet": lambda kind, n: kind(spatial_dims=2, in_channels=3, out_channels=n),
    "BasicUNetPlusPlus": lambda kind, n: kind(spatial_dims=2, in_channels=3, out_channels=n, deep_supervision=True),
    "Classifier": lambda kind, n: kind(in_shape=(3, 64, 64), classes=n, **STAGES),
    "DenseNet121": lambda kind, n: kind(spatial_dims=2, in_channels=3, out_channels=n),
    "DynUNet": lambda kind, n: kind(2, 3, n, [3, 3, 3], [1, 2, 2], [2, 2], deep_supervision=True, deep_supr_num=1),
    "EfficientNetBN": lambda kind, n: kind("efficientnet-b0", pretrained=False, num_classes=n),
    "FlexibleUNet": lambda kind, n: kind(in_channels=3, out_channels=n, backbone="efficientnet-b0"),
    "FullyConnectedNet": lambda kind, n: kind(12, n, [16, 16]),
    "HighResNet": lambda kind, n: kind(spatial_dims=2, in_channels=3, out_channels=n),
    "MedNeXt": lambda kind, n: kind(spatial_dims=2, init_filters=8, in_channels=3, out_channels=n),
    "MILModel": lambda kind, n: kind(num_classes=n, pretrained=False, backbone="resnet18"),
    "Quicknat": lambda kind, n: kind(num_classes=n, num_channels=3, num_filters=16),
    "SEResNet50": lambda kind, n: kind(spatial_dims=2, in_channels=3, num_classes=n),
    "SENet154": lambda kind, n: kind(spatial_dims=2, in_channels=3, num_classes=n),
    "SegResNet": lambda kind, n: kind(spatial_dims=2, in_channels=3, out_channels=n),
    "SegResNetDS": lambda kind, n: kind(spatial_dims=2, in_channels=3, out_channels=n, init_filters=8, dsdepth=2),
    "SegResNetVAE": lambda kind, n: kind((64, 64), spatial_dims=2, in_channels=3, out_channels=n),
    "SwinUNETR": lambda kind, n: kind(in_channels=3, out_channels=n, feature_size=12, spatial_dims=2),
    "TorchVisionFCModel": lambda kind, n: kind("resnet18", num_classes=n),
    "UNETR": lambda kind, n: kind(3, n, (64, 64), 8, 32, 64, 2, spatial_dims=2),
    "UNet": lambda kind, n: kind(spatial_dims=2, in_channels=3, out_channels=n, num_res_units=2, **STAGES),
    "VNet": lambda kind, n: kind(spatial_dims=2, in_channels=1, out_channels=n),
    "ViT": lambda kind, n: kind(
        3, (64, 64), (16, 16), 32, 64, 2, 2, classification=True, num_classes=n, spatial_dims=2
    ),
    "resnet18": lambda kind, n: kind(spatial_dims=3, n_input_channels=1, num_classes=n),
    "DAF3D": lambda kind, n: kind(1, n),
}
MONAI_INPUTS = {"MILModel": images(2, 4, 3, 64, 64)}
for _name, _call in MONAI.items():
    FAMILIES[f"monai-{_name}"] = Family("monai.networks.nets", _name, _call, MONAI_INPUTS.get(_name))

# ---- nnU-Net's architectures

_UNET = {
    "n_stages": 3,
    "features_per_stage": (8, 16, 32),
    "conv_op": nn.Conv2d,
    "kernel_sizes": 3,
    "strides": (1, 2, 2),
    "n_conv_per_stage_decoder": (1, 1),
    "conv_bias": True,
    "norm_op": nn.InstanceNorm2d,
    "norm_op_kwargs": {"affine": True},
    "nonlin": nn.LeakyReLU,
}
for _name, _blocks in {
    "PlainConvUNet": "n_conv_per_stage",
    "ResidualEncoderUNet": "n_blocks_per_stage",
    "ResidualUNet": "n_blocks_per_stage",
}.items():
    for _deep in (False, True):
        FAMILIES[f"nnunet-{_name}-{'deep' if _deep else 'flat'}"] = Family(
            "dynamic_network_architectures.architectures.unet",
            _name,
            lambda kind, n, blocks=_blocks, deep=_deep: kind(
                input_channels=3, num_classes=n, deep_supervision=deep, **{blocks: (1, 1, 1)}, **_UNET
            ),
        )
FAMILIES["nnunet-ResNet18"] = Family(
    "dynamic_network_architectures.architectures.resnet", "ResNet18_CIFAR", lambda kind, n: kind(n, 3)
)
FAMILIES["nnunet-VGG16"] = Family(
    "dynamic_network_architectures.architectures.vgg", "VGG16_cifar", lambda kind, n: kind(n, 3)
)

# ---- tsai: three variables, 64 steps

TSAI: dict[str, Callable[[Any, int], nn.Module]] = {
    **dict.fromkeys(
        ("FCN", "FCNPlus", "ResCNN", "ResNet", "InceptionTime", "TCN", "TransformerModel", "XceptionTime"),
        lambda kind, n: kind(3, n),
    ),
    **dict.fromkeys(("RNN", "LSTM", "GRU"), lambda kind, n: kind(3, n)),
    **dict.fromkeys(
        (
            "ConvTran",
            "gMLP",
            "InceptionTimePlus",
            "MLP",
            "GRUAttention",
            "GRUPlus",
            "LSTMPlus",
            "LSTM_FCN",
            "GRU_FCNPlus",
            "MLSTM_FCN",
            "ResNetPlus",
            "TSPerceiver",
            "TSSequencerPlus",
            "TST",
            "TSTPlus",
            "TSiTPlus",
            "TransformerRNNPlus",
            "TransformerGRUPlus",
            "TransformerLSTMPlus",
            "XCM",
            "XCMPlus",
            "mWDN",
            "XceptionTimePlus",
            "XCMPlus",
            "xresnet1d18plus",
            "mWDNPlus",
            "MiniRocketPlus",
            "PatchTST",
            "HydraPlus",
            "HydraMultiRocketPlus",
            "MultiRocketPlus",
        ),
        lambda kind, n: kind(3, n, 64),
    ),
    "OmniScaleCNN": lambda kind, n: kind(3, n, 64, layers=[128, 1024]),
    "xresnet1d18": lambda kind, n: kind(3, n),
    "TabModel": lambda kind, n: kind([(5, 3), (4, 2)], 3, n),
    "TabTransformer": lambda kind, n: kind({"a": ["x", "y"], "b": ["u", "v"]}, ["c", "d"], n),
    "TabFusionTransformer": lambda kind, n: kind({"a": ["x", "y"], "b": ["u", "v"]}, ["c", "d"], n),
}
for _name, _call in TSAI.items():
    FAMILIES[f"tsai-{_name}"] = Family("tsai.models.all", _name, _call)

# ---- braindecode: eight channels, four seconds of 125 steps

BRAINS = (
    "ATCNet",
    "AttentionBaseNet",
    "BIOT",
    "ContraWR",
    "CTNet",
    "Deep4Net",
    "DeepSleepNet",
    "EEGConformer",
    "EEGInceptionERP",
    "EEGInceptionMI",
    "EEGITNet",
    "EEGMiner",
    "EEGNet",
    "EEGNeX",
    "EEGSimpleConv",
    "EEGTCNet",
    "FBCNet",
    "FBLightConvNet",
    "FBMSNet",
    "HybridNet",
    "IFNet",
    "MSVTNet",
    "MEDFormer",
    "SCCNet",
    "ShallowFBCSPNet",
    "SignalJEPA_PostLocal",
    "SignalJEPA_PreLocal",
    "SincShallowNet",
    "SleepStagerBlanco2020",
    "SleepStagerChambon2018",
    "AttnSleep",
    "SPARCNet",
    "SSTDPN",
    "SyncNet",
    "TCFormer",
    "BDTCN",
    "TIDNet",
    "TSception",
    "USleep",
    "Labram",
    "CBraMod",
    "LUNA",
    "EEGPT",
    "BENDR",
)
BRAIN_SIZES: dict[str, dict[str, Any]] = {
    "AttnSleep": {"n_times": 3000, "sfreq": 100, "n_chans": 1},
    "DeepSleepNet": {"n_times": 3000, "sfreq": 100, "n_chans": 1},
    "USleep": {"n_times": 3000, "sfreq": 100},
    "Labram": {"n_times": 1000, "sfreq": 200, "n_chans": 128},
    "CBraMod": {"n_times": 1000, "sfreq": 200},
}
for _name in BRAINS:
    FAMILIES[f"braindecode-{_name}"] = Family(
        "braindecode.models",
        _name,
        lambda kind, n, name=_name: kind(
            **({"n_outputs": n, "n_chans": 8, "n_times": 500, "sfreq": 125} | BRAIN_SIZES.get(name, {}))
        ),
    )

# ---- speech

FAMILIES |= {
    "speechbrain-Xvector.Classifier": Family(
        "speechbrain.lobes.models.Xvector", "Classifier", lambda kind, n: kind((None, None, 32), out_neurons=n)
    ),
    "speechbrain-ECAPA.Classifier": Family(
        "speechbrain.lobes.models.ECAPA_TDNN", "Classifier", lambda kind, n: kind(32, lin_blocks=1, out_neurons=n)
    ),
    "speechbrain-CRDNN-ctc": Family(
        "torch.nn",
        "Sequential",
        lambda kind, n: kind(
            of("speechbrain.lobes.models.CRDNN", "CRDNN")(
                input_size=40, cnn_blocks=1, cnn_channels=[8], rnn_neurons=16, dnn_neurons=16, dnn_blocks=1
            ),
            of("speechbrain.nnet.linear", "Linear")(input_size=16, n_neurons=n),
        ),
        images(2, 20, 40),
    ),
}
