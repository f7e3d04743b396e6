"""Whether a job fits, how much of it would, and what to change if it does not."""
