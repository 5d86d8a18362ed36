"""A small load with clients that leave, read slowly or send nonsense: answers are right, and nothing is left behind."""

import torch

from benchmarks.serving_load import run


def test_under_load_answers_are_right_and_nothing_leaks(exported):
    outcome, left = run(exported, n_requests=100, connections=20, n_tokens=12, rows=4)
    assert outcome.wrong == []
    assert sum(outcome.counts[kind] for kind in outcome.counts if "again" not in kind) == 100
    leaks = {name: left[name] for name in ("running", "waiting", "tasks", "failures", "threads_more")}
    assert leaks == {"running": 0, "waiting": 0, "tasks": 0, "failures": 0, "threads_more": leaks["threads_more"]}
    assert left["threads_more"] <= 1 + torch.get_num_threads()  # the event loop's pool, and OpenMP's
    assert left["megabytes_more"] < 50
    assert left["server_ended"]
