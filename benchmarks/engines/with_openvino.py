"""OpenVINO's side: the graph that `gossamer export --format openvino` wrote, its constants on the same grid."""

import os

import numpy as np
from openvino import Core, get_version
from task import Task, contest


def main() -> None:
    """Runs it."""
    task = Task.read()
    settings = {"INFERENCE_NUM_THREADS": task.threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = Core().compile_model(os.path.join(task.openvino, "openvino_model.xml"), "CPU", settings)
    request = compiled.create_infer_request()
    state = {"past": 0}

    def run(tokens: list[int]) -> int:
        past = state["past"]
        state["past"] = past + len(tokens)
        given = {
            "input_ids": np.array([tokens], dtype=np.int64),
            "attention_mask": np.ones((1, state["past"]), dtype=np.int64),
            "position_ids": np.arange(past, state["past"], dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        return int(request.infer(given)["logits"][0, -1].argmax())

    def read(prompt: list[int]) -> int:
        request.reset_state()
        state["past"] = 0
        return run(prompt)

    contest(task, read, lambda token: run([token]), note=f"OpenVINO {get_version().split('-')[0]}")


if __name__ == "__main__":
    main()
