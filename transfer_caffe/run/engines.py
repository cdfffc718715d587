"""Training engines: programs with the command line of `caffe`, that is real Caffe or the embedded engine.

Engine.find("embedded").argv
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.processes import environment


@dataclass(frozen=True)
class Engine:
    """A program with Caffe's command line: ``name`` identifies it in records, ``argv`` starts it."""

    name: str
    argv: tuple[str, ...]

    @property
    def reads_views(self) -> bool:
        """Whether the source of a Data layer may be a view (`transfer_caffe.formats.views`)."""
        return self.name == "embedded"

    @classmethod
    def find(cls, given: str) -> Engine:
        """Return the engine for an --engine option: `embedded`, `caffe` (`real_caffe`), or a program with arguments.

        Raise UserError if there is no such program.
        """
        if given == "embedded":
            return cls("embedded", (sys.executable, "-m", "transfer_caffe.engine"))
        if given == "caffe":
            found = real_caffe.program()
            if found is None:
                raise UserError("--engine caffe: no Caffe was found; run `make caffe`, or set CAFFE=/path/to/caffe")
            return cls("caffe", (str(found),))
        try:
            words = [given] if shutil.which(given) else shlex.split(given)  # a path may hold spaces
        except ValueError as error:
            raise UserError(f"--engine {given}: {error}") from None
        program = shutil.which(words[0]) if words else None
        if program is None:
            raise UserError(f"--engine {given}: there is no such program; use `embedded`, or give the path of a caffe")
        # engines run in the network's folder, where a relative path would point to a different file
        return cls(" ".join([Path(words[0]).name, *words[1:]]), (os.path.abspath(program), *words[1:]))

    def computing_in(self, precision: str, deterministic: bool = True) -> list[str]:
        """Return the flags for a recipe's precision and determinism. Raise UserError if the engine lacks them."""
        if precision == "fp32" and deterministic:
            return []
        if self.name != "embedded":
            what, key = ("fp32", "precision") if precision != "fp32" else ("deterministic: true", "deterministic")
            given = precision if precision != "fp32" else "false"
            raise UserError(
                f"the engine {self.name} only supports {what}, not {given}; use --engine embedded, or a recipe "
                f"without `{key}`"
            )
        return ["--precision", precision] * (precision != "fp32") + ["--deterministic", "off"] * (not deterministic)

    def environment(self, threads: int | None) -> dict[str, str]:
        """Return the engine's environment: log on standard error, ``threads`` CPU threads (None: its default)."""
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        counts = {} if threads is None else dict.fromkeys(names, str(threads))
        return {**environment(), **counts, "GLOG_logtostderr": "1"}
