"""Policy optimisation against a reward: the loop, what the policy is paid, and what watches it."""
