"""The reward model that learns while the policy does."""
