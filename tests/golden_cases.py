"""Real Caffe's numbers for the layer and graph cases of the conformance suite, in one small file.

    for name, arrays in read_layers(): ...

All arrays lie behind each other in one vector: thousands of files in an archive would be mostly headers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from conformance.graph_cases import GARBAGE_IN_CAFFE, GRAPH_CASES, REFUSED_BY_CAFFE
from conformance.layer_cases import LAYER_CASES
from conformance.suite import as_case

from transfer_caffe.compare import Arrays, Case

GOLDEN = Path(__file__).parent / "golden"
LAYERS_FILE = GOLDEN / "layers.npz"
NETWORKS_FILE = GOLDEN / "networks.json"


def golden_cases() -> list[tuple[str, Case]]:
    """All cases with their names, in the order of the file."""
    layers = [layer for cases in LAYER_CASES.values() for layer in cases]
    cases = [(f"{layer.name} {layer.phase}", as_case(layer, seed)) for seed, layer in enumerate(layers)]
    unlike = REFUSED_BY_CAFFE + GARBAGE_IN_CAFFE
    return cases + [(name, case) for name, case in GRAPH_CASES.items() if name not in unlike]


def write_layers(named: Sequence[tuple[str, Arrays]], path: Path = LAYERS_FILE) -> None:
    """Write what went in (`in/...`) and what real Caffe made of it; what it left as it was is not written twice."""
    index: list[list[object]] = []
    vectors: list[np.ndarray] = []
    for name, arrays in named:
        kept = {key: array for key, array in arrays.items() if "_split_" not in key and not _unchanged(key, arrays)}
        index.append([name, [[key, list(array.shape)] for key, array in kept.items()]])
        vectors += [array.ravel() for array in kept.values()]
    text = np.frombuffer(json.dumps(index).encode(), np.uint8)
    np.savez_compressed(path, index=text, values=np.concatenate(vectors).astype(np.float32))


def _unchanged(key: str, arrays: Arrays) -> bool:
    source = key.replace("data/", "in/blob/", 1) if key.startswith("data/") else f"in/{key}"
    return source in arrays and np.array_equal(arrays[key].ravel(), arrays[source].ravel())


def read_layers(path: Path = LAYERS_FILE) -> list[tuple[str, Arrays]]:
    """Each case's name and arrays, as written."""
    with np.load(path) as file:
        index, values = json.loads(file["index"].tobytes()), file["values"]
    named, start = [], 0
    for name, keys in index:
        arrays: Arrays = {}
        for key, shape in keys:
            end = start + int(np.prod(shape))
            arrays[key] = values[start:end].reshape(shape)
            start = end
        named.append((name, arrays))
    return named
