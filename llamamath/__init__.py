"""llamamath: plan, train and evaluate mathematical reasoning models inside the memory of one GPU."""

__version__ = "0.1.0"
