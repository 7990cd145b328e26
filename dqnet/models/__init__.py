"""Models that timm lacks; importing this package registers them with timm."""

from dqnet.models.g_ghost_resnet_cifar import GGhostStage
from dqnet.models.mobilenetv2_cifar import MobileNetV2Cifar
from dqnet.models.resnet_cifar import ResNetCifar

__all__ = ["GGhostStage", "MobileNetV2Cifar", "ResNetCifar"]
