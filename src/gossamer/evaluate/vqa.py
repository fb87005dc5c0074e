"""Visual question answering: accuracy of greedy answers, likelihood of the true ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gossamer.core.errors import DataError
from gossamer.core.outcome import Measure
from gossamer.core.progress import SILENT, Progress
from gossamer.data.batch import Batch
from gossamer.data.vqa import VqaExample, read_vqa
from gossamer.evaluate import tokens
from gossamer.evaluate.answers import is_right, recall
from gossamer.evaluate.intervals import bootstrap_mean, paired_mean, wilson
from gossamer.evaluate.packing import packed, packs, rows_of
from gossamer.evaluate.prompts import Prompt, answer_ids, prompt_of
from gossamer.evaluate.task import BatchCache, forward, spans

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class VqaResults:
    """Per question: the model's answer, whether it is right, and the mean loss in nats of the true answer's tokens."""

    predictions: tuple[str, ...]
    correct: NDArray[np.bool_]
    loss: NDArray[np.float64]


@dataclass(frozen=True)
class VqaTask:
    """Accuracy of greedy answers, exact match after normalisation. An example is a question.

    `batches` are teacher-forced: prompts padded on the left, the true answer behind them; positions are the true
    answer's tokens. `answers` holds their ids, `longest` how many tokens a greedy answer may have. In a `prefix_model`
    (PaliGemma) prompt tokens see each other both ways, and `token_type_ids` of 1 keep the answer out of that. With
    `packed`, batches hold a row for each picture (see `packing`).
    """

    examples: tuple[VqaExample, ...]
    answers: tuple[tuple[int, ...], ...]
    processor: Any
    prompt: Prompt
    longest: int
    protocol: dict[str, Any]
    prefix_model: bool = False
    batch_size: int = 64
    packed: bool = False
    name: str = "vqa"
    metric: str = "accuracy"
    higher_is_better: bool = True
    _cache: BatchCache = field(default_factory=BatchCache, repr=False, compare=False)
    _twin: list[VqaTask] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.examples)

    def subset(self, indices: Sequence[int]) -> VqaTask:
        """The task on these questions."""
        return replace(
            self,
            examples=tuple(self.examples[i] for i in indices),
            answers=tuple(self.answers[i] for i in indices),
            protocol={**self.protocol, "n": len(indices)},
            _cache=BatchCache(),
            _twin=[],
        )

    def packed_for(self, model: nn.Module) -> VqaTask:
        """The same questions, each picture read once for all questions about it, if `model` answers them so as well.

        Otherwise, and where no picture is asked about twice, the task itself.
        """
        rows = rows_of(self.sources)
        if self.packed or self.prefix_model or len(rows) == len(self):
            return self
        few = [i for row in sorted(rows, key=len, reverse=True)[:2] for i in row[:4]]
        plain, together = (next(task.batches(len(few))) for task in (self.subset(few), self._packed(few)))
        if not packs(model, plain, together, self):
            return self
        if not self._twin:
            self._twin.append(self._packed(range(len(self))))  # kept, with the batches that it has encoded
        return self._twin[0]

    def _packed(self, indices: Sequence[int]) -> VqaTask:
        return replace(self.subset(indices), packed=True, protocol=self.protocol)

    def batches(self, size: int) -> Iterator[Batch]:
        """Questions in order, teacher-forced; packed: picture by picture, `size` questions at most or one picture's."""
        if not self.packed:
            for indices in spans(len(self), size):
                yield self._cache.get(indices, self._encode)
            return
        some: list[tuple[int, ...]] = []
        for row in rows_of(self.sources):
            if some and sum(map(len, some)) + len(row) > size:
                yield self._cache.get(tuple(i for row in some for i in row), partial(self._pack, some))
                some = []
            some.append(row)
        yield self._cache.get(tuple(i for row in some for i in row), partial(self._pack, some))

    @property
    def sources(self) -> list[str]:
        """The picture of each question."""
        return [example.image.key for example in self.examples]

    def _pack(self, rows: Sequence[Sequence[int]], indices: tuple[int, ...]) -> Batch:
        """These questions with a row for each picture; in the plain form where that is not possible."""
        place = {number: at for at, number in enumerate(indices)}
        found = packed(
            self.prompts(indices),
            [self.answers[i] for i in indices],
            [[place[i] for i in row] for row in rows],
            getattr(self.processor, "image_token_id", None),
        )
        return self._encode(indices) if found is None else Batch(*found, indices)

    def prompts(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """What `generate` is given for these questions: prompts padded on the left, and their images."""
        rows = [self.examples[i] for i in indices]
        found = self.processor(
            text=[self.prompt(row.question) for row in rows],
            images=[[row.image.load()] for row in rows],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return {key: value for key, value in found.items() if key != "labels"}

    def _encode(self, indices: tuple[int, ...]) -> Batch:
        """Prompts and answers; every input that has one entry per prompt token gets entries for the answer's."""
        import torch

        inputs = self.prompts(indices)
        ids = inputs["input_ids"]
        width = max(len(self.answers[i]) for i in indices)
        answer = torch.zeros(len(indices), width, dtype=ids.dtype)
        real = torch.zeros_like(answer)
        for r, i in enumerate(indices):
            n = len(self.answers[i])
            answer[r, :n] = torch.tensor(self.answers[i])
            real[r, :n] = 1
        causal = torch.ones_like(answer) if self.prefix_model else torch.zeros_like(answer)
        tails = {"input_ids": answer, "attention_mask": real, "token_type_ids": causal}
        for key, value in inputs.items():
            if value.shape == ids.shape:
                tail = tails.get(key, torch.zeros_like(answer)).to(value.dtype)
                inputs[key] = torch.cat([value, tail], 1)
        labels = torch.cat([torch.full_like(ids, tokens.IGNORE), answer.masked_fill(real == 0, tokens.IGNORE)], 1)
        return Batch(inputs, labels, indices)

    def log_probs(self, output: Any, batch: Batch) -> Tensor:
        """(answer tokens, vocabulary), question by question."""
        return tokens.next_token_log_probs(output.logits, batch.labels)

    def owners(self, batch: Batch) -> Tensor:
        """The question of each answer token."""
        import torch

        counts = torch.tensor([len(self.answers[i]) for i in batch.indices])
        return torch.tensor(batch.indices).repeat_interleave(counts)

    def losses(self, log_probs: Tensor, batch: Batch) -> Tensor:
        """Loss of each answer token in nats."""
        return tokens.picked_losses(log_probs, tokens.counted(batch.labels))

    def results(self, model: nn.Module, progress: Progress = SILENT) -> VqaResults:
        """Answers every question greedily and weighs the true answers.

        Where answers have one token, its greedy choice is the largest logit of the teacher-forced pass, so one
        forward pass gives both; longer ones are generated. Questions about one picture share its pass where possible.
        """
        task = self.packed_for(model)
        predictions = [""] * len(self)
        loss, count = np.zeros(len(self)), np.zeros(len(self))
        for batch in progress.track(task.batches(self.batch_size), "questions", -(-len(self) // self.batch_size)):
            log_probs = self.log_probs(_answered(model, batch), batch)
            owners = self.owners(batch).numpy()
            np.add.at(loss, owners, self.losses(log_probs, batch).double().cpu().numpy())
            np.add.at(count, owners, 1)
            texts = self._decoded(
                log_probs.argmax(-1)[:, None] if self._one_token else self.generate(model, batch.indices)
            )
            for index, text in zip(batch.indices, texts, strict=True):
                predictions[index] = text
        correct = [is_right(g, e.answer) for g, e in zip(predictions, self.examples, strict=True)]
        return VqaResults(tuple(predictions), np.array(correct, dtype=np.bool_), loss / count)

    def generate(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        """Greedy answers of the model's own `generate`: new token ids (questions, at most `longest`)."""
        import torch

        device = next(model.parameters()).device
        inputs = {key: value.to(device) for key, value in self.prompts(indices).items()}
        pad = getattr(self.processor.tokenizer, "pad_token_id", None)
        with torch.inference_mode():
            generate: Any = model.generate
            out: Tensor = generate(
                **inputs,
                max_new_tokens=self.longest,
                do_sample=False,
                num_beams=1,
                pad_token_id=0 if pad is None else pad,
            )
        return out[:, inputs["input_ids"].shape[1] :]

    @property
    def _one_token(self) -> bool:
        return self.longest == 1 and all(len(ids) == 1 for ids in self.answers)

    def _decoded(self, ids: Tensor) -> list[str]:
        texts = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [(text.strip().splitlines() or [""])[0].strip() for text in texts]

    def predictions(self, model: nn.Module, progress: Progress = SILENT) -> list[str]:
        """The model's answers, as it wrote them."""
        return list(self.results(model, progress).predictions)

    def summarise(self, results: VqaResults) -> dict[str, Measure]:
        """`accuracy`, `accuracy_closed`, `accuracy_open`, `accuracy_KIND` (shares, 0 to 1, Wilson); `open_recall`
        (share of the true answer's words in the given one) and `loss` (nats per answer token), bootstrapped."""
        closed = np.array([e.closed for e in self.examples])
        groups = {"accuracy": np.ones(len(self), dtype=bool), "accuracy_closed": closed, "accuracy_open": ~closed}
        for kind in dict.fromkeys(e.kind for e in self.examples if e.kind):
            groups[f"accuracy_{kind}"] = np.array([e.kind == kind for e in self.examples])
        found = {
            name: wilson(int(results.correct[chosen].sum()), int(chosen.sum()))
            for name, chosen in groups.items()
            if chosen.any()
        }
        shares = [
            recall(given, e.answer) for given, e in zip(results.predictions, self.examples, strict=True) if not e.closed
        ]
        if shares:
            found["open_recall"] = bootstrap_mean(shares, over="questions")
        found["loss"] = bootstrap_mean(results.loss, over="questions")
        return found

    def difference(self, before: VqaResults, after: VqaResults) -> Measure:
        """Accuracy after minus before, paired over questions."""
        return paired_mean(before.correct, after.correct, over="questions")

    def measure(self, model: nn.Module, progress: Progress = SILENT) -> dict[str, Measure]:
        """The figures of one model."""
        return self.summarise(self.results(model, progress))


def _answered(model: nn.Module, batch: Batch) -> Any:
    """The output with logits from the questions' last tokens on, where the model can leave the others out."""
    import inspect

    if "logits_to_keep" in batch.inputs:
        return forward(model, batch, use_cache=False)
    keep = int((batch.labels != tokens.IGNORE).any(0).sum()) + 1
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return forward(model, batch, use_cache=False, logits_to_keep=keep)
    return forward(model, batch, use_cache=False)


def open_vqa(
    data: str,
    opened: Any,
    *,
    split: str | None = None,
    limit: int | None = None,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
) -> VqaTask:
    """The question-answering task of a data set for a generative vision-language model.

    `prompt`: a template with `{question}` (default: the model's own, else its chat template). `max_new_tokens`:
    length of a greedy answer (default: the longest true answer). Raises `DataError` for unreadable data, a model
    without processor or generation, or a tokenizer that does not fit.
    """
    if opened.processor is None or not hasattr(opened.model, "generate"):
        raise DataError(f"{opened.source} cannot answer questions: vqa needs a generative vision-language model")
    examples, provenance = read_vqa(data, split=split, limit=limit)
    template = prompt_of(opened, prompt)
    tokenizer = opened.processor.tokenizer
    answers = tuple(tuple(answer_ids(tokenizer, template(e.question), e.answer)) for e in examples)
    tokens.check_vocabulary([i for ids in answers for i in ids], opened)
    longest = max_new_tokens if max_new_tokens is not None else max(len(ids) for ids in answers)
    if longest < 1:
        raise DataError(f"max_new_tokens {longest} is not possible: an answer needs at least 1 token")
    protocol = {
        **provenance,
        "images": len({e.image.key for e in examples}),
        "prompt": template.template,
        "max_new_tokens": longest,
        "decoding": "greedy",
        "match": "exact, after lower case and without punctuation and articles",
    }
    prefix = getattr(opened.config, "model_type", "") == "paligemma"
    return VqaTask(tuple(examples), answers, opened.processor, template, longest, protocol, prefix, batch_size)
