"""A folder of fabricated networks for tests of the report."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from support.tables import NETWORKS, add_folder, write_table

SETTINGS = {
    "name": "demo",
    "solver": {"base_lr": 0.02, "max_iter": 1000},
    "seeds": [0],
    "networks": {"random0": ["baseA", "baseB", "A3B", "A5B"]},
}


def write_done(runs: Path, network: str, **changes: object) -> None:
    record = {
        "network": network,
        "settings": SETTINGS,
        "engine": "embedded",
        "machine": {"cpu": "Abacus 3000", "cores": 2},
        "versions": {"torch": "9.9"},
        "started": "2030-01-01T10:00:00+00:00",
        "finished": "2030-01-01T10:10:00+00:00",
    }
    (runs / network).mkdir(parents=True, exist_ok=True)
    (runs / network / "done.json").write_text(json.dumps({**record, **changes}))


def make_runs(parent: Path) -> Path:
    folder = parent / "runs" / "demo"
    write_table(folder, NETWORKS)
    add_folder(folder / "random0-baseA-s0")
    write_done(folder, "random0-baseA-s0")
    return folder


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.split("<main>")[1])).split())


NET_TEXT = """name: "B"
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 0 } param { lr_mult: 0 } }
layer { name: "fc8" type: "InnerProduct" bottom: "conv1" top: "fc8" param { lr_mult: 1 } param { lr_mult: 2 } }
"""


def write_network(folder: Path) -> None:
    """Write the files of a transfer network that the report reads, as the driver leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train_val.prototxt").write_text(NET_TEXT)
    (folder / "solver.prototxt").write_text("base_lr: 0.125\n")
    layers = [
        {"layer": "conv1", "start": "copied", "learns": False, "shapes": [[12, 3, 5, 5], [12]]},
        {"layer": "fc8", "start": "fresh", "learns": True, "shapes": [[50, 128], [50]]},
    ]
    (folder / "surgery.json").write_text(json.dumps({"base": "random0-baseA-s0", "layers": layers}))
    (folder / "curve.csv").write_text(
        "iteration,test_accuracy,test_loss,train_loss,lr\n0,0.02,3.9,,0.01\n500,0.5,nan,1.5,0.01\n1000,0.66,1.2,1.1,0.001\n"
    )
    (folder / "train.log").write_text("first line & <b>\n" + "a line of the log\n" * 2000 + "the last line\n")
