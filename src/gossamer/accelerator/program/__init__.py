"""From an integer model to a program: images of the outer memory, places on chip, steps, fences, pages, the check."""

from gossamer.accelerator.program.check import ScheduleError, check
from gossamer.accelerator.program.images import StackImages, images
from gossamer.accelerator.program.lower import Program, lower_decode, lower_prefill
from gossamer.accelerator.program.outer import Layout, OuterMemory, Place

__all__ = [
    "Layout",
    "OuterMemory",
    "Place",
    "Program",
    "ScheduleError",
    "StackImages",
    "check",
    "images",
    "lower_decode",
    "lower_prefill",
]
