"""Training, evaluation, checkpoints, logging."""
