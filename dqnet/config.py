"""The typed form of a run's configuration: what ``conf/`` composes is checked against it.

Values live in ``conf/*.yaml``; here are their names and types. Only the controller has defaults of
its own, because library callers build one without any YAML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class DataConfig:
    """A data set and how it is fed. Sizes are in pixels; ``batch_size`` is over all processes."""

    _target_: str = MISSING  # a function (DataConfig) -> dqnet.data.Splits
    root: str | None = MISSING
    download: bool = MISSING
    size: int = MISSING
    mean: list[float] = MISSING  # per channel, of images in [0, 1]
    std: list[float] = MISSING
    crop_padding: int = MISSING  # random crops of images padded by this much; 0: none
    flip: bool = MISSING  # random horizontal flips
    cache: bool = MISSING  # decode once and keep the pixels in memory
    batch_size: int = MISSING
    val_fraction: float = MISSING  # of the training part, in [0, 1)
    workers: int = MISSING  # decoding processes, used when cache is false
    damaged: str = "stop"  # or "skip" damaged images; older checkpoints lack it
    corruption: float = 0.0  # share that is blurred, noisy or of half the resolution


@dataclass
class ModelConfig:
    """A timm model name and where its float weights come from."""

    name: str = MISSING
    pretrained: bool = MISSING
    checkpoint_path: str | None = MISSING  # a file, or package:NAME/PATH in an installed package
    checkpoint_by: str = "name"  # or "order"; older checkpoints lack it
    args: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model
    transforms: list[Any] = field(default_factory=list)  # {name: NAME, option: value}, in order


@dataclass
class ControllerConfig:
    """The bit controller. The defaults keep the routing different from image to image.

    Attributes:
        kind: ``"shared"`` reads the split point's features (the paper's form), ``"separate"`` is a
            small convolutional network that reads the image itself (the paper's ablation),
            ``"table"`` has learned scores that are the same for every image.
        pool: ``"mean"`` (the paper) or ``"mean_std"`` pooled features.
        batch_norm: normalise the pooled features over the batch (the paper: no).
        activation: ``"relu"`` or ``"none"`` between the two fully connected layers.
        hidden: units of the first fully connected layer.
        dropout: probability, before the first fully connected layer, in [0, 1).
        tau: Gumbel-softmax temperature at the start, above 0.
        tau_end: temperature at the end of training, reached geometrically; ``None``: constant.
    """

    kind: str = "shared"
    pool: str = "mean_std"
    batch_norm: bool = True
    activation: str = "relu"
    hidden: int = 32
    dropout: float = 0.0
    tau: float = 1.0
    tau_end: float | None = None


@dataclass
class TensorQuantConfig:
    """The quantizer of one of a layer's tensors, where the two differ."""

    quantizer: str | None = None  # None: quant.quantizer
    options: dict[str, Any] = field(default_factory=dict)  # beside those of quant.options


@dataclass
class CalibrationConfig:
    """What quantizers take from data, and when."""

    images: int = 512  # of the training part, without augmentation
    before_training: bool = False  # False: the first batch sets it, but with trainer.epochs=0


@dataclass
class PostTrainingConfig:
    """What is done beside or instead of training."""

    equalize: bool = False  # weights, before calibration; with fold_batch_norm=true
    adaround: int = 0  # iterations for each layer; 0: weights are rounded to nearest
    bias_correction: bool = False
    images: int = 256  # of those of the calibration


@dataclass
class WinogradConfig:
    """How 3 x 3 convolutions multiply: the fields of :class:`dqnet.layers.winograd.Winograd`."""

    tile: int | None = None  # outputs of a tile's side, 2 or 4; None: multiplied directly
    scales: str = "tap"  # or layer
    bits: int = 8  # of transformed weights and inputs
    learned: bool = True


@dataclass
class QuantConfig:
    """How the model is converted; the arguments of :func:`dqnet.quantize`.

    Checkpoints written before a key with a default existed lack it.
    """

    quantizer: str | None = MISSING  # None: full precision, the model stays as it is
    widths: list[Any] = MISSING  # bits, or precisions such as w4a8
    shared_until: str | None = MISSING
    static_width: Any = MISSING
    full_precision: list[str] | None = MISSING
    static: list[str] = MISSING
    first_last: Any = "full"  # or a precision: the first convolution and the classifier
    layers: Any = None  # pattern → full, a precision or a list
    plan: str | None = None  # a file: what every layer runs at, instead of all the above
    weight: TensorQuantConfig = field(default_factory=TensorQuantConfig)
    input: TensorQuantConfig = field(default_factory=TensorQuantConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    post_training: PostTrainingConfig = field(default_factory=PostTrainingConfig)
    options: dict[str, Any] = field(default_factory=dict)  # the quantizers' own arguments
    fold_batch_norm: Any = False  # or True: before conversion; "corrected", "uncorrected"
    freeze_batch_norm: float | None = None  # share of the training, in [0, 1]
    parameter_decay: float = MISSING  # weight decay of clipping values that ask for one (PACT)
    choice_gradient: str = MISSING  # "exact" or "sampled"
    width_affine: bool = MISSING  # each width scales and shifts a layer's output on its own
    # Of the gradient to each quantized layer's output; None: as it is. Older checkpoints lack it.
    gradient_bits: int | None = None
    residual: int | None = None  # bits between layers; None: float32. Older checkpoints lack it.
    winograd: WinogradConfig = field(default_factory=WinogradConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)


@dataclass
class LossConfig:
    """Task loss plus the price of bits. Older checkpoints lack those with a default."""

    target_bits: float | None = MISSING  # None: the middle width
    alpha: float = MISSING  # weight of the penalty
    penalty: str = MISSING  # "bit_flops" (of the cost that is named below) or "mean_width"
    mutual_information: float = MISSING  # beta; 0 is the paper's plain recipe
    label_smoothing: float = MISSING
    mutual_information_until: float = 1.0  # the part of the training with that term
    distillation: float = 0.0  # weight of the divergence from the float network it starts from
    cost: str = "bit_flops"  # the cost model that penalty and target are in
    cost_options: dict[str, Any] = field(default_factory=dict)  # its fields, or files with them


@dataclass
class SearchConfig:
    """What chooses one precision for every layer before the training. Older checkpoints lack it."""

    name: str = "none"  # none, or one of dqnet.search
    images: int = 2000  # held-out training images to choose by, at most
    epochs: int = 8  # of the training that search=table is
    options: dict[str, Any] = field(default_factory=dict)  # the search's own


@dataclass
class PruneConfig:
    """What makes zeros in the training (see :mod:`dqnet.pruning`). Older checkpoints lack it."""

    name: str = "none"  # none, magnitude, soft_filters or keep
    ratio: float = 0.0  # of the weights, or filters, in [0, 1)
    layers: Any = None  # pattern → ratio
    scope: str = "layer"  # or global, for single weights
    until: float = 0.0  # share of the training after which the ratio is reached; 0: at once
    every: int = 100  # steps between two prunings until then


@dataclass
class OptimConfig:
    """A timm optimizer and a schedule that is stepped once per update."""

    name: str = MISSING
    lr: float = MISSING
    momentum: float = MISSING
    weight_decay: float = MISSING
    controller_lr_scale: float = MISSING
    clip_grad: float | None = MISSING  # largest global gradient norm; None: no clipping
    schedule: str = MISSING  # constant, cosine, step or multistep
    warmup_epochs: float = MISSING
    min_lr: float = MISSING
    decay_epochs: float = MISSING  # step: epochs between decays
    milestones: list[float] = MISSING  # multistep: epochs of the decays
    decay_rate: float = MISSING


@dataclass
class TrainerConfig:
    """The loop."""

    epochs: int = MISSING
    device: str = MISSING  # auto, cpu, cuda, cuda:1, mps ...
    precision: str = MISSING  # 32 or bf16
    ema: float | None = MISSING  # decay of an exponential moving average of the weights
    channels_last: bool | None = MISSING  # memory format; None: on a CPU, where it is faster
    sync_batch_norm: bool = True  # several processes: one mean and variance for all
    compile: bool = MISSING
    progress: bool = MISSING
    # Within an epoch, from one checkpoint to the next; None: not by this measure.
    checkpoint_steps: int | None = None
    checkpoint_minutes: float | None = 10.0


@dataclass
class LoggerConfig:
    """Tracking beside the run folder's own files."""

    name: str = MISSING  # none or wandb
    project: str = "dqnet"
    mode: str = "offline"  # offline, online or disabled
    group: str | None = None


@dataclass
class TrainConfig:
    """Everything a run depends on; stored whole in its checkpoints."""

    seed: int = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class EvalDataConfig:
    """What may differ from training; ``None`` keeps the checkpoint's own."""

    root: str | None = None
    batch_size: int | None = None
    workers: int | None = None
    damaged: str | None = None
    corruption: float | None = None
    download: bool = False  # whatever the checkpoint says, which may be a stranger's


@dataclass
class EvalTrainerConfig:
    """What may differ from training; ``None`` keeps the checkpoint's own."""

    device: str | None = None
    precision: str | None = None


@dataclass
class CascadeConfig:
    """The second pass of a cascade; if nothing is given there is none."""

    checkpoint: str | None = None  # as EvalConfig's; None: the same network
    budget: float | None = None  # as EvalConfig's, of the second pass
    view: str | None = None  # of the image: mirror, or None, as it is
    combine: str = "committee"  # the average of both answers; replace: the second answer
    share: float | None = None  # of held-out images that run twice: this cascade is saved


@dataclass
class ReportConfig:
    """A page about the evaluation, and the runs that it is compared with."""

    name: str = "none"  # none or html
    baselines: list[str] = field(default_factory=list)  # run folders: static, full precision


@dataclass
class ExportConfig:
    """A file of the network for other runtimes, and how it agrees with the simulated one."""

    name: str = "none"  # none or onnx
    form: str = "exact"  # or integer
    packed: bool = False  # weights of up to 4 bits in 4 bits, with form=exact
    runtime: str = "auto"  # what it is compared in: auto, onnxruntime or openvino


@dataclass
class EvalConfig:
    """What eval.py reads beside the checkpoint."""

    checkpoint: str | None = None  # a file, or a run folder (its best.pt)
    split: str = "test"  # or val: the held-out part of the training images
    output: str | None = None  # a folder; None: the checkpoint's
    budget: float | None = None  # a width, as loss.target_bits; None: as trained
    curve: bool = False
    controls: bool = False
    sparsity: bool = False  # zeros of weights and inputs: sparsity.csv, and the energy without them
    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    logger: LoggerConfig = field(default_factory=lambda: LoggerConfig(name="none"))
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    trainer: EvalTrainerConfig = field(default_factory=EvalTrainerConfig)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted name → value; lists are values."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
