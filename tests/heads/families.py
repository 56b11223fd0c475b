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


class Recognition(nn.Module):
    """Features, and in training a loss that has the directions of the classes."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.loss_func = loss

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.trunk(x)
        return self.loss_func(x, labels) if self.training else x


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
TSAI_INPUTS = {"PatchTST": images(2, 3, 64)}
for _name, _call in TSAI.items():
    FAMILIES[f"tsai-{_name}"] = Family("tsai.models.all", _name, _call, TSAI_INPUTS.get(_name))

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

# ---- pytorchcv: one of each of its architectures

CV = [
    "alexnet",
    "bagnet17",
    "bam_resnet50",
    "bn_vgg11",
    "bninception",
    "cbam_resnet18",
    "channelnet",
    "condensenet74_c4_g4",
    "darknet19",
    "darknet53",
    "densenet121",
    "diapreresnet10",
    "diaresnet10",
    "diracnet18v2",
    "dla34",
    "dpn68",
    "drnc26",
    "efficientnet_b0",
    "efficientnet_edge_small_b",
    "espnetv2_w1",
    "fastseresnet101b",
    "fbnet_cb",
    "ghostnet",
    "hardnet39ds",
    "hrnet_w18_small_v1",
    "ibn_resnet50",
    "ibnb_resnet50",
    "igcv3_w1",
    "inceptionv3",
    "isqrtcovresnet18",
    "menet108_8x1_g3",
    "mixnet_s",
    "mnasnet_a1",
    "mobilenetb_w1",
    "mobilenetv2_w1",
    "mobilenetv3_large_w1",
    "nasnet_4a1056",
    "octresnet10_ad2",
    "peleenet",
    "preresnet10",
    "proxylessnas_cpu",
    "regnetx002",
    "resattnet56",
    "resnesta18",
    "resnet10",
    "resneta10",
    "resnetd50b",
    "resnext14_16x4d",
    "scnet50",
    "selecsls42",
    "sepreresnet10",
    "seresnet10",
    "seresnext50_32x4d",
    "shufflenetv2_w1",
    "shufflenetv2b_w1",
    "sknet50",
    "spnasnet",
    "sqnxt23_w1",
    "squeezenet_v1_0",
    "squeezeresnet_v1_0",
    "visemenet20",
    "vovnet27s",
    "xception",
    "zfnet",
    "nin_cifar10",
    "resnet20_cifar10",
    "pyramidnet110_a48_cifar10",
    "rir_cifar10",
    "ror3_56_cifar10",
    "resdropresnet20_cifar10",
    "xdensenet40_2_k24_bc_cifar10",
    "wrn20_10_1bit_cifar10",
    "resnet18_cub",
    "ntsnet_cub",
    "enet_cityscapes",
    "erfnet_cityscapes",
    "cgnet_cityscapes",
    "dabnet_cityscapes",
    "edanet_cityscapes",
    "espcnet_cityscapes",
    "fastscnn_cityscapes",
    "fpenet_cityscapes",
    "lednet_cityscapes",
    "linknet_cityscapes",
    "segnet_cityscapes",
    "sinet_cityscapes",
    "sqnet_cityscapes",
    "unet_cityscapes",
    "icnet_resnetd50b_cityscapes",
    "pspnet_resnetd50b_voc",
    "deeplabv3_resnetd50b_voc",
    "fcn8sd_resnetd50b_voc",
]
_CV_SIZES = {"cityscapes": {"in_size": (128, 256)}, "voc": {"in_size": (128, 128)}}  # not as large as photos of streets
for _name in CV:
    FAMILIES[f"pytorchcv-{_name}"] = Family(
        "pytorchcv.model_provider",
        "get_model",
        lambda kind, n, name=_name: kind(name, num_classes=n, **_CV_SIZES.get(name.rpartition("_")[2], {})),
    )

# ---- torchreid: models of identities, which give features in eval mode

for _name in [
    "resnet50_fc512",
    "se_resnet50",
    "densenet121",
    "xception",
    "inceptionv4",
    "resnet50_ibn_a",
    "nasnsetmobile",
    "mobilenetv2_x1_0",
    "shufflenet",
    "squeezenet1_0",
    "shufflenet_v2_x0_5",
    "mudeep",
    "resnet50mid",
    "hacnn",
    "pcb_p4",
    "mlfn",
    "osnet_x0_25",
    "osnet_ain_x0_25",
]:
    FAMILIES[f"torchreid-{_name}"] = Family(
        "torchreid.reid.models",
        "build_model",
        lambda kind, n, name=_name: kind(name, num_classes=n, pretrained=False, use_gpu=False),
    )

# ---- pretrainedmodels

for _name in [
    "fbresnet152",
    "bninception",
    "resnext101_32x4d",
    "inceptionv4",
    "inceptionresnetv2",
    "nasnetamobile",
    "dpn68",
    "xception",
    "senet154",
    "se_resnext50_32x4d",
    "cafferesnet101",
    "polynet",
]:
    FAMILIES[f"pretrainedmodels-{_name}"] = Family(
        "pretrainedmodels", _name, lambda kind, n: kind(num_classes=n, pretrained=None)
    )

# ---- one or a few from each of many packages

_TAB = {"d_in": 12, "n_blocks": 2, "d_block": 32}
FAMILIES |= {
    "torchxrayvision-DenseNet": Family(
        "torchxrayvision.models", "DenseNet", lambda kind, n: kind(num_classes=n, block_config=(2, 2, 2, 2))
    ),
    "efficientnet_pytorch-b0": Family(
        "efficientnet_pytorch", "EfficientNet", lambda kind, n: kind.from_name("efficientnet-b0", {"num_classes": n})
    ),
    "facenet_pytorch-InceptionResnetV1": Family(
        "facenet_pytorch", "InceptionResnetV1", lambda kind, n: kind(classify=True, num_classes=n)
    ),
    "resnest-resnest50": Family("resnest.torch", "resnest50", lambda kind, n: kind(num_classes=n)),
    "rtdl-MLP": Family("rtdl_revisiting_models", "MLP", lambda kind, n: kind(d_out=n, dropout=0.1, **_TAB)),
    "rtdl-ResNet": Family(
        "rtdl_revisiting_models",
        "ResNet",
        lambda kind, n: kind(d_out=n, dropout1=0.1, dropout2=0.0, d_hidden_multiplier=2.0, **_TAB),
    ),
    "rtdl-FTTransformer": Family(
        "rtdl_revisiting_models",
        "FTTransformer",
        lambda kind, n: kind(n_cont_features=12, cat_cardinalities=[], d_out=n, **kind.get_default_kwargs(n_blocks=1)),
        lambda: (torch.zeros(2, 12), None),
    ),
    "perceiver_pytorch-Perceiver": Family(
        "perceiver_pytorch",
        "Perceiver",
        lambda kind, n: kind(
            num_freq_bands=2, depth=1, max_freq=4, num_latents=8, latent_dim=32, latent_heads=2, num_classes=n
        ),
        images(2, 32, 32, 3),
    ),
    "mlp_mixer_pytorch-MLPMixer": Family(
        "mlp_mixer_pytorch",
        "MLPMixer",
        lambda kind, n: kind(image_size=64, channels=3, patch_size=16, dim=32, depth=2, num_classes=n),
    ),
    "g_mlp_pytorch-gMLPVision": Family(
        "g_mlp_pytorch",
        "gMLPVision",
        lambda kind, n: kind(image_size=64, patch_size=16, num_classes=n, dim=32, depth=2),
    ),
    "torch_mlp-MLP": Family("torch_mlp", "MLP", lambda kind, n: kind(d_in=12, d_hidden=16, d_out=n, depth=2)),
    "pytorchvideo-resnet": Family(
        "pytorchvideo.models", "create_resnet", lambda kind, n: kind(model_num_class=n, stem_dim_out=8)
    ),
    "pytorchvideo-x3d": Family(
        "pytorchvideo.models.x3d",
        "create_x3d",
        lambda kind, n: kind(model_num_class=n, input_clip_length=4, input_crop_size=64),
        images(2, 3, 4, 64, 64),
    ),
    "pytorchvideo-csn": Family("pytorchvideo.models.csn", "create_csn", lambda kind, n: kind(model_num_class=n)),
    "pytorchvideo-r2plus1d": Family(
        "pytorchvideo.models.r2plus1d", "create_r2plus1d", lambda kind, n: kind(model_num_class=n)
    ),
    "pytorchvideo-mvit": Family(
        "pytorchvideo.models.vision_transformers",
        "create_multiscale_vision_transformers",
        lambda kind, n: kind(spatial_size=64, temporal_size=4, depth=2, head_num_classes=n),
    ),
    "lightly-LinearClassifier": Family(
        "lightly.utils.benchmarking",
        "LinearClassifier",
        lambda kind, n: kind(of("torchvision.models", "resnet18")(num_classes=64), 2, feature_dim=64, num_classes=n),
    ),
    **{
        f"pytorch_metric_learning-{name}": Family(
            "pytorch_metric_learning.losses",
            name,
            lambda kind, n: Recognition(kind(n, 8)),
            lambda: (torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.long)),
        )
        for name in ("ArcFaceLoss", "CosFaceLoss", "NormalizedSoftmaxLoss", "ProxyAnchorLoss")
    },
    "open_clip-probe": Family(
        "open_clip.transformer",
        "VisionTransformer",
        lambda kind, n: nn.Sequential(
            kind(image_size=32, patch_size=8, width=32, layers=2, heads=2, mlp_ratio=2.0, output_dim=24),
            nn.Linear(24, n),
        ),
        images(2, 3, 32, 32),
    ),
    "kornia-RTDETR": Family(
        "kornia.models.rt_detr",
        "RTDETR",
        lambda kind, n: kind.from_config(of("kornia.models.rt_detr", "RTDETRConfig")("resnet18d", n, input_size=320)),
        images(2, 3, 320, 320),
    ),
    "sentence_transformers-CrossEncoder": Family(
        "transformers",
        "BertForSequenceClassification",
        lambda kind, n: kind(
            kind.config_class(
                vocab_size=60,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                num_labels=n,
                sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"},
            )
        ),
    ),
    "x_transformers-TransformerWrapper": Family(
        "x_transformers",
        "TransformerWrapper",
        lambda kind, n: kind(
            num_tokens=64, max_seq_len=16, logits_dim=n, attn_layers=of("x_transformers", "Encoder")(dim=32, depth=1)
        ),
    ),
    "x_transformers-ContinuousTransformerWrapper": Family(
        "x_transformers",
        "ContinuousTransformerWrapper",
        lambda kind, n: kind(
            dim_in=8, dim_out=n, max_seq_len=16, attn_layers=of("x_transformers", "Encoder")(dim=32, depth=1)
        ),
    ),
}
