"""Decoding that speculates: cheap guesses at several tokens, one pass of the target over all of them, the same law.

What is written follows the law of plain decoding exactly, penalties and stop rules included (greedily it is the same
tokens, up to the rounding of a pass over several tokens). Which tokens a seed gives is another matter: random numbers
are used differently, and where the length of drafts follows measured times, differently from run to run.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gossamer.core.errors import SettingError
from gossamer.engine.decode import Event, Request, Row, check_numbers, check_writes
from gossamer.engine.stepping import Stepper
from gossamer.operate.speculate.drafter import Drafter, Drafts
from gossamer.operate.speculate.pace import Pace
from gossamer.operate.speculate.verify import KSeq, Rule, Walked, walk


@dataclass
class Statistics:
    """What came of speculation in one answer, as it is written.

    `passes`: of the target after the one over the prompt, `plain` ones without drafts among them. `drafted`: tokens, of
    all drafts. `judged`: places at which drafted tokens were judged; at so many of these one was `accepted`, at all
    others the token was `recovered` from what remains of the target's law. `bonus`: tokens that followed drafts of
    which all was accepted. `off`: why no drafts are made at the end, empty if they are.
    """

    passes: int = 0
    plain: int = 0
    drafted: int = 0
    judged: int = 0
    accepted: int = 0
    recovered: int = 0
    bonus: int = 0
    off: str = ""

    def add(self, drafts: Drafts, found: Walked, written: int) -> None:
        """Counts a pass over `drafts` that came so far, of which the first `written` tokens were: an end may cut off
        the others."""
        whole = written == len(found.tokens)
        accepted = written - 1 if whole else written
        drafted = drafts.tokens.numel()
        self.passes += 1
        self.plain += drafted == 0
        self.drafted += drafted
        self.accepted += accepted
        self.recovered += whole and not found.bonus
        self.judged = self.accepted + self.recovered
        self.bonus += whole and found.bonus and drafted > 0


@dataclass(frozen=True)
class Speculation:
    """`drafts` drafts by a `drafter`, each of `length` tokens, verified together by `rule`.

    Without a `length` it is chosen for each pass by what passes have cost and drafts have been worth so far, and none
    are made while plain decoding is faster (see `Pace`).
    """

    drafter: Drafter
    length: int | None = None
    drafts: int = 1
    rule: Rule = field(default_factory=KSeq)

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise SettingError(f"{self.length} drafted tokens are not possible: give 1 or more")
        if self.drafts < 1:
            raise SettingError(f"{self.drafts} drafts are not possible: give 1 or more")
        if self.drafts > 1 and self.drafter.certain:
            raise SettingError(f"{self.drafts} drafts are not possible with this drafter, which always drafts the same")

    @torch.inference_mode()
    def decode(
        self,
        model: nn.Module,
        request: Request,
        tokenizer: Any = None,
        statistics: Statistics | None = None,
        stepper_of: Callable[[nn.Module], Stepper] = Stepper,
    ) -> Iterator[Event]:
        """Continues a request, an event for each token; `statistics` are counted up as it goes, `stepper_of` says what
        reads the tokens.

        Raises what `engine.decode` does, `ModelError` for models that cannot go back in their past, and `SettingError`
        for several drafts of greedy decoding, which would be the same.
        """
        if self.drafts > 1 and request.sampling.temperature == 0:
            raise SettingError(f"{self.drafts} drafts need a temperature above 0: greedy drafts are all the same")
        count = Statistics() if statistics is None else statistics
        check_writes(model)
        stepper = stepper_of(model)
        row = Row(0, request, model, tokenizer, stepper.endless)
        logits = stepper.prefill([request.inputs])
        stepper.rewind(0)  # says at once if this model cannot go back
        check_numbers(model, logits)
        drafting = self.drafter.begin(model, request.inputs, row.sampler, logits.shape[-1])
        none, pace = Drafts.none(logits.shape[-1]), Pace()
        yield row.take(logits[0])
        unread = [row.token]
        while row.finished is None:
            start = time.perf_counter()
            wanted = min(pace.length() if self.length is None else self.length, row.room - 1)
            drafts = drafting.propose(unread, wanted, self.drafts) if wanted else none
            unread = [] if wanted else unread
            drafted, length = drafts.tokens.to(logits.device), drafts.tokens.shape[1]
            if len(drafted) > 1:
                stepper.select([0] * len(drafted))
            latest = drafted.new_full((len(drafted), 1), row.token)
            logits = stepper.extend(torch.cat([latest, drafted], 1))
            check_numbers(model, logits)
            laws = row.sampler.law(logits, drafted)
            found = walk(laws, drafts.laws.to(laws.device), drafted, self.rule, row.sampler.uniform)
            stepper.rewind(length + 1 - len(found.tokens))
            if len(drafted) > 1:
                stepper.select([found.row])
            pace.record(length, len(found.tokens) - 1, time.perf_counter() - start)
            events = []
            for token in found.tokens:
                events.append(row.write(token))
                unread.append(token)
                if row.finished is not None:
                    break
            count.add(drafts, found, len(events))
            count.off = pace.why_off if self.length is None else ""
            yield from events
