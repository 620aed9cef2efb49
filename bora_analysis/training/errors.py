"""The error that stops a training run before it starts."""


class TrainingError(ValueError):
    """One line: the value given, the value expected, the remedy."""
