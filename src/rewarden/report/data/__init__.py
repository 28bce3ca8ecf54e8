"""The page about preference data."""
