"""What a plan says of operation, and what a user says against it."""

import pytest

from gossamer.core.errors import SettingError
from gossamer.core.plan import Choice, Operation
from gossamer.operate.cache import KeyValues
from gossamer.operate.planned import cache_of, check_operation, planned, speculation_of
from gossamer.operate.speculate.wish import Wish


def speculating(do: str, **settings) -> Operation:
    return Operation(speculation=Choice(do=do, **settings))


def test_without_a_plan_nothing_is_done(tmp_path) -> None:
    assert planned(str(tmp_path)) == planned("tiny-lm") == Operation()
    assert cache_of(Operation()) is None
    assert speculation_of(Operation()) is None


def test_a_cache_is_what_the_command_line_would_give() -> None:
    planned = Operation(kv_cache=Choice(do="snapkv", budget=512, bits=8, window=16))
    assert cache_of(planned) == KeyValues.parse("snapkv:budget=512,bits=8,window=16")
    assert cache_of(planned, "h2o:budget=7") == KeyValues.parse("h2o:budget=7")
    assert cache_of(planned, "none") is None


@pytest.mark.parametrize(
    ("operation", "wish"),
    [
        (speculating("prompt_lookup", tokens=4), Wish("lookup", "4")),
        (speculating("self_draft", blocks=2, drafts=3), Wish("self:2", "auto", 3)),
        (speculating("draft_model", model="tiny-lm-draft", rule="recursive"), Wish("tiny-lm-draft", rule="recursive")),
    ],
)
def test_a_drafter_is_what_the_command_line_would_give(operation: Operation, wish: Wish) -> None:
    assert speculation_of(operation) == wish
    assert speculation_of(operation, Wish("lookup")) == Wish("lookup")
    assert speculation_of(operation, Wish("none")) is None


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (Operation(kv_cache=Choice(do="h3o")), "operation.kv_cache 'h3o' is not known: give full, h2o"),
        (Operation(kv_cache=Choice(do="h2o", budget="many")), "operation.kv_cache budget='many'"),
        (Operation(kv_cache=Choice(do="h2o", budget=2.5)), "budget='2.5' is not possible: give a whole number"),
        (Operation(kv_cache=Choice(do="h2o", bugdet=5)), "has no setting 'bugdet': it takes budget"),
        (speculating("medusa"), "operation.speculation 'medusa' is not known: give prompt_lookup"),
        (speculating("self_draft"), "self_draft needs blocks"),
        (speculating("prompt_lookup", blocks=2), "has no setting 'blocks': it takes tokens, drafts, rule"),
        (speculating("prompt_lookup", drafts="two"), "drafts='two' is not possible"),
    ],
)
def test_what_is_not_known_is_refused(operation: Operation, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        check_operation(operation)
