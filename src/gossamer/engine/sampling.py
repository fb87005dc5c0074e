"""From logits to a token: penalties, then a law over the vocabulary, then one draw from it.

The functions are pure and take logits (…, vocabulary). `law` is the whole rule: what a sampler draws from, and what any
faster way of decoding must draw from too. The order is that of transformers: penalties, temperature, top-k, top-p,
min-p, each on what the one before it left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.core.errors import SettingError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The defaults are greedy decoding. Raises `SettingError` for one out of range.

    `temperature`: 0 is greedy, 1 the model's own law. `top_k`: only so many of the most likely tokens, 0 for all.
    `top_p`: only the fewest most likely tokens whose probability reaches it, in (0, 1] (Holtzman et al. 2020). `min_p`:
    only tokens at least this share of the likeliest one's probability, in [0, 1] (Nguyen et al. 2024).
    `repetition_penalty`: divides positive and multiplies negative logits of tokens in prompt and answer, above 0, 1 for
    none (Keskar et al. 2019). `presence_penalty` is taken once, `frequency_penalty` at each occurrence, from the logits
    of tokens in the answer, in [-2, 2]. `seed` fixes the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0 <= self.temperature < math.inf, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0"),
            "presence_penalty": (-2 <= self.presence_penalty <= 2, "-2 to 2"),
            "frequency_penalty": (-2 <= self.frequency_penalty <= 2, "-2 to 2"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (fits, accepted) in ranges.items():
            if not fits:
                raise SettingError(f"{name} {getattr(self, name)} is not possible: give {accepted}")


def penalised(logits: Tensor, seen: Tensor, written: Tensor, sampling: Sampling) -> Tensor:
    """Logits after the penalties. `seen`: bool, tokens of prompt and answer; `written`: their counts in the answer."""
    if sampling.repetition_penalty != 1:
        rate = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / rate, logits * rate), logits)
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = written.to(logits)
        logits = logits - sampling.presence_penalty * (counts > 0).to(logits) - sampling.frequency_penalty * counts
    return logits


def law(logits: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities, float64, that the next token is drawn by; greedy: all on the first of the largest logits."""
    if sampling.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros(logits.shape, dtype=torch.float64, device=logits.device).scatter(-1, best, 1.0)
    scores = logits.double()
    scores = (scores - scores.amax(-1, keepdim=True)).div_(sampling.temperature)
    return keep_min_p(keep_top_p(keep_top_k(scores, sampling.top_k), sampling.top_p), sampling.min_p).softmax(-1)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Scores with -inf at all but the `k` largest; equals of the last one stay. 0 keeps all."""
    if not 0 < k < scores.shape[-1]:
        return scores
    return scores.masked_fill(scores < scores.topk(k, dim=-1).values[..., -1:], -math.inf)


_LIKELIEST = 64
"""So many tokens mostly hold what `top_p` asks for; where they do not, eight times as many are looked at."""


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Scores with -inf outside the fewest most likely tokens whose probability is at least `p`; of equal ones the first
    are kept. Only as many as are needed are put in order, as vocabularies are long."""
    if p >= 1:
        return scores
    total, most, size = scores.logsumexp(-1, keepdim=True), _LIKELIEST, scores.shape[-1]
    while True:
        ranked = scores.topk(min(most, size), dim=-1).values
        reached = (ranked - total).exp().cumsum(-1) >= p
        if most >= size or bool(reached[..., -1].all()):
            break
        most *= 8
    count = ((~reached).sum(-1, keepdim=True) + 1).clamp(max=ranked.shape[-1])
    last = ranked.gather(-1, count - 1)
    kept, equal = scores > last, scores == last
    spare = count - kept.sum(-1, keepdim=True)
    if bool((equal.sum(-1, keepdim=True) > spare).any()):
        equal &= equal.cumsum(-1) <= spare
    return scores.masked_fill(~(kept | equal), -math.inf)


def keep_min_p(scores: Tensor, share: float) -> Tensor:
    """Scores with -inf at tokens less likely than `share` of the likeliest."""
    if share <= 0:
        return scores
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) + math.log(share), -math.inf)


def draw(law: Tensor, uniform: Tensor) -> Tensor:
    """The tokens (…) at which the cumulated `law` (…, vocabulary) passes `uniform` (…), numbers in [0, 1).

    One number for each token makes a draw depend on nothing but its own law and number.
    """
    reached = law.cumsum(-1)
    reached = reached / reached[..., -1:]
    return torch.searchsorted(reached, uniform[..., None].to(reached), right=True)[..., 0]


class Sampler:
    """Chooses the tokens of one request, with a generator and a history of its own: who else is in the batch does not
    matter. `prompt` are the token ids that the repetition penalty counts as seen; ids beyond the vocabulary, as of
    images, are none of its business."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._prompt = torch.tensor(prompt, dtype=torch.long)
        self._answer: list[int] = []

    def choose(self, logits: Tensor) -> int:
        """A token by logits (vocabulary,); it counts as written when it is noted."""
        if self.sampling.temperature == 0:  # its law is all on one token
            return int(self._after_penalties(logits[None], None)[0].argmax())
        return int(draw(self.law(logits[None])[0], self.uniform()))

    def law(self, logits: Tensor, ahead: Tensor | None = None) -> Tensor:
        """The laws (…, positions, vocabulary), float64, of tokens by their logits (…, positions, vocabulary).

        The last position follows all of the tokens `ahead` (…, length), which might come after those noted; the one
        before it all but the last of them, and so on: length is at least positions − 1. Penalties count them.
        """
        return law(self._after_penalties(logits, ahead), self.sampling)

    def uniform(self) -> Tensor:
        """The next random number, in [0, 1)."""
        return torch.rand((), dtype=torch.float64, generator=self._generator)

    def note(self, token: int) -> None:
        """Takes down that `token` has been written."""
        self._answer.append(token)

    def _after_penalties(self, logits: Tensor, ahead: Tensor | None) -> Tensor:
        chosen = self.sampling
        if chosen.repetition_penalty == 1 and not (chosen.presence_penalty or chosen.frequency_penalty):
            return logits
        return penalised(logits, *self._history(logits, ahead), chosen)

    def _history(self, logits: Tensor, ahead: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `penalised` asks for, at each position."""
        size = logits.shape[-1]
        prompt = torch.bincount(self._prompt[self._prompt < size], minlength=size).to(logits.device)
        written = torch.bincount(torch.tensor(self._answer, dtype=torch.long), minlength=size).to(logits.device)
        if ahead is not None:
            coming = torch.nn.functional.one_hot(ahead.to(logits.device), size).cumsum(-2)
            coming = torch.nn.functional.pad(coming, (0, 0, 1, 0))
            written = written + coming[..., coming.shape[-2] - logits.shape[-2] :, :]
        return (prompt > 0) | (written > 0), written
