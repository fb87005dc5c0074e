"""What is evicted, against a plain simulation on dense eager attention: one layer, whose keys no eviction changes."""

import pytest
import torch
import transformers

from gossamer.engine.stepping import Stepper
from gossamer.operate.cache import POLICIES, KeyValues
from gossamer.operate.cache.policy import kept_rows

HEADS, GROUP, PROMPT, TOKENS = 2, 3, 30, 71


def one_layer(**settings):
    torch.manual_seed(5)
    config = transformers.Qwen3Config(
        vocab_size=96, hidden_size=48, intermediate_size=24, num_hidden_layers=1, num_attention_heads=HEADS * GROUP,
        num_key_value_heads=HEADS, head_dim=8, max_position_embeddings=256, attn_implementation="eager", **settings,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "_norm" in name:
            weight.data *= 2.5
    return model


def ids_of(count: int) -> torch.Tensor:
    return torch.randint(3, 96, (1, count), generator=torch.Generator().manual_seed(7))


def pooled(score: list[float], width: int) -> list[float]:
    half = width // 2
    padded = [0.0] * half + score + [0.0] * half
    return [sum(padded[at : at + width]) / width for at in range(len(score))]


class Dense:
    """The rows that each head should have, step by step, from the weights (heads, tokens, tokens) of all attention."""

    def __init__(self, weights: torch.Tensor, budget: int, block: int, read: list[int]) -> None:
        self.weights, self.budget, self.block, self.read = weights.double(), budget, block, read

    def law(self, head: int, query: int, kept: list[int]) -> list[list[float]]:
        """Of the group's heads: the probabilities of the query over the rows kept, each by itself."""
        rows = [row for row in kept if row <= query]
        found = []
        for member in range(head * GROUP, (head + 1) * GROUP):
            part = self.weights[member, query, rows]
            law = dict(zip(rows, (part / part.sum()).tolist(), strict=True))
            found.append([law.get(row, 0.0) for row in kept])
        return found

    def rows(self, name: str, policy) -> list[list[int]]:
        return [self._one(head, name, policy) for head in range(HEADS)]

    def _one(self, head: int, name: str, policy) -> list[int]:
        kept: list[int] = []
        history: list[int] = []
        sums: dict[int, float] = {}
        done = 0
        for count in self.read:
            new = list(range(done, done + count))
            done += count
            kept, history = kept + new, history + new
            for query in new:
                for member in self.law(head, query, kept):
                    for row, weight in zip(kept, member, strict=True):
                        sums[row] = sums.get(row, 0.0) + weight / GROUP
            if len(kept) < self.budget + self.block:
                continue
            recent = policy.reserved(self.budget)[1]
            if name == "h2o":
                score = [sums[row] for row in kept]
            else:
                looked = history[-policy.looks :]
                score = [0.0] * len(kept)
                for query in looked:
                    seen = [row <= query for row in kept]
                    for member in self.law(head, query, kept):
                        for at, weight in enumerate(member):
                            if name == "snapkv":
                                score[at] += weight / GROUP
                            elif seen[at] and weight < 1 / sum(seen):
                                score[at] -= 1 / GROUP
                if name == "snapkv":
                    score = pooled(score[: len(kept) - policy.window], policy.pool)
            old = len(kept) - recent
            ranked = sorted(range(old), key=lambda at: (-round(score[at], 9), -at))
            chosen = sorted(ranked[: self.budget - recent])
            kept = [kept[at] for at in chosen] + kept[old:]
            history = history[-recent:]
        return kept


CASES = {
    "h2o": POLICIES["h2o"](heavy=0.4),
    "snapkv": POLICIES["snapkv"](window=5, pool=3),
    "scissorhands": POLICIES["scissorhands"](history=9, recent=3),
}


@torch.inference_mode()
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reading", ["one by one", "several at once"])
def test_the_rows_kept_are_those_of_dense_attention(name: str, reading: str) -> None:
    model, ids = one_layer(), ids_of(TOKENS)
    dense = model(ids, output_attentions=True, use_cache=True)
    model.set_attn_implementation("sdpa")
    read = [PROMPT] + ([1] * (TOKENS - PROMPT) if reading == "one by one" else [5, 9, 1, 13, 2, 11])
    policy = CASES[name]
    expected = Dense(dense.attentions[0][0], 12, 6, read).rows(name, policy)
    assert expected[0] != expected[1]

    stepper = Stepper(model, KeyValues(policy, budget=12, block=6))
    first, *rest = ids.split(read, 1)
    stepper.prefill([{"input_ids": first}])
    for part in rest:
        if reading == "one by one":
            stepper.step([int(part)], [True])
        else:
            stepper.extend(part)
    kept = stepper._past["past_key_values"].layers[0].keys[0]
    everything = dense.past_key_values.layers[0].keys[0]
    for head, rows in enumerate(expected):
        torch.testing.assert_close(kept[head], everything[head, rows], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
def test_what_is_written_after_an_eviction_sees_what_was_kept(family: str) -> None:
    from tests.models.tiny import build

    model, ids = build(family, seed=3), ids_of(40) % 90
    first, latest, prompt = 2, 6, 20
    keeper = KeyValues(POLICIES["streaming"](sinks=first), budget=first + latest, block=prompt - first - latest)
    stepper = Stepper(model, keeper)
    stepper.prefill([{"input_ids": ids[:, :prompt]}])  # is cut at once, and then nothing until there are 20 rows again
    found = torch.cat([stepper.step([token], [True]) for token in ids[0, prompt:24].tolist()])
    found = torch.cat([found, stepper.extend(ids[:, 24:31])[0]])
    causal = torch.ones(31, 31, dtype=torch.bool).tril()
    visible = causal.clone()
    visible[prompt:, first : prompt - latest] = False
    mask: object = visible[None, None]
    if model.config._attn_implementation == "eager":  # Gemma 2's layers with a window are left alone
        causal &= ~causal.tril(-model.config.sliding_window)
        full, whole = ((~each[None, None]).float() * torch.finfo(torch.float32).min for each in (visible, causal))
        mask = {"full_attention": full, "sliding_attention": whole}
    expected = model(ids[:, :31], attention_mask=mask).logits[0, prompt:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_queries_are_judged_some_at_a_time(monkeypatch) -> None:
    """In pieces as at once, with a model's mask and without."""
    from gossamer.operate.cache import attention

    query, keys = torch.randn(1, 6, 9, 8), torch.randn(1, 2, 20, 8)
    visible = torch.ones(9, 20, dtype=torch.bool).tril(11)
    added = torch.zeros(9, 20).masked_fill(~visible, torch.finfo(torch.float32).min)
    ((whole, seen),) = attention.attention(query, keys, None, None, None)
    assert torch.equal(seen, visible)
    scores = query[0] @ keys[0].repeat_interleave(3, 0).transpose(1, 2) / 8**0.5 + added
    torch.testing.assert_close(whole.flatten(0, 1), scores.softmax(-1))
    monkeypatch.setattr(attention, "_WEIGHTS_AT_ONCE", 6 * 20 * 2)
    for mask in (None, visible[None, None], added[None, None]):
        parts = list(attention.attention(query, keys, mask, None, None))
        assert len(parts) == 5
        torch.testing.assert_close(torch.cat([weights for weights, _ in parts], 2), whole)
        assert torch.equal(torch.cat([part for _, part in parts]), visible)


def test_of_equal_scores_the_latest_stay_and_the_reserved_always_do() -> None:
    scores = torch.tensor([[0.0, 5, 1, 1, 1, 0], [9, 9, 9, 0, 0, -1]])
    assert kept_rows(scores, 4, 1, 1).tolist() == [[0, 1, 4, 5], [0, 1, 2, 5]]
    assert kept_rows(scores, 3, 0, 1).tolist() == [[1, 4, 5], [1, 2, 5]]


@torch.inference_mode()
def test_layers_of_different_budgets() -> None:
    from tests.engine.test_decode import lively

    model = lively("llama")
    policy = POLICIES["snapkv"](window=3, pool=3)
    keeper = KeyValues(policy, budget=10, block=8, pyramid=0.4)
    assert keeper.budgets(2) == [14, 6]
    assert keeper.budgets(1) == [10]
    assert sum(keeper.budgets(7)) == 70
    assert keeper.budgets(7) == sorted(keeper.budgets(7), reverse=True)
    ids = ids_of(32) % 90
    one, other = Stepper(model, keeper), Stepper(model, keeper)
    for stepper in (one, other):
        stepper.prefill([{"input_ids": ids[:, :25]}])
        assert [layer.get_seq_length() for layer in stepper._past["past_key_values"].layers] == [14, 6]
    singly = torch.cat([one.step([token], [True]) for token in ids[0, 25:].tolist()])
    torch.testing.assert_close(other.extend(ids[:, 25:])[0], singly, rtol=1e-4, atol=1e-4)
    assert [layer.get_seq_length() for layer in one._past["past_key_values"].layers] == [21, 13]
