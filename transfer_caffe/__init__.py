"""How transferable are a network's features? The experiment of Yosinski et al. (NIPS 2014) on Caffe's files.

    import transfer_caffe as tc

    recipe = tc.load_recipe("demo")
    tc.make_data(recipe)
    tc.train(recipe.network("random0", "baseA"))        # in runs/demo, as the commands do
    rows = tc.load_results("paper")                     # or the path of a results.csv
    for analysis in tc.analyse(rows, "top10"):
        print(analysis.effects)
    tc.draw_figures(rows, "figures", "top10")

Invalid input raises UserError, whose text says what is wrong, where, and what to do; a training run that fails raises
RunFailed. Nets and solvers for use without the experiment are in `transfer_caffe.engine`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transfer_caffe.analysis import Analysis, analyse
    from transfer_caffe.data import make_data
    from transfer_caffe.driver import train
    from transfer_caffe.experiment.read import load_recipe, recipe_names
    from transfer_caffe.experiment.recipe import Network, Recipe
    from transfer_caffe.experiment.treatment import Treatment
    from transfer_caffe.export.dataset import Dataset
    from transfer_caffe.export.module import as_module, write_caffemodel
    from transfer_caffe.figures.draw import draw_figures
    from transfer_caffe.report import write_report
    from transfer_caffe.results.table import Row, write_results
    from transfer_caffe.results.table import load as load_results
    from transfer_caffe.run.outcome import RunFailed
    from transfer_caffe.utils.errors import UserError

__all__ = [
    "Analysis", "Dataset", "Network", "Recipe", "Row", "RunFailed", "Treatment", "UserError", "analyse", "as_module",
    "draw_figures", "load_recipe", "load_results", "make_data", "recipe_names", "train", "write_caffemodel",
    "write_report", "write_results",
]  # fmt: skip

__version__ = "0.1.0"

# Another Python than that of .venv would end in a traceback. While `python -m` looks for a command, argv[0] is "-m".
if sys.argv[:1] == ["-m"]:
    for _package in ("numpy", "lmdb", "cv2", "google", "yaml", "torch"):
        if importlib.util.find_spec(_package) is None:
            _remedy = "run `make setup`, then `. .venv/bin/activate`"
            print(f"error: the package {_package} is not installed for {sys.executable}; {_remedy}", file=sys.stderr)
            sys.exit(2)

_HOMES = {
    "Analysis": "analysis:Analysis",
    "Dataset": "export.dataset:Dataset",
    "Network": "experiment.recipe:Network",
    "Recipe": "experiment.recipe:Recipe",
    "Row": "results.table:Row",
    "RunFailed": "run.outcome:RunFailed",
    "Treatment": "experiment.treatment:Treatment",
    "UserError": "utils.errors:UserError",
    "analyse": "analysis:analyse",
    "as_module": "export.module:as_module",
    "draw_figures": "figures.draw:draw_figures",
    "load_recipe": "experiment.read:load_recipe",
    "load_results": "results.table:load",
    "make_data": "data:make_data",
    "recipe_names": "experiment.read:recipe_names",
    "train": "driver:train",
    "write_caffemodel": "export.module:write_caffemodel",
    "write_report": "report:write_report",
    "write_results": "results.table:write_results",
}
"""Where each public name lives; it is imported when it is asked for, so that commands start quickly."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"transfer_caffe.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
