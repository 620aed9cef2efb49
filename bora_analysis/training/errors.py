"""What stops a training run before it starts."""


class TrainingError(ValueError):
    """One line: what was given, what was expected, what to do."""
