"""llama.cpp's side: its own `llama-bench` on the file that `gossamer export --format gguf` wrote, the same codes."""

import json
import os
import resource
import shutil
import subprocess
import sys

from task import Task


def main() -> None:
    """Runs it. It reads and writes tokens of its own choice, so none are compared."""
    task = Task.read()
    program = os.environ.get("GOSSAMER_LLAMA_BENCH") or shutil.which("llama-bench")
    if program is None:
        sys.exit("no llama-bench on the PATH or under the name in GOSSAMER_LLAMA_BENCH: build llama.cpp")
    command = [
        program, "-m", task.gguf, "-t", str(task.threads), "-p", str(len(task.prompt)), "-n", "0",
        "-pg", f"{len(task.prompt)},{task.new}", "-r", str(task.repetitions), "-o", "json",
    ]  # fmt: skip
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    alone = next(row for row in rows if not row["n_gen"])
    both = next(row for row in rows if row["n_gen"])
    seconds = both["avg_ns"] / 1e9 - alone["avg_ns"] / 1e9  # what writing takes after a prompt, as on the other sides
    found = {
        "prefill_tokens_per_s": alone["avg_ts"],
        "decode_tokens_per_s": task.new / seconds,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        "note": f"llama.cpp {alone['build_commit']}",
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
