"""Gossamer makes multimodal foundation models small and fast on a given device, and proves it."""

__version__ = "0.1.0"
