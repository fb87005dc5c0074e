"""Refinement finds interactions that adding up losses cannot see, and keeps nothing it cannot confirm."""

from gossamer.models.packed import Scheme
from gossamer.search.refine import refine
from gossamer.search.units import Choice, Unit, total_bytes

UNITS = tuple(
    Unit(
        f"u{number}",
        "language",
        number,
        (),
        (
            Choice("16 bits", 16, (), 160),
            Choice("4 bits", 4, ((f"u{number}", Scheme(4)),), 40),
            Choice("8 bits", 8, ((f"u{number}", Scheme(8)),), 80),
        ),
    )
    for number in range(4)
)


def scored(function):
    def evaluate(chosen):
        return function([UNITS[u].choices[c].bits for u, c in enumerate(chosen)])

    return evaluate


def around(function):
    """What single moves give, by evaluating the whole choice."""

    def neighbours(chosen, others):
        def moved(u, move):
            return [*chosen[:u], move, *chosen[u + 1 :]]

        return [[scored(function)(moved(u, move)) for move in row] for u, row in enumerate(others)]

    return neighbours


def true_loss(bits):
    # Unit 3 hurts at 4 bits only in company: alone it seemed harmless, so the allocation started there.
    company = sum(b == 4 for b in bits[:3])
    return sum(0.01 for b in bits if b == 4) + 0.5 * company * (bits[3] == 4)


def test_it_moves_bytes_to_where_they_help_and_stays_within_the_budget():
    start = [2, 1, 1, 1]
    budget = total_bytes(UNITS, start)
    found = refine(UNITS, start, (budget,), 3, scored(true_loss), scored(true_loss), around(true_loss))
    assert total_bytes(UNITS, found.chosen) <= budget
    assert UNITS[3].choices[found.chosen[3]].bits == 8
    assert found.rounds[0].kept
    assert found.rounds[0].select_after < found.rounds[0].select_before


def test_a_gain_that_fresh_data_denies_is_not_kept():
    start = [2, 1, 1, 1]
    found = refine(
        UNITS, start, (total_bytes(UNITS, start),), 3, scored(true_loss), scored(lambda bits: 1.0), around(true_loss)
    )
    assert found.chosen == tuple(start)
    assert not any(item.kept for item in found.rounds)
