"""Attention over prompt trees."""
