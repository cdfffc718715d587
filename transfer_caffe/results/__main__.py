"""Write a recipe's results table, runs/RECIPE/results.csv.

python -m transfer_caffe.results --recipe demo
"""

from __future__ import annotations

import sys
from pathlib import Path

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.results.table import write_results
from transfer_caffe.run.watch import remarks_of
from transfer_caffe.utils.errors import ArgumentParser, UserError, command


@command
def main(argv: list[str] | None = None) -> int | None:
    """Run the command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.results",
        description="Write the results table of a recipe's finished networks, runs/RECIPE/results.csv.",
        epilog="example: python -m transfer_caffe.results --recipe demo",
    )
    parser.add_argument("--recipe", required=True, help="a recipe's name or its YAML file")
    parser.add_argument(
        "--runs", default="runs", metavar="DIR", help="folder with the networks' folders (default: runs)"
    )
    args = parser.parse_args(argv)
    recipe = load_recipe(args.recipe)
    folder = Path(args.runs) / recipe.name
    if not any(folder.glob("*/done.json")):
        raise UserError(
            f"{folder}: no network of {recipe.name} is finished in it; train networks first: "
            f"python -m transfer_caffe.sweep run --recipe {args.recipe}"
        )
    path, count = write_results(recipe, args.runs)
    print(f"wrote {path}: {count} of {len(recipe.networks())} networks are done")
    for network in recipe.networks():
        if (network.folder(args.runs) / "done.json").exists():
            for remark in remarks_of(network, Path(args.runs), Path(args.runs)):
                print(f"! {network.name}: {remark}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
