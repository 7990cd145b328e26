"""What is done to a trained float network, or a calibrated one, instead of training it."""

from dqnet.post_training.adaround import adaround
from dqnet.post_training.bias_correction import correct_biases
from dqnet.post_training.equalization import equalize

__all__ = ["adaround", "correct_biases", "equalize"]
