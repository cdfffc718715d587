"""The options that the sweep's commands share."""

from __future__ import annotations

from pathlib import Path

from transfer_caffe.errors import ArgumentParser


def add_recipe_arguments(parser: ArgumentParser) -> None:
    """Which recipe, and where its networks and data are."""
    parser.add_argument("--recipe", required=True, help="a recipe's name or its YAML file")
    parser.add_argument("--runs", default="runs", type=Path, metavar="DIR", help="where networks go (default: runs)")
    parser.add_argument("--data", default="data", type=Path, metavar="DIR", help="where datasets are (default: data)")
