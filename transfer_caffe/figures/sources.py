"""Whose networks a figure shows: a table of one's own, the paper's, or one's own with the paper's behind.

    sources = [Source("yours", markers), Source("paper", others, behind=True)]

What is behind is drawn pale and hollow, on dashed lines. Every CSV beside a figure names the source of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.lines import Line2D

from transfer_caffe.figures.style import LOOKS, Look, ghost, handle
from transfer_caffe.results.markers import Marker

CREDIT = "Data: Yosinski et al. 2014"


@dataclass(frozen=True)
class Source:
    """The networks of one table; ``name`` is "yours" or "paper", as in the column `source` of the CSV files."""

    name: str
    markers: Sequence[Marker]
    behind: bool = False

    def only(self, keep: Callable[[Marker], bool]) -> Source:
        """The same source with those of its networks for which ``keep`` is true."""
        return replace(self, markers=[marker for marker in self.markers if keep(marker)])

    def look(self, look: Look) -> Look:
        """How this source draws a kind."""
        return ghost(look) if self.behind else look


def is_paper(sources: Sequence[Source]) -> bool:
    """Whether the paper's networks are all there is: then a figure looks as the paper's."""
    return all(source.name == "paper" for source in sources)


def compared(sources: Sequence[Source]) -> bool:
    """Whether there are two sources to tell apart."""
    return len(sources) > 1


def titled(title: str, sources: Sequence[Source]) -> str:
    """A figure's title with the credit it owes."""
    if compared(sources):
        return f"{title}: yours and the paper's ({CREDIT})"
    return f"{title}. {CREDIT}" if is_paper(sources) else title


def credit_words(sources: Sequence[Source]) -> str:
    """The sentence of a caption on whose numbers these are; with a space before it, or empty."""
    if compared(sources):
        return (
            f" Yours in full colour; the paper's pale, hollow and on dashed lines ({CREDIT}). Where the two were "
            "trained on other images and classes, compare what happens along n, not the accuracies themselves."
        )
    return f" {CREDIT}, from the authors' logs." if is_paper(sources) else ""


def kinds_of(sources: Sequence[Source], kinds: Iterable[str]) -> list[str]:
    """Those of ``kinds`` that some source has, in their order."""
    present = {marker.kind for source in sources for marker in source.markers}
    return [kind for kind in kinds if kind in present]


def legend_of(
    looks: Sequence[tuple[Look, str, Sequence[Source]]], sources: Sequence[Source], line: bool = False
) -> tuple[list[Any], list[str]]:
    """Handles and labels: a kind an entry (``looks``: its look, label, and the sources that have it), then the sources.

    A kind that only the paper has is shown as the paper's.
    """
    handles, labels = [], []
    for look, label, having in looks:
        behind = bool(having) and all(source.behind for source in having)
        handles.append(handle(ghost(look) if behind else look, line))
        labels.append(f"{label} (paper only)" if behind else label)
    if compared(sources):
        grey = replace(LOOKS["BnB"], face="#777777", line="#777777")
        handles += [(Line2D([], [], linestyle="none"),), handle(grey, line), handle(ghost(grey), line)]
        labels += ["", "full: yours", "pale, hollow: the paper"]
    return handles, labels
