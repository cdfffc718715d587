"""A small noun file in the format of WordNet's data.noun, and the real one if it is installed."""

import os
from pathlib import Path

import pytest

from transfer_caffe.data_prep.noun_file import INSTALLED, Nouns, noun_file
from transfer_caffe.data_prep.wordnet import ARTIFACT

VERSION_LINE = "  14 WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved.  \n"

# key: (words, pointers: symbol and key); artifact is second and has its byte offset of WordNet 3.0
SYNSETS = {
    "entity": ("entity", []),
    "artifact": ("artifact artefact", [("@", "entity"), ("~", "boat")]),
    "animal": ("animal beast", [("@", "entity")]),
    "boat": ("boat water_craft", [("+", "animal"), ("@", "artifact"), ("~i", "liner")]),
    "liner": ("Big_Liner", [("@i", "boat")]),
    "decoy": ("decoy", [("@", "animal"), ("@", "boat")]),
    "cat": ("cat", [("@", "animal")]),
    "crab": ("hermit_crab", [("@", "animal"), ("%p", "boat"), ("~", "artifact"), ("#m", "artifact")]),
    "egg": ("egg", [("@", "hen")]),
    "hen": ("hen", [("@", "egg"), ("@", "animal")]),
    # more than nine words: their number is hexadecimal
    "many": (" ".join(f"word{i}" for i in range(12)), [("@", "boat")]),
}


def noun_text(synsets=SYNSETS, version=VERSION_LINE):
    """Return the text of a noun file, and the id of each key."""

    def line(key):
        words, pointers = synsets[key]
        words = words.split()
        fields = [f"{places[key]:08d} 05 n {len(words):02x}", *(f"{word} 0" for word in words), f"{len(pointers):03d}"]
        fields += [f"{symbol} {places[other]:08d} n 0000" for symbol, other in pointers]
        return " ".join(fields) + ' | what it is; "@ 00000000 n | 0000"  \n'

    places = dict.fromkeys(synsets, 0)  # the length of a line does not depend on the offsets
    sizes = {key: len(line(key)) for key in synsets}
    first = int(ARTIFACT[1:]) - sizes["entity"]
    header = "  1 This software and database is being provided to you  \n  2   \n" + version
    header += "  " + "x" * (first - len(header) - 3) + "\n"
    place = len(header)
    for key in synsets:
        places[key] = place
        place += sizes[key]
    return header + "".join(map(line, synsets)), {key: f"n{place:08d}" for key, place in places.items()}


TEXT, ID = noun_text()


def real_nouns() -> Nouns:
    """Return WordNet 3.0's nouns; skip the test if WORDNET is not set and the package is not installed."""
    if not os.environ.get("WORDNET") and not Path(INSTALLED, "data.noun").exists():
        pytest.skip("WordNet is not installed: install wordnet-base, or set WORDNET to the folder with data.noun")
    return Nouns(noun_file())
