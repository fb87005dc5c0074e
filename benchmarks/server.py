"""Serving under load: throughput, time to first token and time per token with 1, 8 and 64 clients at once.

    python benchmarks/server.py [--seconds 20] [--clients 1 8 64] [tiny-lm | smollm2-135m ...]
    GOSSAMER_LLAMA_SERVER=path/to/llama-server python benchmarks/server.py

Each client streams one answer after another over HTTP: the first 32 words of a held-out story, 64 tokens at temperature
0.8. The same clients ask `gossamer serve` and, where GOSSAMER_LLAMA_SERVER names its program, llama.cpp's server, in
turn, in one run, on the same GGUF file, with the same threads, and 64 places in the batch; without it that column says
that it was not measured. SmolLM2-135M is served where `.cache/models` or GOSSAMER_DATA has it (`python
benchmarks/models.py smollm2`). The clients share the machine's processors with the server.

Throughput: tokens that came between warm-up and end, over that time. Times are the clients': of the first token from
the request on, and the mean of the others of an answer; p50 and p99 over the answers that ended in that time. The load
before a run is the kernel's average of the last minute: on a machine with other work all figures are worse.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.core.files import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CACHE = ROOT / ".cache" / "models"
LLAMA_SERVER = "GOSSAMER_LLAMA_SERVER"
PLACES, TOKENS, WORDS = 64, 64, 32


@dataclass(frozen=True)
class Answer:
    """When a request went out and each of its tokens came in, in seconds."""

    begin: float
    tokens: tuple[float, ...]


def found(name: str) -> tuple[str, Path | None] | None:
    """What Gossamer serves under a name, and the GGUF file of the same model if it is at hand; None if neither is."""
    if name == "tiny-lm":
        return name, None
    places = [CACHE, *([Path(os.environ["GOSSAMER_DATA"])] if "GOSSAMER_DATA" in os.environ else [])]
    model = next((place / name for place in places if (place / name).is_dir()), None)
    file = next((file for place in places for file in place.glob("SmolLM2-135M-Instruct*.gguf")), None)
    return None if model is None else (str(model), file)


@contextmanager
def gossamer(model: str, threads: int) -> Iterator[str]:
    """A server of ours; its address."""
    command = [sys.executable, "-m", "gossamer", "serve", model, "--port", "0", "--threads", str(threads)]
    command += ["--max-batch", str(PLACES), "--queue", str(PLACES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[4]
        finally:
            process.terminate()


@contextmanager
def llama_cpp(program: str, file: Path, threads: int) -> Iterator[str]:
    """A server of llama.cpp; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "-m", str(file), "--port", str(port), "-t", str(threads), "-np", str(PLACES)]
    command += ["-c", str(PLACES * 256)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).read()
                    break
                except (urllib.error.URLError, OSError):
                    if process.poll() is not None:
                        raise RuntimeError(f"its server ended with {process.returncode}") from None
                    time.sleep(0.2)
            yield address
        finally:
            process.terminate()


def served_name(address: str) -> str:
    """What the server calls its model."""
    with urllib.request.urlopen(f"{address}/v1/models", timeout=60) as answer:
        return str(json.load(answer)["data"][0]["id"])


def prompts() -> list[str]:
    """How held-out stories begin."""
    from gossamer.data.text import read_text

    documents, _ = read_text("heldout")
    return [" ".join(document.text.split()[:WORDS]) for document in documents]


async def ask(address: str, model: str, prompt: str, seed: int) -> Answer:
    """One streamed answer. Plain sockets: a client should cost little beside the server."""
    host, port = address.removeprefix("http://").split(":")
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0.8, "seed": seed, "stream": True}
    data = json.dumps(body).encode()
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = ["POST /v1/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "Connection: close"]
        writer.write("\r\n".join([*head, f"Content-Length: {len(data)}", "", ""]).encode() + data)
        status = (await reader.readline()).decode()
        if " 200 " not in status:
            raise RuntimeError(status + (await reader.read()).decode(errors="replace"))
        times = []
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["text"]:
                    times.append(time.perf_counter())
        return Answer(begin, tuple(times))
    finally:
        writer.close()


async def load(address: str, clients: int, seconds: float) -> dict[str, Any]:
    """The figures of so many clients at once, after a warm-up of a quarter of the time."""
    model, texts = await asyncio.to_thread(served_name, address), prompts()
    answers: list[Answer] = []
    begin = time.perf_counter() + seconds / 4
    end = begin + seconds

    async def client(number: int) -> None:
        turn = 0
        while time.perf_counter() < end:
            text = texts[(number * 31 + turn * 7) % len(texts)]
            answers.append(await ask(address, model, text, 1000 * number + turn))
            turn += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    counted = sum(begin <= at < end for answer in answers for at in answer.tokens)
    inside = [each for each in answers if len(each.tokens) > 1 and begin <= each.tokens[-1] < end]
    first = [1000 * (each.tokens[0] - each.begin) for each in inside]
    later = [1000 * (each.tokens[-1] - each.tokens[0]) / (len(each.tokens) - 1) for each in inside]
    figures = {"clients": clients, "answers": len(inside), "tokens_per_s": counted / seconds}
    for name, values in (("time_to_first_token_ms", first), ("time_per_token_ms", later)):
        figures[name] = {f"p{share}": float(np.percentile(values, share)) for share in (50, 99)} if values else None
    return figures


def measured(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one model: each number of clients, each server."""
    place = found(name)
    if place is None:
        print(f"{name}: not at hand, left out", file=sys.stderr)
        return []
    model, file = place
    program = os.environ.get(LLAMA_SERVER)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if program and file is None:
            from gossamer.core.progress import Progress
            from gossamer.search.export import export_gguf_job

            file = Path(folder) / f"{name}.gguf"
            export_gguf_job(model, file, Progress(enabled=False))
        if program and file is not None:
            model = str(file)  # both serve the very same file
        for clients in options.clients:
            row: dict[str, Any] = {"model": name, "served": Path(model).name, "clients": clients}
            row["load_before"] = os.getloadavg()[0]
            with gossamer(model, options.threads) as address:
                row["gossamer"] = asyncio.run(load(address, clients, options.seconds))
            row["llama.cpp"] = None
            row["why_not"] = None if program and file is not None else f"no {LLAMA_SERVER}"
            if program and file is not None:
                try:
                    with llama_cpp(program, file, options.threads) as address:
                        row["llama.cpp"] = asyncio.run(load(address, clients, options.seconds))
                except (RuntimeError, OSError) as error:
                    row["why_not"] = str(error)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def table(rows: list[dict[str, Any]], command: str) -> str:
    """Markdown."""
    lines = [
        f"`{command}`; {TOKENS} tokens after {WORDS} words, {PLACES} places, times in ms, p50 / p99.",
        "",
        "| model | clients | server | tokens/s | first token | each later token | answers | load before |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        for server in ("gossamer", "llama.cpp"):
            head = f"| {row['served']} | {row['clients']} | {server} "
            figures = row[server]
            if figures is None:
                lines.append(f"{head}| not measured: {row['why_not']} | | | | |")
                continue
            times = [figures[name] for name in ("time_to_first_token_ms", "time_per_token_ms")]
            cells = ["–" if each is None else f"{each['p50']:.1f} / {each['p99']:.1f}" for each in times]
            cells = [f"{figures['tokens_per_s']:.0f}", *cells, str(figures["answers"]), f"{row['load_before']:.1f}"]
            lines.append(f"{head}| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes `benchmarks/results/server.json` and `server.md`; rows of other models stay."""
    from gossamer.search.outcome import environment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tiny-lm", "smollm2-135m"])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    rows = [row for name in options.models for row in measured(name, options)]
    file = RESULTS / "server.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    rows = [row for row in kept if row["model"] not in options.models] + rows
    command = f"python benchmarks/server.py --seconds {options.seconds:g} --threads {options.threads}"
    write_json(file, {"environment": environment(), "command": command, "rows": rows})
    write_text(RESULTS / "server.md", table(rows, command))
    print(table(rows, command))


if __name__ == "__main__":
    main()
