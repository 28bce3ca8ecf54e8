"""The report of reward models."""
