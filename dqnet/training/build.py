"""From a configuration to a model: create, load, convert."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from dqnet.config import ModelConfig, QuantConfig
from dqnet.convert import quantize
from dqnet.errors import UserError, unknown_name
from dqnet.fold import fold_batch_norms
from dqnet.plan import Plan
from dqnet.post_training import equalize
from dqnet.quantizers import Method, Options, takes
from dqnet.training.weights import load_closest
from dqnet.transforms import apply, stages


def build_model(
    model: ModelConfig,
    quant: QuantConfig,
    num_classes: int,
    image_shape: tuple[int, int, int],
    load_weights: bool = True,
    plan: Plan | None = None,
) -> nn.Module:
    """A float model, or a converted one if ``quant.quantizer`` names a quantizer.

    Args:
        model, quant: which timm model, its float weights, and how to convert it.
        num_classes, image_shape: of the data; ``(C, H, W)``.
        load_weights: whether to read pretrained weights, which a model that is about to load its
            own checkpoint does not need.
        plan: what every layer runs at; ``None``: as ``quant`` says.
    """
    sample = torch.zeros(1, *image_shape)
    float_model, left = _float_model(model, num_classes, sample, load_weights)
    trained = load_weights and starts_from_weights(model)
    float_model = apply(float_model, sample, left, trained)
    if quant.quantizer is None:
        return float_model
    if plan is None and quant.plan is not None:
        plan = Plan.load(quant.plan)
    if quant.fold_batch_norm is True:
        fold_batch_norms(float_model, sample)
    if quant.post_training.equalize:
        equalize(float_model, sample)
    return quantize(
        float_model,
        sample,
        widths=quant.widths,
        quantizer=_method(quant),
        shared_until=quant.shared_until,
        plan=plan,
        static_width=quant.static_width,
        first_last=quant.first_last,
        full_precision=quant.full_precision,
        static=quant.static,
        layers=quant.layers,
        options=_options(quant),
        controller=quant.controller,
        choice_gradient=quant.choice_gradient,
        width_affine=quant.width_affine,
        fold_batch_norm=False if quant.fold_batch_norm is True else quant.fold_batch_norm,
        gradient_bits=quant.gradient_bits,
        residual=quant.residual,
    )


def starts_from_weights(model: ModelConfig) -> bool:
    """Whether a configuration names float weights."""
    return model.pretrained or model.checkpoint_path is not None


def _float_model(
    config: ModelConfig, num_classes: int, sample: Tensor, load_weights: bool
) -> tuple[nn.Module, list[Any]]:
    """The float model with the weights it starts from, and the transforms that are left to apply.

    A checkpoint may be of the plain network or of what one or more of the transforms have made of
    it; names and shapes tell.
    """
    if config.pretrained and config.checkpoint_path is not None:
        raise UserError(
            "model.pretrained=true and model.checkpoint_path both choose weights: give one"
        )
    plain = create_float_model(config, num_classes, sample.shape[1], load_weights)
    check_images_fit(plain, config.name, tuple(sample.shape[1:]))
    if not load_weights or config.checkpoint_path is None:
        return plain, config.transforms
    found = stages(plain, sample, config.transforms)
    done = load_closest(found, config.checkpoint_path, config.checkpoint_by)
    return found[done], config.transforms[done:]


def _method(quant: QuantConfig) -> Method:
    """The quantizers of weights and of inputs."""
    pair = quant.weight.quantizer, quant.input.quantizer
    if pair == (None, None):
        return quant.quantizer
    return tuple(quant.quantizer if own is None else own for own in pair)


def _options(quant: QuantConfig) -> Options:
    """Those of both tensors, or of each where one has its own."""
    if not quant.weight.options and not quant.input.options:
        return dict(quant.options)
    shared = takes(_method(quant), quant.options)
    pairs = zip(shared, (quant.weight, quant.input), strict=True)
    return tuple(table | dict(own.options) for table, own in pairs)


def build_teacher(
    model: ModelConfig, num_classes: int, image_shape: tuple[int, int, int]
) -> nn.Module:
    """The float network that a run starts from, as it is: what the run may also learn from.

    Raises:
        UserError: if the run starts from no trained network.
    """
    if not starts_from_weights(model):
        raise UserError(
            "loss.distillation needs a trained float network to learn from: "
            "model.checkpoint_path=FILE or model.pretrained=true"
        )
    teacher, _ = _float_model(model, num_classes, torch.zeros(1, *image_shape), load_weights=True)
    return teacher.eval().requires_grad_(False)


def create_float_model(
    config: ModelConfig, num_classes: int, in_chans: int, load_weights: bool = True
) -> nn.Module:
    """A timm model by name.

    Raises:
        UserError: for an unknown name, with the nearest valid ones, an argument that the model
            does not take, or one that chooses weights: model.args may be a stranger's, out of a
            checkpoint, and must not have timm download or read anything.
    """
    for argument in config.args:
        if argument.startswith("pretrained") or argument in ("checkpoint_path", "cache_dir"):
            raise UserError(
                f"model.args.{argument} is not allowed: weights are chosen by model.pretrained and "
                "model.checkpoint_path"
            )
    name = config.name.partition(".")[0]
    if not timm.is_model(name):
        raise unknown_name("model", config.name, timm.list_models(), "(any timm model works)")
    pretrained = config.pretrained and load_weights
    try:
        return timm.create_model(
            config.name,
            pretrained=pretrained,
            num_classes=num_classes,
            in_chans=in_chans,
            **config.args,
        )
    except Exception as error:  # whatever a wrong argument leads to
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        if config.args:
            raise UserError(f"model.args does not fit {config.name}: {line}") from error
        if pretrained and isinstance(error, RuntimeError | OSError):
            raise UserError(f"no pretrained weights for {config.name}: {line}") from error
        if "." in config.name:
            raise UserError(f"model.name={config.name}: {line}") from error
        raise


def check_images_fit(model: nn.Module, name: str, image_shape: tuple[int, int, int]) -> None:
    """Raises UserError for images ``(C, H, W)`` of another size, or a model of features."""
    training = model.training
    try:
        with torch.no_grad():
            scores = model.eval()(torch.zeros(1, *image_shape))
    except (AssertionError, RuntimeError, ValueError) as error:
        size = " x ".join(map(str, image_shape[1:]))
        line = str(error).splitlines()[0]
        raise UserError(f"{name} cannot take images of {size} (data.size): {line}") from error
    finally:
        model.train(training)
    if not isinstance(scores, torch.Tensor) or scores.dim() != 2:
        raise UserError(f"{name} does not return class scores [N, C]: see model.args")
