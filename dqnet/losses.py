"""What is added to the task loss: the price of bits, what keeps routing apart, and a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cost_penalty(cost: Tensor, target: float) -> Tensor:
    """max(0, mean(cost) / target − 1) (Liu et al. 2022, eq. 7, relative to the target).

    Args:
        cost: of each image, ``[N]``, in Bit-FLOPs or by another cost model.
        target: what the average image may cost, above 0.
    """
    return (cost.mean() / target - 1).clamp_min(0)


def mean_width_penalty(widths: Tensor, target_bits: float) -> Tensor:
    """max(0, mean(widths) − target_bits): the form of the authors' public code.

    Args:
        widths: the mean width of each image, ``[N]``.
        target_bits: bits that the average layer may have.
    """
    return (widths.mean() - target_bits).clamp_min(0)


def mutual_information(scores: Tensor) -> Tensor:
    """I(image; choice) in nats, averaged over the routed layers (Krause et al. 2010, eq. 3).

    Per layer the entropy of the batch-mean choice probabilities minus the mean entropy of each
    image's. It is 0 when all images get the same probabilities, and log K when each image is
    certain of a width and the widths are equally frequent. Krause et al., *Discriminative
    clustering by regularized information maximization*, NeurIPS 2010.

    Args:
        scores: ``[N, L, K]``.
    """
    log_p = scores.log_softmax(-1)
    p = log_p.exp()
    mean = p.mean(0)
    of_mean = -(mean * mean.clamp_min(1e-12).log()).sum(-1)
    mean_of = -(p * log_p).sum(-1).mean(0)
    return (of_mean - mean_of).mean()


def distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the class probabilities in nats, the mean over images.

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531, at temperature 1, with which Esser et al.
    (LSQ, 2020, https://arxiv.org/abs/1902.08153) train low-width networks. Its gradient is that of
    their cross-entropy with the teacher's probabilities; this form is 0 where student and teacher
    agree.

    Args:
        logits: the student's, ``[N, C]``.
        teacher_logits: the teacher's, ``[N, C]``.
    """
    student, teacher = logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
