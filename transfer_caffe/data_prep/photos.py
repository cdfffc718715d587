"""The demo's dataset `photos`: 100 classes, each a window of a photograph that comes with an installed package.

    python -m data_prep.photos --out data/photos --seed 0

An example of a class is its window with a random shift, scale, rotation, flip, colour, contrast and noise (following
Dosovitskiy et al. 2014, "Discriminative unsupervised feature learning with convolutional neural networks"). The folder
contains images/CLASS/NNNN.png, the Caffe image lists train.txt and val.txt (a label is the class's line in classes.csv,
counted from 0), and made.json, which records how the dataset was made. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from transfer_caffe.data_prep.classes import Class, write_classes
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import read_text, refuse_existing, sha256, whole_folder

# The photographs by the distribution that installs them, its package, and their folder in the package.
PHOTOGRAPHS = {
    ("scikit-image", "skimage", "data"): [
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
        "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg",
        "rocket.jpg", "text.png",
    ],
    ("scikit-learn", "sklearn", "datasets/images"): ["china.jpg", "flower.jpg"],
    ("matplotlib", "matplotlib", "mpl-data/sample_data"): ["grace_hopper.jpg"],
}  # fmt: skip

# The classes in the order of their labels (sorted by name, so that the groups are mixed as in ImageNet's order by id):
# name, group, photograph, centre x and y and side of the square window in the photograph's pixels, words.
WINDOWS = """
blood_cell         natural  cell               425  370 170  cell under the microscope
bricks             man-made brick              200  200 110  brick pavement
bricks_near        man-made brick              330  420 140  brick pavement, nearer
bush_shade         natural  china              110  378  90  bush in the shade
bush_sunlit        natural  china              440  330 110  bush in the sun
cap_badge          man-made grace_hopper       270   55 100  badge of an officer's cap
cat_cheek          natural  chelsea            108  195  90  cheek of a cat
cat_ear            natural  chelsea            372   36  70  ear of a cat
cat_forehead       natural  chelsea            245   45  88  forehead of a cat
cat_left_eye       natural  chelsea            172  118  78  eye of a cat, on the left
cat_muzzle         natural  chelsea            225  262  76  muzzle of a cat
cat_nose           natural  chelsea            266  240  84  nose of a cat
cat_right_eye      natural  chelsea            318  138  74  eye of a cat, on the right
cat_temple         natural  chelsea             70   90  90  temple of a cat
clover             natural  grass              310  110 110  clover in a lawn
coat_buttons       man-made camera             150  270 110  sleeve buttons of a coat
code_line          man-made page               190  160  58  printed line of code
coin_horseman      man-made coins              172  262  64  coin with a horseman
coin_portrait      man-made coins              270  115  60  coin with a portrait
coin_ring          man-made coins              155   52  60  coin with a ring
coin_standing      man-made coins              335   42  70  coin with a standing figure
coin_worn          man-made coins              346  186  74  worn coin
collar_ring        man-made astronaut          215  235 120  collar ring of a space suit
conifer            natural  china              590  215 100  top of a tree
crate              man-made motorcycle_left    650  170 110  crates on a shelf
crater             natural  moon               118   85 100  crater of the moon
crater_ray         natural  moon               345  112 110  crater with a bright ray
crema              man-made coffee             290  150  80  crema of an espresso
cup_handle         man-made coffee             230  270 100  handle of a cup
cup_rim            man-made coffee             225  110 110  rim of a cup
dahlia_bud         natural  flower             375  380  90  opening dahlia
dahlia_heart       natural  flower             305  215  90  heart of a dahlia
dahlia_leaf        natural  flower              70  220 130  leaves behind a dahlia
dahlia_petals      natural  flower             215  270 100  outer petals of a dahlia
dahlia_top         natural  flower             320  120  90  upper petals of a dahlia
engine             man-made motorcycle_left    385  320 100  engine of a motorcycle
face_profile       natural  camera             235  110 100  face in profile
face_smiling       natural  astronaut          215  125 110  smiling face
flag_stars         man-made grace_hopper        58   90 110  stars of a flag
flag_stripes       man-made astronaut           47  130  90  stripes of a flag
floodlight         man-made rocket             190  380  90  floodlights at dusk
foliage            natural  china               42  225  80  foliage
fovea              natural  retina             700  700 300  fovea of a retina
front_wheel        man-made motorcycle_left    615  385 110  front wheel of a motorcycle
fuel_tank          man-made motorcycle_left    420  205 100  fuel tank of a motorcycle
galaxy_edge        natural  hubble_deep_field  520  435 110  galaxy seen from the edge
galaxy_field       natural  hubble_deep_field  320  310 130  field of galaxies
galaxy_group       natural  hubble_deep_field  445  150 130  group of galaxies
galaxy_pair        natural  hubble_deep_field  430  715 120  pair of galaxies
galaxy_red         natural  hubble_deep_field  728  475 110  red galaxy
galaxy_white       natural  hubble_deep_field  125  405 110  white spiral galaxy
gland_fold         natural  ihc                165   60 110  fold of glandular tissue
gland_lumen        natural  ihc                 52  400 100  lumen beside glandular tissue
gland_rosette      natural  ihc                318  400 110  rosette of glandular tissue
gland_slit         natural  ihc                345  130 110  slit in glandular tissue
gland_weave        natural  ihc                 90  140 110  dense glandular tissue
grass_blades       natural  grass              120  290 110  blades of grass
grass_leaves       natural  grass              300  350 110  leaves in a lawn
gravel             natural  gravel             180  130 110  gravel
gravel_fine        natural  gravel             330  320 150  finer gravel
handwriting        man-made text               310   75  80  handwriting
handwriting_sum    man-made text               130  115  90  handwritten sum
headlight          man-made motorcycle_left    540  155  90  headlight of a motorcycle
headline           man-made page                90   31  60  printed headline
helmet_rim         man-made astronaut          456  385 104  rim of a space helmet
helmet_visor       man-made astronaut          350  440 110  visor of a space helmet
lakeshore          natural  china              460  235  90  shore of a lake
launch_pad         man-made rocket             320  378  90  launch pad
launch_tower       man-made rocket              60  180 110  lattice tower
lunar_craters      natural  moon               130  450 100  small craters of the moon
lunar_plain        natural  moon                60  300 120  plain of the moon
lunar_sea          natural  moon               245  430 130  dark spots of the moon
medal_ribbons      man-made grace_hopper       390  505 110  ribbons of medals
mission_patch      man-made astronaut          170  382  90  round patch on a space suit
name_badge         man-made astronaut          300  355  64  name badge on a space suit
optic_disc         natural  retina             250  650 260  optic disc of a retina
pagoda_balcony     man-made china              210  225 100  balcony of a pagoda
pagoda_eaves       man-made china              120  265  90  eaves of a pagoda
pagoda_roof        man-made china              210  100 100  roof of a pagoda
print              man-made page               150   85  70  printed lines
rear_wheel         man-made motorcycle_left    190  325 120  rear wheel of a motorcycle
retina_arch        natural  retina             560  330 300  arch of vessels in a retina
retina_capillaries natural  retina            1050  900 300  capillaries of a retina
retina_fork        natural  retina             330 1080 300  fork of vessels in a retina
retina_rim         natural  retina            1260  560 280  rim of a retina
rocket_stage       man-made rocket             325  230 110  stage of a rocket
saddle             man-made motorcycle_left    215  195 110  saddle of a motorcycle
saucer             man-made coffee             120  220 100  rim of a saucer
shuttle_nose       man-made astronaut          390  110  90  nose of a space shuttle's booster
shuttle_tail       man-made astronaut          395  225 110  wings of a space shuttle
skyscraper         man-made camera             435  150  90  skyscraper
spoon              man-made coffee             370  280  90  bowl of a spoon
stroma             natural  ihc                462  140  90  stroma between glands
stroma_junction    natural  ihc                260  250 110  junction of stroma and glands
table_top          man-made coffee             500   90 110  wooden table top
tool_shelf         man-made motorcycle_left    480   60 110  shelf of tools
tripod_foot        man-made camera             375  450 110  foot of a tripod
tripod_head        man-made camera             300  325  90  head of a tripod
video_camera       man-made camera             295  150  80  film camera
zipper             man-made astronaut          245  400  80  zipper of a space suit
"""

# Sides in pixels, in the copy of the photograph from which examples are sampled: of the window, and of the window with
# its surroundings (large enough for any shift, scale and rotation below).
_WINDOW, _AROUND = 96, 288

# Standard deviation, in gray levels, of the noise in examples of pure noise: nothing of the picture remains.
_DROWNING = 3000


@dataclass(frozen=True)
class Variation:
    """The variation of the examples of a window. Ranges are uniform and symmetric, deviations are Gaussian."""

    shift: float = 0.2  # range of the shift, as a fraction of the window's side
    scale: float = 1.35  # the examples show 1/scale to scale times the window's side (uniform in the logarithm)
    rotation: float = 20.0  # range of the rotation, in degrees
    hue: float = 0.12  # range of the rotation of the hues, as a fraction of 180 degrees
    saturation: float = 0.5  # the saturation is between 0 (gray) and 1 + this
    gain: float = 0.15  # standard deviation of the logarithm of the gain of each colour channel
    contrast: float = 0.25  # standard deviation of the logarithm of the contrast around mid-gray
    brightness: float = 20.0  # standard deviation of the brightness, in gray levels
    noise: float = 10.0  # maximum standard deviation of a pixel's noise, in gray levels
    drowned: float = 0.25  # fraction of the examples that are pure noise and cannot be classified


VARIATION = Variation()

SIZE, TRAIN, VAL = 32, 200, 100
RECORD = "made.json"


@dataclass(frozen=True)
class Window:
    """A class: a square window of a photograph, ``side`` pixels wide around (x, y)."""

    name: str
    group: str
    photograph: str
    x: int
    y: int
    side: int
    words: str


def windows() -> list[Window]:
    """Return the 100 classes in the order of their labels."""
    rows = (line.split(maxsplit=6) for line in WINDOWS.strip().splitlines())
    return [
        Window(name, group, photo, int(x), int(y), int(side), words) for name, group, photo, x, y, side, words in rows
    ]


def photograph_paths() -> dict[str, Path]:
    """Return the path of each photograph by its name without extension. Raise UserError if one is not installed."""
    paths: dict[str, Path] = {}
    for (distribution, package, folder), files in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        remedy = f"install {distribution}: pip install 'transfer_caffe[demo]'"
        if spec is None or spec.origin is None:
            raise UserError(f"the package {distribution} with {files[0]} and other photographs is missing; {remedy}")
        for file in files:
            path = Path(spec.origin).parent / folder / file
            if not path.is_file():
                raise UserError(f"{path}: this photograph is missing from the installed {distribution}; re{remedy}")
            paths[path.stem] = path
    return paths


def read_photograph(path: Path) -> np.ndarray:
    """Read a photograph as height x width x 3 (BGR), uint8; gray ones get three equal channels."""
    data = _without_profile(path.read_bytes())
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise UserError(f"{path}: this photograph cannot be decoded; reinstall the package that it belongs to")
    return image


def _without_profile(data: bytes) -> bytes:
    """Remove the colour profile of a PNG file: OpenCV does not use it, and libpng warns about the one in page.png."""
    at = data.find(b"iCCP", 0, 4096) if data.startswith(b"\x89PNG") else -1
    return data if at < 0 else data[: at - 4] + data[at + 8 + int.from_bytes(data[at - 4 : at], "big") :]


def surroundings(photo: np.ndarray, window: Window) -> np.ndarray:
    """Return a window with its surroundings, _AROUND x _AROUND pixels; the window itself has _WINDOW x _WINDOW pixels.

    The photograph is mirrored at its border.
    """
    half = round(window.side * _AROUND / _WINDOW / 2)
    padded = cv2.copyMakeBorder(photo, half, half, half, half, cv2.BORDER_REFLECT_101)
    part = padded[window.y : window.y + 2 * half, window.x : window.x + 2 * half]
    shrinks = 2 * half > _AROUND
    return cv2.resize(part, (_AROUND, _AROUND), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def examples(part: np.ndarray, size: int, draw: np.random.Generator, vary: Variation) -> Iterator[np.ndarray]:
    """Yield random examples without end, size x size x 3 (BGR, uint8), of a window given with its `surroundings`."""
    while True:
        yield _example(part, size, draw, vary)


def _example(part: np.ndarray, size: int, draw: np.random.Generator, vary: Variation) -> np.ndarray:
    """Return one random example."""
    # render at twice the size, then average 2 x 2 pixels, to avoid aliasing of fine detail
    double = 2 * size
    shift = draw.uniform(-vary.shift, vary.shift, 2) * _WINDOW
    step = _WINDOW / double * vary.scale ** draw.uniform(-1, 1)
    angle = np.deg2rad(draw.uniform(-vary.rotation, vary.rotation))
    flip = -1 if draw.integers(2) else 1
    across, down = step * np.cos(angle), step * np.sin(angle)
    turn = np.array([[across * flip, -down], [down * flip, across]])
    centre = (_AROUND - 1) / 2 + shift - turn @ np.full(2, (double - 1) / 2)
    image = cv2.warpAffine(
        part,
        np.column_stack([turn, centre]),
        (double, double),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    image = (image - 128) @ _colour(draw, vary).T + 128 + np.float32(draw.normal() * vary.brightness)
    # Examples of pure noise limit the accuracy, to 0.755 for 50 classes, and networks come close to that limit. Further
    # training alone therefore improves them little, which is necessary for measuring the effects of transfer.
    deviation = _DROWNING if draw.uniform() < vary.drowned else draw.uniform(0, vary.noise)
    image += draw.standard_normal(image.shape, np.float32) * np.float32(deviation)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _colour(draw: np.random.Generator, vary: Variation) -> np.ndarray:
    """Return a random 3 x 3 matrix for colours relative to mid-gray: hue, saturation, gains and contrast."""
    gray = np.full((3, 3), 1 / 3)
    # a rotation around the gray axis: hues change, gray stays the same
    angle = np.deg2rad(draw.uniform(-vary.hue, vary.hue) * 180)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    hue = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * gray
    saturation = gray + draw.uniform(0, 1 + vary.saturation) * (np.eye(3) - gray)
    gains = np.diag(np.exp(draw.normal(0, vary.gain, 3)))
    contrast = np.exp(draw.normal(0, vary.contrast))
    return (contrast * gains @ saturation @ hue).astype(np.float32)


def make(
    out: str | os.PathLike[str],
    seed: int = 0,
    size: int = SIZE,
    train: int = TRAIN,
    val: int = VAL,
    vary: Variation = VARIATION,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the dataset atomically as the folder ``out``. Raise UserError if it exists.

    ``train`` and ``val``: numbers of examples per class. ``size``: their side in pixels. Example k of a class does not
    depend on these numbers. The pixels of all examples depend only on the arguments; the bytes of the PNG files also
    depend on the version of OpenCV.
    """
    out = Path(out)
    if train < 1 or val < 1 or size < 8 or seed < 0:
        raise UserError(
            f"size {size}, train {train}, val {val}, seed {seed}: the size must be at least 8, "
            "each class needs a training and a validation example, and the seed cannot be negative"
        )
    refuse_existing(out, "choose another --out, or remove it to make it again")
    classes, paths = windows(), photograph_paths()
    photographs = {name: read_photograph(path) for name, path in paths.items()}
    lists: dict[str, list[str]] = {"train": [], "val": []}
    pixels = hashlib.sha256()
    with whole_folder(out) as folder:
        for label, window in enumerate(classes):
            part = surroundings(photographs[window.photograph], window)
            (folder / "images" / window.name).mkdir(parents=True)
            number = 0
            for stream, (name, count) in enumerate((("train", train), ("val", val))):
                draw = np.random.default_rng([seed, stream, label])
                for image in itertools.islice(examples(part, size, draw, vary), count):
                    file = f"images/{window.name}/{number:04d}.png"
                    (folder / file).write_bytes(cv2.imencode(".png", image)[1].tobytes())
                    lists[name].append(f"{file} {label}\n")
                    pixels.update(image.tobytes())
                    number += 1
            if (label + 1) % 25 == 0:
                say(f"{out}: {label + 1} of {len(classes)} classes")
        for name, lines in lists.items():
            (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
        write_classes(folder / "classes.csv", [Class(i, w.name, w.words, w.group) for i, w in enumerate(classes)])
        record = _settings(seed, size, train, val, vary) | {
            "pixels_sha256": pixels.hexdigest(),
            "versions": _versions(),
            "photographs": {path.name: sha256(path) for path in paths.values()},
            "windows": [asdict(window) for window in classes],
        }
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def is_made(out: str | os.PathLike[str], **settings: Any) -> bool:
    """Return whether ``out`` is this dataset with these settings (of `make`). Raise UserError if it is another."""
    record = Path(out) / RECORD
    if not record.exists():
        if os.path.lexists(out):
            raise UserError(
                f"{out}: this exists, but is not a dataset of this program (no {RECORD}); choose another folder"
            )
        return False
    try:
        made = json.loads(read_text(record))
    except json.JSONDecodeError:
        raise UserError(f"{record}: this file is damaged; remove {out} to make it again") from None
    for key, value in _settings(**settings).items():
        if made.get(key) != value:
            raise UserError(f"{out} was made with {key} {made.get(key)}, not {value}; remove it to make it again")
    return True


def _settings(
    seed: int = 0, size: int = SIZE, train: int = TRAIN, val: int = VAL, vary: Variation = VARIATION
) -> dict[str, Any]:
    """Return the settings as they are recorded in made.json."""
    return {"dataset": "photos", "seed": seed, "size": size, "train": train, "val": val, "variation": asdict(vary)}


def _versions() -> dict[str, str]:
    """Return the installed versions of the packages that the dataset depends on."""
    names = ["numpy", "opencv-python-headless", *(distribution for distribution, _, _ in PHOTOGRAPHS)]
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # for example another build of OpenCV
            versions[name] = importlib.metadata.version(name)
    return versions


@command
def main(argv: list[str] | None = None) -> int | None:
    """Write the dataset from the command line."""
    parser = ArgumentParser(
        prog="python -m data_prep.photos",
        description="Create the demo's dataset: 100 classes, 50 natural and 50 man-made, from photographs that come "
        "with scikit-image, scikit-learn and matplotlib.",
        epilog="example: python -m data_prep.photos --out data/photos --seed 0",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the new folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random examples (default 0)")
    parser.add_argument("--size", type=int, default=SIZE, help=f"side of an image in pixels (default {SIZE})")
    parser.add_argument("--train", type=int, default=TRAIN, help=f"training examples per class (default {TRAIN})")
    parser.add_argument("--val", type=int, default=VAL, help=f"validation examples per class (default {VAL})")
    parser.add_argument(
        "--if-missing", action="store_true", help="do nothing if the dataset exists with the same settings"
    )
    args = parser.parse_args(argv)
    settings = {"seed": args.seed, "size": args.size, "train": args.train, "val": args.val}
    if args.if_missing and is_made(args.out, **settings):
        return 0
    make(args.out, **settings, say=lambda line: print(line, flush=True))
    print(f"{args.out}: {len(windows()) * args.train} training and {len(windows()) * args.val} validation images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
