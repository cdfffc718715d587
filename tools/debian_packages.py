"""Packages of another Debian release, with all that they need, fetched without root: a private apt in a folder.

    mirror = find_mirror(os.environ, Path("/etc/apt"))
    with Apt(mirror, "bullseye", Path("work")) as apt:
        apt.update()
        packages = apt.resolve(["caffe"])
        apt.download(packages, ["caffe"], print)

Nothing of the machine's own dpkg and apt is changed. The private apt believes that nothing at all is installed, so
that a resolution holds everything down to the C library. It checks signatures as the machine's apt does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote

from transfer_caffe import processes
from transfer_caffe.errors import UserError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
RELEASES = {
    "buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid",
    "oldoldstable", "oldstable", "stable", "testing", "unstable",
}  # fmt: skip

Say = Callable[[str], None]


@dataclass(frozen=True)
class Mirror:
    """Where Debian packages come from, and what apt's sources say of its signatures, as `signed-by=FILE`."""

    uri: str
    options: tuple[str, ...] = ()

    def line(self, release: str) -> str:
        """The line of a sources.list."""
        options = f"[{' '.join(self.options)}] " if self.options else ""
        return f"deb {options}{self.uri} {release} main\n"


@dataclass(frozen=True)
class Package:
    """A package file: its name in apt's folder of archives, its size in bytes, its sha256 if apt tells it."""

    file: str
    size: int
    sha256: str | None

    @property
    def name(self) -> str:
        return self.file.split("_")[0]

    @property
    def version(self) -> str:
        return unquote(self.file.split("_")[1])


# ---- mirrors ----------------------------------------------------------------------------------------------------


def find_mirror(environ: Mapping[str, str], etc: Path) -> Mirror:
    """The mirror that MIRROR names, else the first Debian one of the apt sources in ``etc``. UserError: none."""
    given = environ.get("MIRROR", "").strip()
    if given:
        if not re.match(r"[a-z+]+:/", given) or re.search(r"\s", given):
            raise UserError(f"MIRROR={given}: not the address of a Debian mirror; http://HOST/debian is one's form")
        return Mirror(given.rstrip("/"), (f"signed-by={KEYRING}",) if KEYRING.exists() else ())
    texts = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources"):
            with contextlib.suppress(OSError):
                texts.append((path.suffix, path.read_text(encoding="utf-8", errors="replace")))
    for suffix, text in texts:
        for mirror in mirrors_of_list(text) if suffix == ".list" else mirrors_of_sources(text):
            return mirror
    raise UserError(
        f"no Debian mirror is in this machine's apt sources ({etc}); name one that carries Debian 11: "
        "MIRROR=http://HOST/debian"
    )


def mirrors_of_list(text: str) -> Iterator[Mirror]:
    """The Debian mirrors of a file in the form of sources.list: lines `deb [options] URI suite components`."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)", line)
        if match and _is_debian(match[2], [match[3]]):
            yield Mirror(match[2].rstrip("/"), _of_signatures(re.findall(r"(\S+?)\s*=\s*(\S+)", match[1] or "")))


def mirrors_of_sources(text: str) -> Iterator[Mirror]:
    """The Debian mirrors of a file in deb822 form: stanzas of `Field: value`, which goes on in indented lines."""
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        fields = {
            name.lower(): " ".join(value.split())
            for name, value in re.findall(r"(?m)^([\w-]+)\s*:((?:.*)(?:\n[ \t].*)*)", stanza)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for uri in fields.get("uris", "").split():
            if _is_debian(uri, fields.get("suites", "").split()):
                yield Mirror(uri.rstrip("/"), _of_signatures(fields.items()))


def _is_debian(uri: str, suites: Sequence[str]) -> bool:
    """Whether this is the archive of Debian itself: not its security updates, not what others make."""
    if uri.startswith("cdrom:") or any("security" in suite for suite in suites):
        return False
    return uri.rstrip("/").endswith("/debian") or any(suite in RELEASES for suite in suites)


def _of_signatures(options: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    # a key may be written out in the sources; then apt's own keys have to do
    return tuple(
        f"{name.lower()}={value}"
        for name, value in options
        if name.lower() in ("signed-by", "trusted") and not re.search(r"\s|-----", value)
    )


# ---- apt --------------------------------------------------------------------------------------------------------

SETTINGS = """\
Dir::Etc::sourcelist "{here}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{here}/state";
Dir::State::lists "{here}/lists";
Dir::State::status "{here}/status";
Dir::Cache "{here}";
Dir::Cache::archives "{here}/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Log "{here}";
Dir::Log::Terminal "/dev/null";
Dir::Log::History "/dev/null";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "";
APT::Update::Post-Invoke {{ }};
APT::Update::Post-Invoke-Success {{ }};
DPkg::Pre-Invoke {{ }};
DPkg::Post-Invoke {{ }};
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::Check-Valid-Until "false";
"""
"""Archived releases are past their time; their signatures are checked all the same."""


class Apt:
    """An apt of its own in the folder ``work``, which may hold what an earlier one has fetched already.

    As a context manager: apt's configuration knows no quoting that holds everywhere, so it sees the folder through a
    link without spaces in the folder for temporary files.
    """

    def __init__(self, mirror: Mirror, release: str, work: Path, keep_open: Sequence[int] = ()) -> None:
        """``keep_open``: descriptors of locks that apt must hold for as long as it runs, even if this process dies."""
        self.mirror, self.release, self.work, self.keep_open = mirror, release, work, keep_open
        self.archives = work / "archives"

    def __enter__(self) -> Apt:
        note = self.work / "link"
        if note.exists():  # one that was killed has left its link
            left = Path(note.read_text())
            if left.name.startswith("apt.") and (left / "work").is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        self._links = Path(tempfile.mkdtemp(prefix="apt."))
        here = self._links / "work"
        try:
            note.write_text(str(self._links))
            here.symlink_to(self.work.resolve())
            for folder in ("lists/partial", "archives/partial", "state", "none/partial"):
                (self.work / folder).mkdir(parents=True, exist_ok=True)
            (self.work / "status").write_text("")
            (self.work / "sources.list").write_text(self.mirror.line(self.release))
            (self.work / "apt.conf").write_text(SETTINGS.format(here=here))
        except BaseException:
            shutil.rmtree(self._links, ignore_errors=True)
            raise
        self._here = here
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._links, ignore_errors=True)  # the link, not what it leads to

    def update(self) -> None:
        """Fetch the lists of packages."""
        code, output = self._apt(["update"])
        problem = reason(output)
        if code or problem:
            raise UserError(self._no_packages(problem or f"apt-get update ended with exit code {code}"))

    def resolve(self, names: Sequence[str]) -> list[Package]:
        """The package files of ``names`` and of all that they depend on."""
        # an empty folder of archives, since apt names only what it has to fetch
        none = f"Dir::Cache::archives={self._here}/none"
        code, output = self._apt(["-o", none, "--print-uris", "install", *names])
        if code:
            raise UserError(self._no_packages(reason(output) or f"apt-get ended with exit code {code}"))
        return parse_uris(output)

    def download(self, packages: Sequence[Package], names: Sequence[str], progress: Say) -> None:
        """Fetch the package files of `resolve`(names) that are not here yet, and check each by its sha256."""
        total = sum(package.size for package in packages)
        for package in packages:  # what a kill or a bad disk left: apt looks at the size alone
            path = self.archives / package.file
            if path.exists() and not _is_sound(path, package):
                path.unlink()
        beginning = time.monotonic()

        def look() -> None:
            here = sum(path.stat().st_size for path in self._fetched())
            if time.monotonic() - beginning > 1:
                progress(f"fetching {len(packages)} packages: {here >> 20} of {total >> 20} MB")

        code, output = self._apt(["--download-only", "install", *names], look)
        if code:
            raise UserError(
                f"{self.mirror.uri}: the download failed: {reason(output) or f'apt-get ended with exit code {code}'}; "
                "the same command goes on with it"
            )
        for package in packages:
            if not _is_sound(self.archives / package.file, package):
                raise UserError(f"{self.archives / package.file}: not the package that the mirror's lists tell of")

    def _fetched(self) -> Iterator[Path]:
        for path in [*self.archives.glob("*.deb"), *(self.archives / "partial").glob("*")]:
            if path.exists():  # apt may have moved it since
                yield path

    def _apt(self, arguments: Sequence[str], look: Callable[[], None] | None = None) -> tuple[int, str]:
        """Run apt-get; gives its exit code and all that it said."""
        argv = ["apt-get", "--quiet=2", "--assume-yes", *arguments]
        env = {**os.environ, "APT_CONFIG": f"{self._here}/apt.conf", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        return run(argv, env=env, look=look, keep_open=self.keep_open)

    def _no_packages(self, why: str) -> str:
        keys = "NO_PUBKEY" in why or "not signed" in why or "signature" in why.lower()
        what = (
            "its signature cannot be checked; install Debian's keys (the package debian-archive-keyring)"
            if keys
            else f"it gives no Debian 11 ({self.release}) packages; set MIRROR to one that carries them"
        )
        return f"{self.mirror.uri}: {what} ({why})"


def run(
    argv: Sequence[str],
    folder: Path | None = None,
    env: dict[str, str] | None = None,
    look: Callable[[], None] | None = None,
    keep_open: Sequence[int] = (),
) -> tuple[int, str]:
    """Run a program that ends with this process at the latest; ``look`` is called while it runs.

    Gives its exit code and its output.
    """
    with tempfile.TemporaryFile() as output:
        process = processes.start(argv, output, folder, env, keep_open)
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.5)
                    break
                if look is not None:
                    look()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        return process.returncode, output.read().decode(errors="replace")


def reason(output: str) -> str:
    """The first error that apt-get told of, or the first thing that it could not fetch; empty if there is none."""
    lines = [line.strip() for line in output.splitlines()]
    for start in ("E: Failed to fetch", "W: Failed to fetch", "W: GPG error", "E:", "W: The repository"):
        for line in lines:
            if line.startswith(start):
                return re.sub(r"\s+", " ", line[2:].strip())
    return ""


def parse_uris(output: str) -> list[Package]:
    """What `apt-get --print-uris` prints, a line a file: 'URI' NAME SIZE KIND:CHECKSUM."""
    packages = []
    for line in output.splitlines():
        if not line.startswith("'"):
            continue
        words = shlex.split(line)
        checksum = words[3] if len(words) > 3 else ""
        kind, _, digits = checksum.partition(":")
        packages.append(Package(words[1], int(words[2]), digits if kind == "SHA256" else None))
    return sorted(packages, key=lambda package: package.file)


def _is_sound(path: Path, package: Package) -> bool:
    if not path.is_file() or path.stat().st_size != package.size:
        return False
    if package.sha256 is None:
        return True
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
