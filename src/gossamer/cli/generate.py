"""`gossamer generate`: what a model writes."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gossamer.cli.options import Data, DraftRule, Engine, EngineName, Json, Kv, ModelOrRun, On, Seed, Threads
from gossamer.cli.terminal import Result, job, output, quantity, show

EXAMPLE = 'gossamer generate tiny-lm --prompt "Once upon a time" --max-tokens 60 --temperature 0.7'


def command(
    model: ModelOrRun,
    prompt: Annotated[str, typer.Option(metavar="TEXT", show_default=False, help="What the model is to continue.")],
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", show_default=False, help="An image to go with it; may be given again."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Write at most N tokens.")] = 128,
    temperature: Annotated[float, typer.Option(metavar="T", help="0: always the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(metavar="K", help="Only the K likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(metavar="P", help="Only the likeliest, up to this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(metavar="P", help="Only tokens of this share of the likeliest one's.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(metavar="R", help="Above 1, tokens that were there before come less often.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", show_default=False, help="End before this text; may be given again."),
    ] = None,
    speculate: Annotated[
        str | None,
        typer.Option(
            metavar="DRAFTER",
            show_default=False,
            help="Draft tokens and verify several at once, same law: lookup, self:N (first N blocks), a MODEL or none.",
        ),
    ] = None,
    draft_tokens: Annotated[
        str, typer.Option(metavar="N", help="Tokens of a draft; auto: as many as pay here, so seeds fix less.")
    ] = "auto",
    drafts: Annotated[int, typer.Option(metavar="K", help="Drafts that are verified together.")] = 1,
    rule: Annotated[DraftRule, typer.Option(help="How several drafts are verified.")] = DraftRule.kseq,
    early_exit: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE|N:T",
            show_default=False,
            help="Lossy: take tokens from the first blocks where those are sure. 1%: so many may differ, which is "
            "calibrated first, on --data; 8:0.9: after 8 blocks, where the likeliest leads by 0.9.",
        ),
    ] = None,
    data: Data = None,
    raw: Annotated[bool, typer.Option("--raw", help="Give the prompt as it stands, without a chat template.")] = False,
    kv: Kv = None,
    engine: Engine = EngineName.auto,
    on: On = "cpu",
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Let a model continue a prompt.

    The text appears as it comes; how fast it came is said on standard error. Of a run folder, what its plan says of
    operation holds where --kv and --speculate do not say otherwise.
    """
    with output() as say, job(threads) as progress:
        from gossamer.core.errors import SettingError
        from gossamer.engine.sampling import Sampling
        from gossamer.operate.early_exit.wish import ExitWish
        from gossamer.operate.generate import generate
        from gossamer.operate.planned import cache_of, planned, speculation_of
        from gossamer.operate.speculate.wish import Wish

        if data is not None and early_exit is None:
            raise SettingError("--data is what --early-exit is calibrated on: give both, or neither")
        plan = planned(model)
        result = generate(
            model,
            prompt,
            image or (),
            max_tokens=max_tokens,
            sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed=seed),
            stops=stop or (),
            raw=raw,
            keeper=cache_of(plan, kv),
            engine=engine.value,
            on=on,
            speculate=speculation_of(plan, None if speculate is None else Wish(speculate, draft_tokens, drafts, rule)),
            early_exit=None if early_exit is None else ExitWish(early_exit, data),
            progress=progress,
            say=(lambda text: None) if as_json else say,
        )
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """Ends the line of the text, and says how fast it came."""
    print(flush=True)
    said = [
        f"{result['prompt_tokens']} tokens read, {result['new_tokens']} written (ended by {result['finish_reason']})"
    ]
    names = {
        "time_to_first_token_ms": "the first after",
        "time_per_token_ms": "then each",
        "cache_bytes": "the cache holds",
    }
    measured = result["measured"]
    said += [f"{name} {quantity(key, measured[key]['value'])}" for key, name in names.items() if key in measured]
    said.append(f"on the {result['engine']['name']} engine")
    print(", ".join(said), file=sys.stderr)
    drafted = result.get("speculation")
    if drafted is not None:
        print(
            f"{drafted['accepted']} tokens were drafted ones, of {drafted['drafted']} in {drafted['passes']} passes"
            + (f"; drafting is off: {drafted['off']}" if drafted["off"] else ""),
            file=sys.stderr,
        )
    left = result.get("early_exit")
    if left is not None:
        print(_exits(left), file=sys.stderr)


def _exits(left: Result) -> str:
    """What came of leaving early."""
    found: Result = left.get("calibration") or {}
    if left["lossy"]:
        way = f"{left['blocks']}:{left['threshold']}"
        said = f"{left['early']} tokens left after {left['blocks']} blocks (--early-exit {way}): lossy, "
        if not found:
            return said + "by how much is not known"
        return said + f"{found['differ']:.2%} of the tokens differed on {found['examples']} examples"
    if found["way"] is None:
        return f"no token left early, and nothing is lost: below {found['risk']:.3%} is not safe at any threshold"
    return (
        f"no token left early, and nothing is lost: it does not pay, as after {found['way']['blocks']} blocks "
        f"{found['early']:.0%} of the tokens might"
    )
