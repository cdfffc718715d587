"""The names of the treatments: `base`, `baseA`, `A3B`, `B3B`, `A3B+`, `R3`, `R3B`, `P3`, `P3A+`.

    Treatment.parse("A3B+")     stages 1-3 copied from baseA, the others re-initialised, all of them trained on half B
    expand("A{1-7}B+")          the seven treatments A1B+ to A7B+

The grammar is the paper's (Yosinski et al. 2014, section 2): source, number of copied stages, target, and `+` if the
copied stages are fine-tuned. `R` stands for an untrained network with random weights as the source. Any other letter
stands for weights that exist, which the recipe names under `sources`. What a stage is, `stages` says: in the paper's
network each layer with weights is one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from transfer_caffe.utils.errors import UserError

LAYERS = 8
"""Number of stages of the paper's network, and of the architectures in prototxt_templates."""

_ALLOWED = (
    "allowed are base, baseA, baseB, and A3B, B3B, A3B+, R3, R3B with halves A or B and n from 1; P3, P3+, P3A with "
    "the letter of one of the recipe's sources"
)


@dataclass(frozen=True)
class Treatment:
    """Which layers are copied, from which network, and on which half the network is trained.

    Made by `Treatment.parse`; `str()` returns the name. ``source`` is "A", "B", "R" (random), another capital letter
    for weights that exist, or "" for a base; ``n`` is the number of copied stages, 0 for a base; ``target`` is "A", "B"
    or "" for all classes; ``finetuned`` says whether the copied stages are fine-tuned (else they are frozen).
    """

    source: str
    n: int
    target: str
    finetuned: bool

    def __post_init__(self) -> None:
        """Raise UserError for an invalid combination of fields."""
        problem = self._problem()
        if problem:
            raise UserError(f"treatment {self}: {problem}; {_ALLOWED}")

    def __str__(self) -> str:
        """Return the treatment's name."""
        plus = "+" if self.finetuned else ""
        return f"base{self.target}{plus}" if self.source == "" else f"{self.source}{self.n}{self.target}{plus}"

    @classmethod
    def parse(cls, name: str) -> Treatment:
        """Return the treatment of this name. Raise UserError, with the allowed names, if the name is invalid."""
        if not name.strip():
            raise UserError(f"the name of a treatment is empty; {_ALLOWED}")
        match = re.fullmatch(r"(?:base|([A-Z])(0|[1-9][0-9]*))([A-Z]?)(\+?)", name)
        if match:
            return cls(match[1] or "", int(match[2] or 0), match[3], match[4] == "+")
        hint = ""
        if re.fullmatch(r"base[ab]?|[abr][1-7][ab]?\+?", name.strip().lower()):
            hint = "; write halves and R in upper case, `base` in lower case, and no spaces"
        raise UserError(f"treatment {name!r}: not the name of a treatment{hint}; {_ALLOWED}")

    def _problem(self) -> str:
        source, n, target = self.source, self.n, self.target
        if source and not (len(source) == 1 and "A" <= source <= "Z"):
            return f"there is no source {source}"
        if target not in ("", "A", "B"):
            return f"there is no half {target}"
        if source == "":
            if self.finetuned:
                return "a base has no copied layers, so there is nothing to fine-tune (no `+`)"
            return "" if n == 0 else "a base has no copied layers"
        if n == 0:
            return f"n = 0 copies no layers: that network is base{target}"
        if n < 0:
            return f"n is {n}, and counts from 1"
        if source == "R":
            return "random layers are frozen; if they learned, this would be a base network (no `+`)" * self.finetuned
        return f"the target is missing: {source}{n}A or {source}{n}B" * (target == "" and source in ("A", "B"))

    def require_stages(self, stages: int) -> None:
        """Raise UserError unless a network of that many stages can have this treatment."""
        if self.n < stages:
            return
        what = {"R": "an untrained network", "A": "baseA itself", "B": "baseB itself"}
        if self.n == stages:
            why = f"n = {stages} copies all stages and re-initialises none: that network is "
            why += what.get(self.source, f"the source {self.source} itself")
        else:
            why = f"n is {self.n}, but the network has {stages} stages and n is 1 to {stages - 1}"
        raise UserError(f"treatment {self}: {why}")

    @property
    def is_base(self) -> bool:
        """Whether the network is trained from scratch, without copied layers."""
        return self.source == ""

    @property
    def is_random(self) -> bool:
        """Whether the first n layers keep their random initial weights."""
        return self.source == "R"

    @property
    def is_external(self) -> bool:
        """Whether the first n stages are copied from weights that exist, one of the recipe's sources."""
        return self.source not in ("", "A", "B", "R")

    @property
    def is_selffer(self) -> bool:
        """Whether source and target are the same half (the paper's selffer network, a control)."""
        return self.source in ("A", "B") and self.source == self.target

    @property
    def is_transfer(self) -> bool:
        """Whether source and target are different halves."""
        return self.source in ("A", "B") and self.source != self.target

    @property
    def base(self) -> Treatment | None:
        """The treatment that stages are copied from: baseA for A3B; None for bases, random and external sources."""
        return Treatment("", 0, self.source, False) if self.source in ("A", "B") else None

    @property
    def copies(self) -> bool:
        """Whether stages are copied, from a base of the experiment or from a source of the recipe."""
        return not (self.is_base or self.is_random)

    @property
    def frozen(self) -> int:
        """The number of frozen stages, counted from the image upwards."""
        return 0 if self.finetuned else self.n


def expand(pattern: str) -> list[Treatment]:
    """Return the treatments of a pattern: `A{1-7}B+` and `A{1,3,5}B` name several, `baseA` names one.

    A list in braces holds numbers and ranges, in the order of the result. Raise UserError for anything else.
    """
    match = re.fullmatch(r"([^{}]*)\{([^{}]*)\}([^{}]*)", pattern)
    if not match:
        if "{" in pattern or "}" in pattern:
            raise UserError(
                f"treatments {pattern!r}: only one list in braces is allowed, for example A{{1-7}}B or A{{1,3,5}}B"
            )
        return [Treatment.parse(pattern)]
    numbers: list[int] = []
    for item in match[2].split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,3})\s*(?:-\s*([0-9]{1,3})\s*)?", item)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if last < first:
            raise UserError(
                f"treatments {pattern!r}: {item.strip()!r} is not a number or an ascending range, such as 3 or 1-7"
            )
        numbers.extend(range(first, last + 1))
    return [Treatment.parse(f"{match[1]}{n}{match[3]}") for n in numbers]


def describe(treatment: Treatment, counted: str = "layer") -> str:
    """Describe a treatment in words. ``counted``: what n counts, "layer" or "stage" (the same in the paper's net)."""
    place = f"half {treatment.target}" if treatment.target else "all classes"
    if treatment.is_base:
        return f"trained from scratch on {place}"
    layers = f"{counted} 1" if treatment.n == 1 else f"{counted}s 1-{treatment.n}"
    if treatment.is_random:
        return f"{layers} random, untrained and frozen; the others trained on {place}"
    source = treatment.base or f"the source {treatment.source}"
    if treatment.finetuned:
        return f"{layers} copied from {source}, the others re-initialised; all {counted}s trained on {place}"
    return f"{layers} copied from {source} and frozen; the others re-initialised and trained on {place}"
