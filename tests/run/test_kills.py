"""Send SIGKILL at random moments during a sweep with the embedded engine: the same command ends with the same bytes.

`benchmarks.kills` is a longer version of this test, on the demo's networks.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

from benchmarks.kills import TARGETS, contents, start, victims
from support.small_world import draw_shapes, experiment

from transfer_caffe.sweep.__main__ import main as sweep_main
from transfer_caffe.utils.files import write_text

KILLS = 6
SMALL = (
    experiment("{random0: [baseA, A3B]}", "display: 5, snapshot: 20")
    .replace("max_iter: 20", "max_iter: 400")
    .replace("test_interval: 10", "test_interval: 100")
)


def test_a_sweep_that_is_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path, monkeypatch, forked_trainings
):
    monkeypatch.chdir(tmp_path)
    draw_shapes()
    write_text("tiny.yaml", SMALL)
    runs = Path("runs/tiny")
    assert sweep_main(["run", "--recipe", "tiny.yaml"]) == 0
    undisturbed = contents(runs)
    assert len(undisturbed) == 2 * 5 + 2  # weights, state, prototxts and curve; for one of them also init and surgery
    runs.rename("undisturbed")

    draw, kills = random.Random(1), 0
    while kills < KILLS:
        process = start(Path("tiny.yaml").resolve(), Path("data"))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.5, 4))
        target = TARGETS[kills % len(TARGETS)]
        for pid in victims(process.pid, target) if process.poll() is None else []:
            kills += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if process.wait() == 0:  # it finished before the kill
            assert contents(runs) == undisturbed
            shutil.rmtree(runs)
    assert sweep_main(["run", "--recipe", "tiny.yaml"]) == 0
    assert contents(runs) == undisturbed
