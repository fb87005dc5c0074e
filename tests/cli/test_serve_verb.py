"""`gossamer serve` as a program: what it refuses, and that a signal ends it well."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest


def test_a_port_in_use_is_refused(gossamer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        gossamer("serve", "tiny-lm", "--port", port).refused(f"port {port} of 127.0.0.1", "--port")


def test_addresses_and_keys_that_are_none(gossamer, tmp_path: Path) -> None:
    gossamer("serve", "tiny-lm", "--host", "nowhere.invalid", "--port", 0).refused("nowhere.invalid", "--host")
    gossamer("serve", "tiny-lm", "--port", 70000).refused("65535")
    gossamer("serve", "tiny-lm", "--api-key-file", tmp_path / "keys").refused("keys", "cannot be read")
    gossamer("serve", "tiny-lm", "--prefix-cache", "much").refused("'much'", "such as 3MB")
    (tmp_path / "keys").write_text("\n \n")
    gossamer("serve", "tiny-lm", "--api-key-file", tmp_path / "keys").refused("holds no API key")


@pytest.mark.parametrize(("model", "said"), [("tiny-ovd", "does not continue text"), ("missing", "does not exist")])
def test_models_that_do_not_write(gossamer, model: str, said: str) -> None:
    gossamer("serve", model, "--port", 0).refused(model, said)


def test_what_the_plan_says_of_operation_is_done_or_said_not_to_be(lm: Path, tmp_path: Path) -> None:
    shutil.copytree(lm, tmp_path / "lm")
    (tmp_path / "lm" / "plan.yaml").write_text(
        f"gossamer_plan: 1\nmodel: {{family: llama, fingerprint: 'sha256:{'0' * 64}'}}\n"
        "operation: {kv_cache: {do: streaming, budget: 64}, speculation: {do: prompt_lookup}}\n"
    )
    command = [sys.executable, "-m", "gossamer", "serve", str(tmp_path / "lm"), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        assert "the server does not draft: the plan's speculation (prompt_lookup)" in said
        with urllib.request.urlopen(f"{said.split()[4]}/v1/models", timeout=60) as answer:
            assert json.load(answer)["data"][0]["gossamer"]["kv"]["budget"] == 64
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal(lm: Path, sent: signal.Signals) -> None:
    command = [sys.executable, "-m", "gossamer", "serve", str(lm), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        assert said.startswith(f"{lm} is served at http://127.0.0.1:")
        url = said.split()[4]
        body = json.dumps({"model": "random-lm", "prompt": "The cat", "max_tokens": 3, "temperature": 0}).encode()
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3
        process.send_signal(sent)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
