"""How long a step takes and what a run costs: a roofline, with its range."""
