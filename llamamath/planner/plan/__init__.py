"""A plan: a job that fits a device and a budget, as a file that a person can read and edit."""
