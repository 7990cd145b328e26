"""Models that timm lacks; importing this package registers them with timm."""

from dqnet.models.mobilenetv2_cifar import MobileNetV2Cifar
from dqnet.models.resnet_cifar import ResNetCifar

__all__ = ["MobileNetV2Cifar", "ResNetCifar"]
