"""The import order: which subpackages may import which others; see docs/architecture.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import transfer_caffe

PACKAGE = Path(transfer_caffe.__file__).parent
LIBRARY = {"utils", "formats"}
EXPERIMENT = {*LIBRARY, "engine", "real_caffe", "experiment", "run"}
RENDER = {*EXPERIMENT, "data_prep", "tools", "generate", "surgery", "data"}
MAY_IMPORT = {
    "utils": set(),
    "formats": {"utils"},
    "engine": LIBRARY,
    "export": {*LIBRARY, "engine"},
    "caffe": {*LIBRARY, "engine"},
    "data_prep": LIBRARY,
    "tools": LIBRARY,
    "real_caffe": LIBRARY,
    "experiment": {*LIBRARY, "engine"},
    "run": {*LIBRARY, "engine", "real_caffe", "experiment"},
    "generate": EXPERIMENT,
    "architecture": {*LIBRARY, "engine", "experiment"},
    "surgery": EXPERIMENT,
    "data": {*EXPERIMENT, "data_prep", "tools"},
    "driver": RENDER,
    "compare": {*LIBRARY, "engine", "real_caffe"},
    "results": EXPERIMENT,
    "probe": {*RENDER, "results", "sweep"},
    "rates": {*RENDER, "results", "sweep"},
    "study": {*RENDER, "probe", "rates", "results", "sweep", "analysis"},
    "sweep": {*RENDER, "results"},
    "analysis": {*EXPERIMENT, "results"},
    "figures": {*EXPERIMENT, "results", "analysis"},
    "report": {*EXPERIMENT, "results", "analysis", "figures", "sweep"},
    "recipes": set(),
    "cli": set(),
}
"""Each subpackage or command at the package's root, and those that it may import. None may import driver."""

INSIDE_ENGINE = ["batches", "layers", "passes", "weights", "net", "iteration", "timing", "solver", "__main__"]
"""Each may import those before it; all may import glog, rng and precision."""


def modules() -> list[Path]:
    return [
        path for path in sorted(PACKAGE.rglob("*.py")) if "scripts" not in path.parts and path.name != "caffe_pb2.py"
    ]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, deferred: bool = True) -> Iterator[str]:
    """Yield the package's modules that a file imports; ``deferred`` includes imports inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if deferred else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "transfer_caffe":
            base = node.module.removeprefix("transfer_caffe").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                file = PACKAGE.joinpath(*inner.split("."))
                yield inner if file.with_suffix(".py").exists() or file.is_dir() else base
        elif isinstance(node, ast.Import):
            yield from (
                each.name.removeprefix("transfer_caffe.") for each in node.names if "transfer_caffe." in each.name
            )


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_subpackages_import_only_those_below_them(path):
    name = name_of(path)
    own = name.split(".")[0]
    if not own:  # the package's __init__ imports its public names on demand
        return
    assert own in MAY_IMPORT, f"{path}: a new subpackage; add it to MAY_IMPORT here and to docs/architecture.md"
    for imported in imports_of(path):
        below = imported.split(".")[0]
        assert below in {own, "", *MAY_IMPORT[own]}, (
            f"transfer_caffe.{name} imports transfer_caffe.{imported}, but {own} may import only "
            f"{', '.join(sorted(MAY_IMPORT[own])) or 'nothing of the package'}: move the imported code to a lower "
            "subpackage, or the importing code to a higher one (docs/architecture.md, Subpackages)"
        )


@pytest.mark.parametrize("path", [path for path in modules() if name_of(path).startswith("engine.")], ids=name_of)
def test_modules_of_the_engine_import_only_those_below_them(path):
    place = name_of(path).split(".")[1]
    if place not in INSIDE_ENGINE:
        return
    for imported in imports_of(path):
        parts = imported.split(".")
        if parts[0] == "engine" and len(parts) > 1 and parts[1] in INSIDE_ENGINE:
            assert INSIDE_ENGINE.index(parts[1]) <= INSIDE_ENGINE.index(place), (
                f"transfer_caffe.{name_of(path)} imports {imported}, which is above it: the order is "
                f"{' < '.join(INSIDE_ENGINE)}"
            )


def test_there_are_no_circular_imports():
    known = {name_of(path) for path in modules()}
    graph = {
        name_of(path): {each for each in imports_of(path, deferred=False) if each in known and each != name_of(path)}
        for path in modules()
    }
    graph = {name: {each for each in to if not name.startswith(each + ".")} for name, to in graph.items()}
    while leaves := [name for name, to in graph.items() if not to]:
        for leaf in leaves:
            del graph[leaf]
        graph = {name: to - set(leaves) for name, to in graph.items()}
    assert not graph, f"import cycle in, or reachable from: {', '.join(sorted(graph))}"
