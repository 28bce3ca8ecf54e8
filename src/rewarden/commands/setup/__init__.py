"""From options to objects."""
