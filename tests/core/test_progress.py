"""Progress goes to standard error, and only bars to terminals."""

import pytest

from gossamer.core.progress import SILENT, Progress


def test_without_a_terminal_no_bars_appear_and_news_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        assert list(progress.track(range(3), "counting")) == [0, 1, 2]
        progress.say("half-way [bold]")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "half-way [bold]\n"


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(SILENT.track(iter("ab"), "letters", total=2)) == ["a", "b"]
    SILENT.say("nothing")
    SILENT.close()
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_bars_show_stage_and_count_and_vanish(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Progress() as progress:
        for _ in progress.track(range(2), "sensitivity"):
            progress.say("language.blocks.0 [4 bits]")
    out, err = capsys.readouterr()
    assert out == ""
    assert "sensitivity" in err
    assert "[4 bits]" in err


def test_a_loop_that_is_left_early_takes_its_bar_with_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress() as progress:
        for item in progress.track([1, 2, 3], "search"):
            if item == 2:
                break
        list(progress.track([1], "again"))
    assert capsys.readouterr().out == ""
