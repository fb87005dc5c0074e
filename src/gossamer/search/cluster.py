"""Trials on a Ray cluster: every worker opens the job for itself, once, and is sent trials.

What is sent over is small: the request and the places of the bank's files at the start, then names of candidates one
way and figures the other. Model, data and run folder are read from where they lie, so they must lie under the same
paths on every machine. Each worker takes as many threads as this process has and proves that it has opened the same
job, and a trial is pure: so figures do not depend on where they were measured, nor on how many workers there are.
"""

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gossamer.core.errors import GossamerError, OutputError, SettingError
from gossamer.core.files import digest
from gossamer.search.bank import Bank
from gossamer.search.job import Job
from gossamer.search.opening import open_job
from gossamer.search.request import OptimizeRequest
from gossamer.search.trials import Bench, Figures, Run, Runner, Trial

RETRIES = 3
"""How often a worker that is lost is replaced, and its trial given to another."""


@contextmanager
def cluster(address: str) -> Iterator[Runner]:
    """A runner on the cluster at `address`: HOST:PORT, `auto` (the one of this machine), or `local`, which starts one
    here and ends it afterwards.

    Raises `SettingError` where Ray is not installed or no cluster answers.
    """
    if find_spec("ray") is None:
        raise SettingError("--ray needs the ray package: pip install 'gossamer[ray]'")
    _check_answer(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with _own_signals():
        try:
            settings = {"include_dashboard": False} if address == "local" else {}
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **settings)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(address, error) from error
    try:
        yield partial(_spread, address)
    finally:
        ray.shutdown()


def _check_answer(address: str) -> None:
    """Ray waits for minutes where nothing answers."""
    if address in ("local", "auto"):
        return
    parts = re.fullmatch(r"([^\s/:]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", address)
    if parts is None or int(parts[2]) > 65535:
        raise SettingError(f"--ray {address!r} is no address of a Ray cluster: give HOST:PORT, auto or local")
    try:
        socket.create_connection((parts[1].strip("[]"), int(parts[2])), timeout=10).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> SettingError:
    told = str(getattr(error, "strerror", None) or error).split("\n")[0].rstrip(".")
    return SettingError(
        f"no Ray cluster answers at --ray {address} ({told}): start one with 'ray start --head', or give --ray local"
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; whoever runs the job decides what it means."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _spread(address: str, job: Job, bank: Bank) -> Run:
    """The job's trials on as many workers as the cluster has room for, started when they are first needed."""
    import ray

    threads = torch.get_num_threads()
    need = {"CPU": threads, "GPU": int(job.request.on != "cpu")}
    room = sum(
        min(int(node["Resources"].get(what, 0) // count) for what, count in need.items() if count)
        for node in ray.nodes()
        if node["Alive"]
    )
    if room == 0:
        gpu = " and a GPU" if need["GPU"] else ""
        raise SettingError(
            f"no machine of the Ray cluster at {address} has {threads} processors{gpu} for a worker: give a smaller "
            "--threads (results depend on it)"
        )
    make = ray.remote(
        num_cpus=threads, num_gpus=need["GPU"], max_restarts=RETRIES, max_task_retries=RETRIES
    )(Worker).remote  # fmt: skip
    workers: list[Any] = []

    def run(trials: Sequence[Trial]) -> Iterator[list[Figures]]:
        while len(workers) < min(room, len(trials)):
            workers.append(make(_anywhere(job.request), bank, threads, _proof(job)))
        return _in_order(workers, trials)

    return run


def _in_order(workers: Sequence[Any], trials: Sequence[Trial]) -> Iterator[list[Figures]]:
    """Figures by the order of the trials; a worker that has ended one gets the next at once."""
    import ray

    idle, waiting = list(workers), iter(enumerate(trials))
    running: dict[Any, tuple[int, Any]] = {}
    done: dict[int, list[Figures]] = {}
    for turn in range(len(trials)):
        while turn not in done:
            while idle and (task := next(waiting, None)) is not None:
                worker = idle.pop()
                running[worker.measure.remote(task[1])] = task[0], worker
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            number, worker = running.pop(ready)
            done[number] = _got(ready)
            idle.append(worker)
        yield done.pop(turn)


def _got(ready: Any) -> list[Figures]:
    import ray

    try:
        figures: list[Figures] = ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        told = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().split("\n")[-1].strip()
        raise SettingError(
            f"the Ray cluster has lost a worker for good ({told}): each machine must have gossamer installed, "
            "and memory for the model; the same command resumes"
        ) from error
    return figures


def _anywhere(request: OptimizeRequest) -> OptimizeRequest:
    """The request with the paths in it made absolute: workers stand in other directories."""
    places = {name: getattr(request, name) for name in ("model", "data", "test_data", "device")}
    found: dict[str, Any] = {
        name: str(Path(place).resolve()) for name, place in places.items() if place and Path(place).exists()
    }
    return replace(request, out=request.out.resolve(), **found)


def _proof(job: Job) -> str:
    """What all sides must have in common for their figures to be the same."""
    return digest(job.key, torch.__version__)


class Worker:
    """Opens the job when its first trial comes and keeps it for the others."""

    def __init__(self, request: OptimizeRequest, bank: Bank, threads: int, proof: str) -> None:
        self._request, self._bank, self._threads, self._proof = request, bank, threads, proof
        self._bench: Bench | None = None

    def measure(self, trial: Trial) -> list[Figures]:
        """The trial's figures. Raises `GossamerError` if this machine does not have what the job is about."""
        if self._bench is None:
            self._bench = self._opened()
        return self._bench(trial)

    def _opened(self) -> Bench:
        torch.set_num_threads(self._threads)
        name = socket.gethostname()
        missing = [file for file in self._bank.files if not file.exists()]
        if missing:
            raise OutputError(f"the worker on {name} does not see {missing[0]}: --out must be on a disk that all share")
        try:
            job = open_job(self._request)
        except GossamerError as error:
            raise type(error)(f"the worker on {name}: {error}") from None
        if _proof(job) != self._proof:
            raise SettingError(
                f"the worker on {name} finds another model, other data or other versions of gossamer and torch there "
                "than this command does: they must be the same on every machine"
            )
        return Bench(job, self._bank)
