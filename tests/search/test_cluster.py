"""On a Ray cluster the job ends with the same plan and bytes as here; without Ray or a cluster it is refused."""

import socket
from dataclasses import replace
from importlib.util import find_spec

import pytest

from gossamer.core.errors import ModelError, OutputError, SettingError
from gossamer.search import cluster as clusters
from gossamer.search.cluster import Worker
from gossamer.search.opening import open_job
from gossamer.search.optimize import optimize, profile
from gossamer.search.request import OptimizeRequest
from gossamer.search.trials import Trial, here

ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'gossamer[ray]'")


@pytest.fixture(scope="module")
def request_of(model):
    return lambda out, **settings: OptimizeRequest(str(model), out, effort="quick", ratio=0.65, **settings)


@pytest.fixture(scope="module")
def runner():
    with clusters.cluster("local") as runner:
        yield runner


@ray
def test_a_local_cluster_ends_with_the_same_plan_and_bytes(request_of, tmp_path):
    for name, address in (("alone", None), ("many", "local")):
        optimize(request_of(tmp_path / name, ray=address))
    alone, many = tmp_path / "alone", tmp_path / "many"
    files = ["plan.yaml", *(f"checkpoint/{file.name}" for file in (alone / "checkpoint").iterdir())]
    for file in files:
        assert (alone / file).read_bytes() == (many / file).read_bytes(), file
    trials = sorted(file.name for file in (alone / "steps").glob("trial-*"))
    assert len(trials) > 20
    for file in trials:
        assert (alone / "steps" / file).read_bytes() == (many / "steps" / file).read_bytes()


@ray
def test_results_come_in_order_and_a_lost_worker_is_replaced(request_of, runner, tmp_path):
    import ray

    job = open_job(request_of(tmp_path / "run"))
    trials, _ = profile(job)
    asked = [Trial("select", share=share) for share in (1.0, 0.2, 0.6)] + [Trial("nonsense")]
    run = runner(job, trials.bank)
    expected = list(here(job, trials.bank)(asked[:3]))
    assert list(run(asked[:3])) == expected
    workers = next(cell.cell_contents for cell in run.__closure__ if isinstance(cell.cell_contents, list))
    ray.kill(workers[0], no_restart=False)
    assert list(run(asked[:3])) == expected
    with pytest.raises(AttributeError, match="nonsense"):
        list(run(asked))
    trials.bank.files[0].unlink()
    for worker in workers:
        ray.kill(worker, no_restart=False)
    with pytest.raises(OutputError, match="does not see"):
        list(run(asked[:1]))


def test_a_worker_that_does_not_have_what_the_job_is_about_says_so(request_of, tmp_path):
    request = request_of(tmp_path / "run")
    job = open_job(request)
    trials, _ = profile(job)
    here_too, trial = Worker(request, trials.bank, 1, clusters._proof(job)), Trial("select", share=0.1)
    assert here_too.measure(trial) == trials([trial])[0]
    with pytest.raises(SettingError, match=r"worker on .* finds another model, other data or other versions"):
        Worker(replace(request, seed=1), trials.bank, 1, clusters._proof(job)).measure(trial)
    with pytest.raises(ModelError, match=r"the worker on .*: .*nowhere"):
        Worker(replace(request, model="/nowhere"), trials.bank, 1, "").measure(trial)
    trials.bank.files[0].unlink()
    with pytest.raises(OutputError, match=r"worker on .* does not see .*: --out must be on a disk that all share"):
        Worker(request, trials.bank, 1, "").measure(trial)


@ray
def test_a_cluster_without_room_for_a_worker_is_refused(request_of, runner, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 10_000)
    with pytest.raises(SettingError, match="has 10000 processors for a worker: give a smaller --threads"):
        runner(open_job(request_of(tmp_path / "run")), None)


def test_without_ray_it_says_how_to_get_it(request_of, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "find_spec", lambda _: None)
    with pytest.raises(SettingError, match=r"pip install 'gossamer\[ray\]'"):
        optimize(request_of(tmp_path / "run", ray="local"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("address", ["", "somewhere", "host:port", "host:99999", "ray://host:10001"])
def test_what_is_no_address_is_refused(request_of, tmp_path, monkeypatch, address):
    monkeypatch.setattr(clusters, "find_spec", lambda _: True)
    with pytest.raises(SettingError, match="is no address of a Ray cluster: give HOST:PORT, auto or local"):
        optimize(request_of(tmp_path / "run", ray=address))


def test_where_nothing_answers_it_is_said_at_once(request_of, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "find_spec", lambda _: True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingError, match=rf"no Ray cluster answers at --ray {address} \(Connection refused\)"):
            optimize(request_of(tmp_path / "run", ray=address))
    assert not (tmp_path / "run").exists()
