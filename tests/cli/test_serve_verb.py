"""`gossamer serve` as a program: what it refuses, and that a signal ends it well."""

import json
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
