"""Keeping fewer keys and values of past tokens, or in fewer bits."""

from gossamer.operate.cache.plan import POLICIES, KeyValues

__all__ = ["POLICIES", "KeyValues"]
