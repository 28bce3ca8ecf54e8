"""Rewards of completions, whoever says them."""
