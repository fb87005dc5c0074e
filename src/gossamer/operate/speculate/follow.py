"""A second model that reads along with an answer and guesses ahead."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.errors import ModelError
from gossamer.engine.decode import check_numbers, prompt_ids
from gossamer.engine.sampling import Sampler, draw
from gossamer.engine.stepping import Inputs, Stepper, context_of
from gossamer.operate.speculate.drafter import Drafts


class Follower:
    """Drafts drawn from a model's laws, by the sampling of the answer; its own past follows what is written."""

    def __init__(self, model: Any, inputs: Inputs, sampler: Sampler, size: int) -> None:
        if getattr(model, "_is_stateful", False):
            raise ModelError(
                f"{type(model).__name__} keeps a state, not its past: it cannot go back, so it cannot draft"
            )
        self._model, self._sampler, self._size = model, sampler, size
        self._inputs: Inputs | None = inputs
        context, prompt = context_of(model), prompt_ids(model, inputs)
        self._room = None if context is None else context - len(prompt)
        self._table = model.get_input_embeddings().num_embeddings
        self._stepper = Stepper(model)
        self._reads = self._can_read(prompt)
        self._guessed = torch.zeros(1, 0, dtype=torch.long)

    def propose(self, fresh: Sequence[int], length: int, count: int) -> Drafts:
        """See `Drafting`. Nothing once the model's own context is full, or a token came that is not in its table."""
        if self._room is not None:
            self._room -= len(fresh)
            length = min(length, self._room)
        self._reads = self._reads and self._can_read(fresh)
        if not self._reads:
            return Drafts.none(self._size)
        logits = self._follow(fresh)
        if count > 1:
            self._stepper.select([0] * count)
        tokens = torch.zeros(count, 0, dtype=torch.long, device=logits.device)
        laws: list[Tensor] = []
        logits = logits.expand(count, -1)
        for at in range(length):
            if at:
                logits = self._stepper.extend(tokens[:, -1:])[:, -1]
            law = self._sampler.law(self._over_vocabulary(logits)[:, None], tokens)[:, 0]
            # Equal drafts so far share one law: rounding may differ between the rows of a batch.
            law = law[(tokens[:, None] == tokens[None]).all(-1).int().argmax(1)]
            laws.append(law)
            numbers = torch.stack([self._sampler.uniform() for _ in range(count)])
            tokens = torch.cat([tokens, draw(law, numbers.to(law.device))[:, None]], 1)
        self._guessed = tokens[:, :-1]
        return Drafts(tokens, torch.stack(laws, 1))

    def _can_read(self, tokens: Sequence[int]) -> bool:
        return max(tokens) < self._table and (self._room is None or self._room > 0)

    def _follow(self, fresh: Sequence[int]) -> Tensor:
        """Reads what was written where it differs from what was guessed. Returns logits (1, vocabulary) of the next."""
        written = torch.tensor(fresh, device=self._guessed.device)
        if self._inputs is not None:  # read only now: short answers may end before anything is drafted
            self._stepper.prefill([self._inputs])
            self._inputs = None
        shared = min(self._guessed.shape[1], len(fresh) - 1)
        agreed = (self._guessed[:, :shared] == written[:shared]).cumprod(1).sum(1)
        row = int(agreed.argmax())
        right = int(agreed[row])
        self._stepper.rewind(self._guessed.shape[1] - right)
        if len(self._guessed) > 1:
            self._stepper.select([row])
        self._guessed = self._guessed[:1, :0]
        logits = self._stepper.extend(written[None, right:])[:, -1]
        check_numbers(self._model, logits)
        return logits

    def _over_vocabulary(self, logits: Tensor) -> Tensor:
        """Logits over the target's vocabulary: tables of one tokenizer may be padded to different sizes."""
        missing = self._size - logits.shape[-1]
        return nn.functional.pad(logits, (0, missing), value=-torch.inf)
