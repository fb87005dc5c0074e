"""Structured pruning: whole blocks, head groups, channels and experts go, and the shapes are really smaller."""

from gossamer.compress.structure.drop_block import DropBlock
from gossamer.compress.structure.prune_channels import PruneChannels
from gossamer.compress.structure.prune_experts import PruneExperts
from gossamer.compress.structure.prune_heads import PruneHeads
from gossamer.compress.structure.reshaper import Reshaper, selected_blocks
from gossamer.compress.structure.sleb import choose_blocks

__all__ = ["DropBlock", "PruneChannels", "PruneExperts", "PruneHeads", "Reshaper", "choose_blocks", "selected_blocks"]
