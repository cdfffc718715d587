"""The results tables that a figure shows: the user's, the paper's, or the user's with the paper's in the background.

    sources = [Source("yours", markers), Source("paper", others, behind=True)]

A source in the background is drawn with pale, hollow markers and dashed lines. Every CSV written with a figure names
the source of each row.
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
    """The networks of one results table.

    ``name`` is "yours" or "paper", as in the column `source` of the CSV files. ``behind`` puts the source in the
    background.
    """

    name: str
    markers: Sequence[Marker]
    behind: bool = False

    def only(self, keep: Callable[[Marker], bool]) -> Source:
        """Return the same source with only the networks for which ``keep`` is true."""
        return replace(self, markers=[marker for marker in self.markers if keep(marker)])

    def look(self, look: Look) -> Look:
        """Return the look of a kind of network as drawn for this source."""
        return ghost(look) if self.behind else look


def is_paper(sources: Sequence[Source]) -> bool:
    """Return whether only the paper's networks are shown; the figure is then drawn like the paper's."""
    return all(source.name == "paper" for source in sources)


def compared(sources: Sequence[Source]) -> bool:
    """Return whether there are two sources to distinguish."""
    return len(sources) > 1


def titled(title: str, sources: Sequence[Source]) -> str:
    """Return the title of a figure with the credit for the paper's data, if it shows them."""
    if compared(sources):
        return f"{title}: your networks and the paper's ({CREDIT})"
    return f"{title}. {CREDIT}" if is_paper(sources) else title


def credit_words(sources: Sequence[Source]) -> str:
    """Return the sentence of a caption that names the source of the numbers, with a leading space; or ""."""
    if compared(sources):
        return (
            " Your networks are drawn in full colour, the paper's networks with pale, hollow markers and dashed lines "
            f"({CREDIT}). If the two were trained on different images and classes, compare the dependence on n, not "
            "the absolute accuracies."
        )
    return f" {CREDIT}, from the authors' training logs." if is_paper(sources) else ""


def kinds_of(sources: Sequence[Source], kinds: Iterable[str]) -> list[str]:
    """Return the ``kinds`` of which at least one source has networks, in the given order."""
    present = {marker.kind for source in sources for marker in source.markers}
    return [kind for kind in kinds if kind in present]


def legend_of(
    looks: Sequence[tuple[Look, str, Sequence[Source]]], sources: Sequence[Source], line: bool = False
) -> tuple[list[Any], list[str]]:
    """Return the handles and labels of a legend: one entry for each kind, then one for each source.

    ``looks`` has the look, the label and the sources of each kind. A kind that only the paper has is drawn like the
    paper's networks. ``line`` adds the line of each kind to its handle.
    """
    handles, labels = [], []
    for look, label, having in looks:
        behind = bool(having) and all(source.behind for source in having)
        handles.append(handle(ghost(look) if behind else look, line))
        labels.append(f"{label} (paper only)" if behind else label)
    if compared(sources):
        grey = replace(LOOKS["BnB"], face="#777777", line="#777777")
        handles += [(Line2D([], [], linestyle="none"),), handle(grey, line), handle(ghost(grey), line)]
        labels += ["", "full colour: yours", "pale, hollow: the paper"]
    return handles, labels
