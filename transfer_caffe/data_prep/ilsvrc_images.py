"""ImageNet's images: unpacking of the archives, search in folders, and the oddities of each image.

oddities: Oddities = {}
unpack_val(Path("ILSVRC2012_img_val.tar"), Path("data/ilsvrc2012/val"), oddities)
find_val(Path("data/ilsvrc2012/val")).found       # [("ILSVRC2012_val_00000001.JPEG", ""), ...]
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from transfer_caffe.data_prep import archives
from transfer_caffe.data_prep.devkit import VAL_NAME
from transfer_caffe.data_prep.image_headers import Oddity, look, look_at
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.progress import track

_WNID = re.compile(r"n[0-9]{8}")
_CLASS_TAR = re.compile(r"n[0-9]{8}\.tar")
_LOOKERS = 8  # threads that read headers: disks and networks can serve several requests at once

_ROOM = 1.02  # files occupy whole blocks on a disk: ImageNet needs 1 % more space than its archives

Oddities = dict[str, list[Oddity]]
"""The oddities of each image that was checked, by its path relative to the output folder; usually an empty list."""


@dataclass
class Images:
    """The images of a folder in the order of its list: (relative path, class, or "" if not part of the path)."""

    folder: Path
    found: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def find_train(folder: Path) -> Images:
    """Find the training images FOLDER/nXXXXXXXX/nXXXXXXXX_*.JPEG, sorted by class and name.

    Raise UserError for a class without images.
    """
    images = Images(folder)
    for wnid, is_folder in _entries(folder):
        if not (is_folder and _WNID.fullmatch(wnid)):
            images.others.append(wnid)
            continue
        pattern, before = _train_name(wnid), len(images.found)
        for name, is_folder in _entries(folder / wnid):
            if not is_folder and pattern.fullmatch(name):
                images.found.append((f"{wnid}/{name}", wnid))
            else:
                images.others.append(f"{wnid}/{name}")
        if len(images.found) == before:
            raise UserError(f"{folder / wnid}: this class has no images ({wnid}_*.JPEG); remove it, or unpack it again")
    if not images.found:
        tars = any(_CLASS_TAR.fullmatch(name) for name in images.others)
        hint = "it contains class archives; give the archive that they came from" if tars else "is it the right folder?"
        raise UserError(f"{folder}: no class folders nXXXXXXXX with training images; {hint}")
    return images


def find_val(folder: Path) -> Images:
    """Find the validation images, sorted by name, in a flat folder or in class folders."""
    images = Images(folder)
    places = [("", *entry) for entry in _entries(folder)]
    for _, name, is_folder in list(places):
        if is_folder and _WNID.fullmatch(name):
            places.remove(("", name, is_folder))
            places.extend((name, *entry) for entry in _entries(folder / name))
    for wnid, name, is_folder in places:
        path = f"{wnid}/{name}" if wnid else name
        if not is_folder and VAL_NAME.fullmatch(name):
            images.found.append((path, wnid))
        else:
            images.others.append(path)
    if not images.found:
        raise UserError(f"{folder}: no validation images ILSVRC2012_val_XXXXXXXX.JPEG; is it the right folder?")
    images.found.sort(key=lambda image: image[0].rpartition("/")[2])
    for (before, _), (path, _) in itertools.pairwise(images.found):
        if before.rpartition("/")[2] == path.rpartition("/")[2]:
            raise UserError(f"{folder}: {before} and {path} have the same name; remove the wrong one")
    return images


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Return the sorted names in a folder, each with whether it is a folder; without hidden files."""
    with os.scandir(folder) as entries:
        return sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))


def refuse_link(folder: Path, archive: Path) -> None:
    """Raise UserError if unpacking would write into the user's own folder."""
    if folder.is_symlink():
        raise UserError(f"{folder} is a link to {os.readlink(folder)}; remove it to unpack {archive} there")


def link(folder: Path, images: Path) -> None:
    """Make ``folder`` a link to the user's ``images``, unless it is that folder already."""
    if folder.exists() and folder.samefile(images):
        return
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already, and is not {images}; remove it to use those images")
    folder.symlink_to(images.absolute(), target_is_directory=True)


def _in_mib(pieces: Iterable[int], total: int, what: str) -> None:
    """Consume ``pieces``, which are sizes in bytes with the sum ``total``, and show the progress in MiB."""

    def mebibytes() -> Iterator[None]:
        done = 0
        for piece in pieces:
            done += piece
            while done >= 1 << 20:
                done -= 1 << 20
                yield

    for _ in track(mebibytes(), max(total >> 20, 1), f"MiB of {what}"):
        pass


def unpack_val(archive: Path, folder: Path, oddities: Oddities) -> None:
    """Unpack the validation images into ``folder`` atomically; do nothing if they are there."""
    if folder.is_dir() and os.listdir(folder):
        return
    remove_partial(folder.parent, r"\.val\.[0-9a-f]{8}\.tmp")
    with open(archive, "rb") as file:

        def pieces() -> Iterator[int]:
            expected = "ILSVRC2012_val_00000001.JPEG and so on"
            for name, data in archives.unpack(str(archive), file, VAL_NAME, expected, folder):
                oddities[f"val/{name}"] = look_at(data)
                yield len(data)

        _in_mib(pieces(), archive.stat().st_size, "validation images")


def class_tars(archive: Path) -> dict[str, tarfile.TarInfo]:
    """Return the tar of each class in the training archive by WordNet id, in order. Errors as in `archives.members`."""
    with open(archive, "rb") as file:
        found = archives.members(str(archive), file, _CLASS_TAR, "class archives nXXXXXXXX.tar")
        return {name.removesuffix(".tar"): member for name, member in found}


def unpack_train(archive: Path, folder: Path, oddities: Oddities) -> None:
    """Unpack the classes that are missing in ``folder``, each one atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder, r"\.n[0-9]{8}\.[0-9a-f]{8}\.tmp")
    tars = class_tars(archive)
    if strange := [name for name, _ in _entries(folder) if _WNID.fullmatch(name) and name not in tars]:
        raise UserError(f"{folder / strange[0]}: there is no such class in {archive}; remove it, or use another --out")
    missing = {wnid: member for wnid, member in tars.items() if not (folder / wnid).exists()}

    def pieces() -> Iterator[int]:
        with open(archive, "rb") as file, tarfile.open(fileobj=file, mode="r:") as outer:
            for wnid, member in missing.items():
                where, expected = f"{archive}: {wnid}.tar", f"images {wnid}_*.JPEG"
                tar = tarfile.ExFileObject(outer, member)
                for name, data in archives.unpack(where, tar, _train_name(wnid), expected, folder / wnid):
                    oddities[f"train/{wnid}/{name}"] = look_at(data)
                    yield len(data)

    if missing:
        _in_mib(pieces(), sum(member.size for member in missing.values()), "training images")


def _train_name(wnid: str) -> re.Pattern[str]:
    """Return the pattern of the names of a class's training images."""
    return re.compile(wnid + r"_[0-9]+\.JPEG")


def remove_partial(folder: Path, pattern: str) -> None:
    """Remove the temporary folders that a killed run left. Call this only while holding the lock."""
    for name in os.listdir(folder):
        if re.fullmatch(pattern, name):
            shutil.rmtree(folder / name)


def require_space(out: Path, train: Path, val: Path) -> None:
    """Raise UserError if the images that are still to be unpacked do not fit on the disk."""
    need = 0
    if val.is_file() and not (out / "val").exists():
        need += val.stat().st_size
    if train.is_file():
        need += sum(tar.size for wnid, tar in class_tars(train).items() if not (out / "train" / wnid).exists())
    need = round(need * _ROOM)
    free = shutil.disk_usage(out).free
    if need > free:
        raise UserError(
            f"{out}: {need / 1e9:.1f} GB are still to be unpacked, and the disk has {free / 1e9:.1f} GB free; "
            "free some space, or use another --out"
        )


def look_at_files(part: str, images: Images, oddities: Oddities) -> None:
    """Check the headers of the images that were not unpacked in this run."""
    paths = [path for path, _ in images.found if f"{part}/{path}" not in oddities]

    def look_at_file(path: str) -> list[Oddity]:
        with open(images.folder / path, "rb") as file:
            return look(file)

    def results() -> Iterator[list[Oddity]]:
        with ThreadPoolExecutor(_LOOKERS) as threads:
            for start in range(0, len(paths), 1000):
                yield from threads.map(look_at_file, paths[start : start + 1000])

    for path, found in zip(paths, track(results(), len(paths), f"{part} images checked"), strict=True):
        oddities[f"{part}/{path}"] = found
