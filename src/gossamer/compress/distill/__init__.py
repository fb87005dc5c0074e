"""Healing: a compressed model is trained to do as the unchanged one did. Importing this registers `heal`."""

from gossamer.compress.distill.heal import Heal, Healed
from gossamer.compress.distill.lessons import Lesson, Reading, token_log_probs
from gossamer.compress.distill.parts import Parts

__all__ = ["Heal", "Healed", "Lesson", "Parts", "Reading", "token_log_probs"]
