"""Reading and writing jobs: YAML, JSON, JSON lines, strictly, with errors that name the field."""
