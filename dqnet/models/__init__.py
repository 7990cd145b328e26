"""Models that timm lacks; importing this package registers them with timm."""

from dqnet.models.resnet_cifar import ResNetCifar

__all__ = ["ResNetCifar"]
