"""`sweep verify`: check that finished networks still match their done.json.

    python -m transfer_caffe.sweep verify --recipe demo
    python -m transfer_caffe.sweep verify --recipe paper --quick       everything except the databases

The checksums of weights, prototxts, image lists, mean images and databases are recomputed. Each base is compared with
the weights that its networks were started from, and each curve with its log. Files that are not on this machine are
counted, and are not an error. Nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Network
from transfer_caffe.formats import seal
from transfer_caffe.formats.log import read_log
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.formats.proto import read_text as read_message
from transfer_caffe.formats.views import RECORDS, is_view, whole_of
from transfer_caffe.generate import compose
from transfer_caffe.run.differences import changed_source, differences, in_short
from transfer_caffe.run.folder import CURVE, DONE, INIT, LOG, NET, SOLVER, SURGERY, read_done, state_path, weights_path
from transfer_caffe.run.record import BESIDE, curve_csv, record_sha256
from transfer_caffe.sweep.selection import add_recipe_arguments, selected
from transfer_caffe.utils.errors import ArgumentParser, UserError
from transfer_caffe.utils.files import read_record, read_text, require_checksum, sha256
from transfer_caffe.utils.progress import track

SUMMARY = "recompute the checksums of finished networks, and report differences"
EXAMPLES = """examples:
  python -m transfer_caffe.sweep verify --recipe demo
  python -m transfer_caffe.sweep verify --recipe paper --split random0 --quick

exit code 0: all agree; 1: something differs, and a line for each difference says what it is and what to do
"""

_MIB = 1 << 20


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `sweep verify`."""
    add_recipe_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="skip the databases, which may take long to read")


@dataclass
class Finding:
    """The result of the comparisons for one network."""

    network: Network
    compared: int = 0
    not_here: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    """One line per difference: what differs, and what to do."""

    def compare(self, path: Path, then: str | None, now: str | None, remedy: str) -> None:
        """Compare a recorded checksum with the current one of the file ``path`` (None if the file does not exist)."""
        if then is None:
            return
        if now is None:
            self.not_here.append(str(path))
            return
        self.compared += 1
        if now != then:
            self.differing.append(f"{path}: its checksum is {now[:12]}, but {DONE} has {then[:12]}; {remedy}")


def main(args: argparse.Namespace) -> int:
    """Print one line per network and one per difference; return the exit code."""
    recipe, runs, data = load_recipe(args.recipe), args.runs, args.data
    networks = selected(recipe, args).networks
    findings, records = [], {}
    for network in networks:
        try:
            if done := read_done(network, runs):
                records[network] = done
        except UserError as error:
            findings.append(Finding(network, differing=[str(error)]))
    if not records and not findings:
        raise UserError(
            f"{runs / recipe.name}: none of the {len(networks)} networks is done; train them first: python -m "
            f"transfer_caffe.sweep run --recipe {args.recipe}"
        )
    databases = {} if args.quick else _checksums(_databases(list(records), data))
    known: dict[Path, str] = {}
    findings += [verify(network, runs, data, done, databases, known) for network, done in records.items()]
    for finding in findings:
        words = f"{len(finding.differing)} differences" if finding.differing else "agrees"
        away = f", {len(finding.not_here)} not here" if finding.not_here else ""
        print(f"{finding.network.name:24} {words}: {finding.compared} compared{away}")
        for line in finding.differing:
            print(f"  {line}")
    bad = sum(1 for finding in findings if finding.differing)
    left = len(networks) - len(findings)
    print(
        f"{len(findings) - bad} networks agree, {bad} differ, {left} are not done; "
        f"{sum(finding.compared for finding in findings)} comparisons, "
        f"{sum(len(finding.not_here) for finding in findings)} files not here"
        + (", databases skipped" if args.quick else "")
    )
    return 1 if bad else 0


def verify(
    network: Network,
    runs: Path,
    data: Path,
    done: dict[str, Any],
    databases: Mapping[Path, str],
    known: dict[Path, str],
) -> Finding:
    """Compare all files recorded in done.json.

    ``databases``: checksums of the databases that were read, by the paths of `_databases`. ``known`` caches the
    checksums of files that several networks share.
    """
    finding = Finding(network)
    folder = network.folder(runs)
    retrain = f"restore an intact copy, or retrain {network.name} with --restart"
    take_back = f"restore the old file, or retrain {network.name} with --restart"

    own = {
        "final": weights_path(folder, done.get("max_iter", network.max_iter)),
        "init": folder / INIT,
        NET: folder / NET,
        SOLVER: folder / SOLVER,
        **{name: folder / name for name in BESIDE},
    }
    for name, path in own.items():
        finding.compare(path, done["sha256"].get(name), sha256(path) if path.exists() else None, retrain)

    finding.compare(folder / DONE, done.get("record_sha256"), record_sha256(done), f"it was edited; {retrain}")

    # older records store the checksums of lists and mean image in `sha256`
    of_data = {name: digest for name, digest in done["sha256"].items() if name not in own} | done.get("data", {})
    for name, then in of_data.items():
        try:
            path = _data_path(network, data, name)
        except UserError as error:
            finding.differing.append(str(error))
            continue
        if _of_another_kind(network.data_folder(data) / name, of_data):
            finding.not_here.append(str(path))
            continue
        if path.name == "data.mdb":
            if path in databases or not path.exists():
                finding.compare(path, then, _database_now(path, then, databases), take_back)
            continue
        if path not in known and path.exists():
            known[path] = sha256(path)
        finding.compare(path, then, known.get(path), take_back)

    for check in (_own_state, _base, _curve, _settings):
        try:
            check(finding, runs, data, done)
        except FileNotFoundError as error:
            finding.not_here.append(str(error.filename))
        except UserError as error:
            finding.differing.append(str(error))
    return finding


def _own_state(finding: Finding, runs: Path, _: Path, done: dict[str, Any]) -> None:
    """Check the final solver state against the checksum in it or beside it."""
    path = state_path(finding.network.folder(runs), done.get("max_iter", finding.network.max_iter))
    require_checksum(path)
    seal.verify(path)
    finding.compared += 1


def _base(finding: Finding, runs: Path, _: Path, done: dict[str, Any]) -> None:
    """Check that the base is the one that layers were copied from, according to both done.json and surgery.json."""
    network, then = finding.network, done.get("base_sha256")
    if then is None or not network.treatment.copies:
        return
    folder = network.folder(runs)
    made = read_record(folder / SURGERY, {"base_sha256": str, "init_sha256": str}, "restore an intact copy")
    for key, said in (("base_sha256", then), ("init_sha256", done["sha256"].get("init"))):
        finding.compare(folder / SURGERY, said, made[key], f"this is its {key}; retrain {network.name} with --restart")
    if network.base is None:
        finding.compared += 1
        if note := changed_source(network, done):
            finding.differing.append(f"{network.name}: {note}; retrain it with --restart")
        return
    base = read_done(network.base, runs)
    remedy = f"{network.base.name} has been retrained since; retrain {network.name} too, with --restart"
    path = network.base.folder(runs) / DONE
    finding.compare(path, then, base["sha256"]["final"] if base else None, remedy)


def _curve(finding: Finding, runs: Path, _: Path, done: dict[str, Any]) -> None:
    """Check that the curve agrees with the log, and the last test with the accuracy in the record."""
    folder = finding.network.folder(runs)
    rows = read_log(folder / LOG).rows()
    finding.compared += 1
    if not rows or rows[-1].test_accuracy != done["accuracy_final"]:
        last = rows[-1].test_accuracy if rows else None
        finding.differing.append(
            f"{folder / LOG}: its last test accuracy is {last}, but {DONE} has {done['accuracy_final']}; "
            "restore the log from a copy"
        )
    there, now = read_text(folder / CURVE).splitlines(), curve_csv(rows).splitlines()
    finding.compared += 1
    for number, (line, meant) in enumerate(itertools.zip_longest(there, now, fillvalue="nothing"), start=1):
        if line != meant:
            finding.differing.append(
                f"{folder / CURVE}: line {number} is {line!r}, but according to {LOG} it is {meant!r}; restore the "
                "file that was changed from a copy"
            )
            return


def _settings(finding: Finding, runs: Path, data: Path, _: dict[str, Any]) -> None:
    """Check that the recipe still gives the same net and solver; skip this if the image lists are not here."""
    network, folder = finding.network, finding.network.folder(runs)
    lists = [network.data_folder(data) / f"{part}.txt" for part in ("train", "val")]
    if not all(path.exists() for path in lists):
        return  # already counted as not here
    now = compose(network, data, folder)
    differing = differences(read_message(folder / NET, caffe_pb2.NetParameter()), now.net)
    differing += differences(read_message(folder / SOLVER, caffe_pb2.SolverParameter()), now.solver)
    finding.compared += 1
    if differing:
        finding.differing.append(
            f"{folder}: the recipe {network.recipe.name} has changed since: {in_short(differing)}; restore the "
            f"recipe's settings, or retrain {network.name} with --restart"
        )


# ---- data -------------------------------------------------------------------------------------------------------


def _data_path(network: Network, data: Path, name: str) -> Path:
    """Return the current path of the file with this name in `provenance.data_checksums`."""
    if name == "mean.binaryproto":
        return network.mean_folder(data) / name
    path = network.data_folder(data) / name
    if path.name == "data.mdb" and is_view(path.parent):
        return whole_of(path.parent).resolve() / path.name
    return path


def _of_another_kind(path: Path, recorded: Mapping[str, str]) -> bool:
    """Return whether a view was recorded and a copy of its records exists now, or the reverse.

    They hold the same records, but their checksums cannot be compared.
    """
    folder = path.parent
    if not folder.name.endswith("_lmdb") or not folder.exists():
        return False
    return (f"{folder.name}/{RECORDS}" in recorded) != is_view(folder)


def _databases(networks: list[Network], data: Path) -> list[Path]:
    """Return the existing databases that these networks read, each one once."""
    found: dict[Path, None] = {}
    for network in networks:
        for part in ("train", "val"):
            with contextlib.suppress(UserError):  # a damaged view is reported by `verify`
                path = _data_path(network, data, f"{part}_lmdb/data.mdb")
                if path.exists():
                    found[path] = None
    return list(found)


def _database_now(path: Path, then: str, databases: Mapping[Path, str]) -> str | None:
    """Return the value to compare with the recorded one: the checksum, or the size if that was recorded instead."""
    if then.endswith(" bytes") and path.exists():
        return f"{path.stat().st_size} bytes"
    return databases.get(path)


def _checksums(paths: list[Path]) -> dict[Path, str]:
    """Compute the sha256 of large files, and show the time left."""
    digests = {path: hashlib.sha256() for path in paths}

    def pieces() -> Iterator[None]:
        for path, digest in digests.items():
            with open(path, "rb") as file:
                while piece := file.read(_MIB):
                    digest.update(piece)
                    yield

    total = sum(-(-path.stat().st_size // _MIB) for path in paths)
    for _ in track(pieces(), total, "MiB of databases read"):
        pass
    sys.stderr.flush()
    return {path: digest.hexdigest() for path, digest in digests.items()}
