"""MobileNetV2 for 32 × 32 images: timm's network with fewer strides.

Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, 2018, table 2,
https://arxiv.org/abs/1801.04381. The stem and the stage of 24 channels have stride 1 instead of 2,
so that the last features are 4 × 4.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_act_layer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet

#: table 2 as timm writes it: repeats, kernel, stride, expansion, channels
STAGES = [
    ["ds_r1_k3_s1_c16"],
    ["ir_r2_k3_s1_e6_c24"],
    ["ir_r3_k3_s2_e6_c32"],
    ["ir_r4_k3_s2_e6_c64"],
    ["ir_r3_k3_s1_e6_c96"],
    ["ir_r3_k3_s2_e6_c160"],
    ["ir_r1_k3_s1_e6_c320"],
]


class MobileNetV2Cifar(EfficientNet):
    """timm's EfficientNet, whose first convolution keeps the resolution."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv_stem.stride = (1, 1)
        for stage in self.feature_info:
            stage["reduction"] //= 2


#: read by timm's register_model
default_cfgs = generate_default_cfgs(
    {
        f"mobilenetv2_{width}_cifar.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "conv_stem",
            "classifier": "classifier",
        }
        for width in ("050", "100")
    }
)


def _create(variant: str, width: float, pretrained: bool, **kwargs: Any) -> MobileNetV2Cifar:
    channels = partial(round_channels, multiplier=width)
    form = {
        "block_args": decode_arch_def(STAGES),
        "num_features": max(1280, channels(1280)),
        "round_chs_fn": channels,
        "act_layer": get_act_layer("relu6"),
        "feature_cfg": {"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
    }
    return build_model_with_cfg(MobileNetV2Cifar, variant, pretrained, **(form | kwargs))


@register_model
def mobilenetv2_050_cifar(pretrained: bool = False, **kwargs: Any) -> MobileNetV2Cifar:
    """MobileNetV2 of half the width, 0.70 M parameters."""
    return _create("mobilenetv2_050_cifar", 0.5, pretrained, **kwargs)


@register_model
def mobilenetv2_100_cifar(pretrained: bool = False, **kwargs: Any) -> MobileNetV2Cifar:
    """MobileNetV2, 2.2 M parameters."""
    return _create("mobilenetv2_100_cifar", 1.0, pretrained, **kwargs)
