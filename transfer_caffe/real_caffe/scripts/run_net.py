"""Run nets forward and backward in real Caffe and write all blobs; a script for pycaffe's Python.

    caffe-python run_net.py cases.json

cases.json is a list of cases: {"folder": where to run, "model": prototxt, "phase": "TRAIN" or "TEST", "values": npz,
"out": npz to write, "backward": whether to run the backward pass}. The npz ``values`` holds `blob/NAME` for blobs to
set, `memory/data` and `memory/label` for a MemoryData layer, `param/LAYER/INDEX` for weights, and `diff/NAME` for
gradients of tops (if there are none, the gradients come from the losses). The npz ``out`` holds `data/NAME`,
`diff/NAME`, `param/LAYER/INDEX` (after the forward pass) and `grad/LAYER/INDEX`. A case that fails writes a text file,
`OUT.error`.
"""

import json
import os
import sys
import traceback

import numpy as np


def run(case):
    """Run one case in this process."""
    import caffe

    os.chdir(case["folder"])
    values = dict(np.load(case["values"]))
    net = caffe.Net(case["model"], getattr(caffe, case["phase"]))
    memory = {}
    for key, value in values.items():
        kind, name = key.split("/", 1)
        if kind == "blob":
            if net.blobs[name].data.shape != value.shape:
                raise ValueError(f"blob {name} is {net.blobs[name].data.shape}, not {value.shape}")
            net.blobs[name].data[...] = value
        elif kind == "memory":
            memory[name] = np.ascontiguousarray(value, np.float32)
        elif kind == "param":
            layer, index = name.rsplit("/", 1)
            net.params[layer][int(index)].data[...] = value.reshape(net.params[layer][int(index)].data.shape)
    if memory:
        net.set_input_arrays(memory["data"], memory["label"])
    for blobs in net.params.values():
        for blob in blobs:
            blob.diff[...] = 0
    net.forward()
    out = {"data/" + name: blob.data.copy() for name, blob in net.blobs.items()}
    for layer, blobs in net.params.items():
        for index, blob in enumerate(blobs):
            out[f"param/{layer}/{index}"] = blob.data.copy()
    if case["backward"]:
        for key, value in values.items():
            if key.startswith("diff/"):
                net.blobs[key[5:]].diff[...] = value
        net.backward()
        out.update({"diff/" + name: blob.diff.copy() for name, blob in net.blobs.items()})
        for layer, blobs in net.params.items():
            for index, blob in enumerate(blobs):
                out[f"grad/{layer}/{index}"] = blob.diff.copy()
    np.savez(case["out"] + ".part.npz", **out)
    os.rename(case["out"] + ".part.npz", case["out"])


def main(path):
    """Run all cases, each in a separate child process, because a failed CHECK in Caffe ends the process."""
    import caffe  # noqa: F401 - imported once, before forking the children

    with open(path) as file:
        cases = json.load(file)
    for case in cases:
        child = os.fork()
        if child == 0:
            errors = os.open(case["out"] + ".error", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(errors, 2)
            try:
                run(case)
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1])
