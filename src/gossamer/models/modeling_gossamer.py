"""Models of `transformers` whose blocks have layers of different widths, which their family's config cannot describe.

A checkpoint that needs this file carries a copy of it; `AutoModel….from_pretrained(…, trust_remote_code=True)` runs it.
Class `GossamerX` is transformers' own class `X`, of which no code is copied, with one difference: when it is built, and
so before weights are loaded, each linear layer that the config's entry `gossamer_widths` lists is made anew in the size
given there: {module path: [outputs, inputs]}. Nothing else is done here, and nothing is read or written.
"""

from typing import Any

import transformers
from torch import nn

PREFIX = "Gossamer"


class Widths(nn.Module):
    """What comes before a class of transformers to give its linear layers the sizes in `config.gossamer_widths`."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        for path, (rows, columns) in config.gossamer_widths.items():
            old = self.get_submodule(path)
            if type(old) is not nn.Linear:
                raise ValueError(f"gossamer_widths: {path} is no linear layer")
            like = {"device": old.weight.device, "dtype": old.weight.dtype}
            self.set_submodule(path, nn.Linear(columns, rows, bias=old.bias is not None, **like))


def __getattr__(name: str) -> Any:
    """The class `GossamerX`, for any model class `X` that transformers has."""
    base = getattr(transformers, name[len(PREFIX) :], None) if name.startswith(PREFIX) else None
    if not (isinstance(base, type) and issubclass(base, transformers.PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = kind = type(name, (Widths, base), {"__module__": __name__, "__doc__": Widths.__doc__})
    return kind
