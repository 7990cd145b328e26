"""VGG-16 for 32 × 32 images, with batch norm and one fully connected layer.

Simonyan and Zisserman, *Very Deep Convolutional Networks for Large-Scale Image Recognition*, 2015,
table 1, column D, https://arxiv.org/abs/1409.1556. The form for CIFAR is the usual one (Liu et al.,
*Network Slimming*, 2017, https://arxiv.org/abs/1708.06519): a batch norm behind each convolution,
four pools, and the mean over what is left of the image in the place of the two hidden layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_act_layer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

#: column D: channels of each convolution, stage by stage; a pool is between two stages
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VggCifar(nn.Module):
    """Thirteen 3 × 3 convolutions in five stages.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the images, which are at least 16 × 16.
        act_layer: timm's name of the activation.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3, act_layer: str = "relu") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = STAGES[-1][-1]
        before = (in_chans, *(widths[-1] for widths in STAGES))
        act = get_act_layer(act_layer)
        self.stages = nn.Sequential(
            *(
                _stage(own, widths, pooled=i > 0, act=act)
                for i, (own, widths) in enumerate(zip(before, STAGES, strict=False))
            )
        )
        self.classifier = nn.Linear(self.num_features, num_classes)
        self.feature_info = [
            {"num_chs": widths[-1], "reduction": 2**i, "module": f"stages.{i}"}
            for i, widths in enumerate(STAGES)
        ]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's form of groups, for learning rates by depth."""
        return {"blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward_features(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, 512, H/16, W/16]``."""
        return self.stages(x)

    def forward_head(self, x: Tensor) -> Tensor:
        """``[N, 512, H, W]`` to logits ``[N, num_classes]``."""
        return self.classifier(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _stage(
    in_channels: int, widths: tuple[int, ...], pooled: bool, act: Callable[[], nn.Module]
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if pooled else []
    for channels in widths:
        conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(channels), act()]
        in_channels = channels
    return nn.Sequential(*layers)


#: read by timm's register_model
default_cfgs = generate_default_cfgs(
    {
        "vgg16_cifar.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "stages.0.0",
            "classifier": "classifier",
        }
    }
)


@register_model
def vgg16_cifar(pretrained: bool = False, **kwargs: Any) -> VggCifar:
    """VGG-16 with batch norm, 14.7 M parameters."""
    return build_model_with_cfg(VggCifar, "vgg16_cifar", pretrained, **kwargs)
