"""What the policy is rewarded with."""
