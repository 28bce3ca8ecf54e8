"""Backbones, heads and adapters."""
