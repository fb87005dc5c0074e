"""What a trace finds in modules small enough to say by hand what it must find."""

import torch
from torch import nn

from gossamer.compress.transform.bases import Basis
from gossamer.compress.transform.norms import norm_of
from gossamer.compress.transform.trace import find_bases


class Small(nn.Module):
    """`body` is the computation; the layers that it uses are given."""

    def __init__(self, body, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def traced(body, size=6, **layers):
    torch.manual_seed(0)
    model = Small(body, **layers).requires_grad_(False)
    found = find_bases(model, {"x": torch.randn(2, 3, size)}, [])
    return {(use.parameter, use.axis.dim): use for use in found.uses}, found


def root(uses, parameter, dim):
    return uses[parameter, dim].axis.basis.root


def test_two_layers_in_a_row_share_a_free_basis():
    uses, _ = traced(lambda m, x: m.b(m.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    inner = root(uses, "a.weight", -2)
    assert inner is root(uses, "a.bias", -1) is root(uses, "b.weight", -1)
    assert not inner.pinned
    assert uses["b.weight", -1].reads
    assert not uses["a.weight", -2].reads
    assert root(uses, "b.weight", -2).pinned == "the model's output"


def test_an_activation_between_them_pins_it():
    uses, _ = traced(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    assert "relu" in root(uses, "a.weight", -2).pinned


def test_a_sum_joins_and_a_product_of_two_pins():
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(6, 8), "c": nn.Linear(8, 4)}
    uses, _ = traced(lambda m, x: m.c(m.a(x) + 2 * m.b(x)), **layers)
    assert root(uses, "a.weight", -2) is root(uses, "b.weight", -2) is root(uses, "c.weight", -1)
    assert not root(uses, "a.weight", -2).pinned
    uses, _ = traced(lambda m, x: m.c(m.a(x) * m.b(x)), **layers)
    assert root(uses, "a.weight", -2).pinned
    assert root(uses, "b.weight", -2).pinned


def test_a_constant_added_or_one_channel_taken_out_pins():
    layers = {"a": nn.Linear(6, 8), "c": nn.Linear(8, 4)}
    for body in (
        lambda m, x: m.c(m.a(x) + torch.arange(8.0)),
        lambda m, x: m.c(m.a(x) + 1),
        lambda m, x: m.c(m.a(x) * torch.arange(8.0)),
        lambda m, x: m.c(m.a(x).flip(-1)),
        lambda m, x: m.c(m.a(x)) + m.a(x)[..., :1],
        lambda m, x: m.c(m.a(x).masked_fill(x[..., :1] > 0, 3.0)),
    ):
        uses, _ = traced(body, **layers)
        assert root(uses, "a.weight", -2).pinned


def test_what_only_moves_tokens_keeps_it():
    def body(m, x):
        y = m.a(x)
        y = torch.cat([m.token.expand(2, 1, 8), y], 1).transpose(0, 1)[1:]
        y = y.transpose(1, 2).reshape(3, 8, 2).permute(0, 2, 1)
        return m.c(y.masked_fill(torch.tensor([[[True]], [[False]], [[False]]]), 0.0) * torch.rand(3, 2, 1))

    uses, _ = traced(body, a=nn.Linear(6, 8), c=nn.Linear(8, 4), token=nn.Parameter(torch.randn(1, 1, 8)))
    assert root(uses, "a.weight", -2) is root(uses, "c.weight", -1) is root(uses, "token", -1)
    assert not root(uses, "token", -1).pinned


def test_heads_are_pieces_of_one_basis_and_merged_tokens_repeat_it():
    def body(m, x):
        heads = m.v(x).view(2, 3, 2, 4).transpose(1, 2).repeat_interleave(2, 1)
        mixed = torch.softmax(torch.randn(2, 4, 3, 3), -1) @ heads
        return m.o(mixed.transpose(1, 2).reshape(2, 3, 16))

    uses, _ = traced(body, v=nn.Linear(6, 8), o=nn.Linear(16, 5))
    values = root(uses, "v.weight", -2)
    assert values is root(uses, "o.weight", -1)
    assert values.size == 4
    assert not values.pinned

    uses, _ = traced(lambda m, x: m.c(m.a(x).reshape(2, 24)), a=nn.Linear(6, 8), c=nn.Linear(24, 5))
    assert root(uses, "a.weight", -2) is root(uses, "c.weight", -1)
    assert root(uses, "a.weight", -2).size == 8


def test_norms_tie_the_bases_before_and_after():
    uses, found = traced(lambda m, x: m.b(m.norm(m.a(x))), a=nn.Linear(6, 8), norm=nn.LayerNorm(8), b=nn.Linear(8, 4))
    (norm,) = found.norms
    assert norm.before.root is root(uses, "a.weight", -2)
    assert norm.after.root is root(uses, "b.weight", -1) is root(uses, "norm.bias", -1)


def test_norms_are_known_by_what_they_compute():
    gain = torch.rand(12) + 0.5
    layer, rms = nn.LayerNorm(12), nn.RMSNorm(12)
    for module in (layer, rms):
        module.weight.data.copy_(gain)
    assert norm_of(layer).centres
    assert not norm_of(rms).centres
    torch.testing.assert_close(norm_of(rms).gain, gain.double())
    assert norm_of(nn.Linear(12, 12)) is None
    assert norm_of(nn.BatchNorm1d(12).eval()) is None
    assert norm_of(nn.PReLU(12)) is None


def test_sizes_that_do_not_fit_pin_both():
    one, other = Basis(6), Basis(4)
    one.join(other, "too odd")
    assert one.root.pinned == other.root.pinned == "too odd"
    small, large = Basis(3), Basis(12)
    large.join(small, "")
    assert large.root is small
    assert not small.pinned
