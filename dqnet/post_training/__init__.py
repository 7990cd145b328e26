"""What is done to a calibrated network instead of training it, one published method per file."""

from dqnet.post_training.adaround import adaround
from dqnet.post_training.bias_correction import correct_biases

__all__ = ["adaround", "correct_biases"]
