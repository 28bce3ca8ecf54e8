"""The report of a policy-optimisation run."""
