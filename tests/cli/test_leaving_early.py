"""`gossamer generate --early-exit`: lossy, and it says so."""

PROMPT = ("generate", "tiny-lm", "--prompt", "Once upon a time", "--max-tokens", "30")


def test_it_says_that_it_is_lossy_and_what_left(gossamer) -> None:
    plain = gossamer(*PROMPT, "--json").json
    told = gossamer(*PROMPT, "--early-exit", "2:0.3", "--json").json
    left = told["early_exit"]
    assert (left["lossy"], left["blocks"], left["threshold"]) == (True, 2, 0.3)
    assert left["early"] + left["passes"] == 29
    assert told["measured"]["cache_bytes"]["value"] > 0
    assert told["tokens"] != plain["tokens"]
    shown = gossamer(*PROMPT, "--early-exit", "2:0.3")
    assert f"{left['early']} tokens left after 2 blocks" in shown.err
    assert "lossy, by how much is not known" in shown.err


def test_where_it_does_not_pay_nothing_is_lost(gossamer) -> None:
    plain = gossamer(*PROMPT, "--json").json
    told = gossamer(*PROMPT, "--early-exit", "5%", "--json").json
    left = told["early_exit"]
    assert (left["lossy"], left["early"], left["calibration"]["pays"]) == (False, 0, False)
    assert told["tokens"] == plain["tokens"]
    assert "nothing is lost: it does not pay" in gossamer(*PROMPT, "--early-exit", "5%").err


def test_what_it_does_not_go_with_is_refused(gossamer) -> None:
    assert "give --kv none" in gossamer(*PROMPT, "--early-exit", "2:0.5", "--kv", "h2o:budget=16").refused()
    assert "--speculate none" in gossamer(*PROMPT, "--early-exit", "2:0.5", "--speculate", "lookup").refused()
    assert "give both, or neither" in gossamer(*PROMPT, "--data", "heldout").refused()
    assert "N:THRESHOLD" in gossamer(*PROMPT, "--early-exit", "soon").refused()
    assert "missing.txt" in gossamer(*PROMPT, "--early-exit", "5%", "--data", "missing.txt").refused()
