"""What `bootstrap.sh` installs: the wheels of the node lock, and the project's own wheel."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fruits_lib.errors import FruitsError
from fruits_lib.storage import bucket_and_key

CHECKOUT = Path(__file__).parents[2]
NODE_LOCK = CHECKOUT / "requirements-node.lock"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "fruits_lib", "notebooks")
ARCHITECTURES = ("x86_64", "aarch64")
# What Amazon Linux 2023 (glibc 2.34) runs. For another platform pip takes names literally: it does
# not know that 2_28 includes 2_17.
GLIBCS = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 35)))
FIRST_ZIP_TIME = "315532800"  # 1980-01-01: the same files give the same wheel, byte for byte


def build_wheelhouse(folder: Path, arch: str, lock: Path = NODE_LOCK) -> list[Path]:
    """Download the wheels of a hashed lock, for nodes that cannot reach a package index.

    Parameters
    ----------
    folder : pathlib.Path
        Made if it is not there; wheels that it has already are kept.
    arch : str
        Of the nodes: `x86_64`, or `aarch64` (Graviton); this machine's does not matter.
    lock : pathlib.Path
        Requirements with hashes.

    Returns
    -------
    list of pathlib.Path

    Raises
    ------
    FruitsError
        If the architecture is not known, a package has no wheel for it, or a hash is wrong.
    """
    if arch not in ARCHITECTURES:
        raise FruitsError(f"arch={arch!r} is not known: choose one of {', '.join(ARCHITECTURES)}")
    _check_checkout(lock)
    platforms = [f"--platform={glibc}_{arch}" for glibc in GLIBCS]
    _pip(
        *("download", "--no-deps", "--require-hashes", "--only-binary=:all:", *platforms),
        *("--implementation=cp", "--python-version=3.11"),
        *(f"--dest={folder}", f"--requirement={lock}"),
    )
    return sorted(folder.glob("*.whl"))


def upload(s3, wheels: list[Path], stage: str, arch: str) -> list[str]:
    """Put wheels where `bootstrap.sh --stage` looks for them: `stage`/wheelhouse/`arch`/.

    A wheel that is there already with the same size is not sent again: its name says its version,
    and every node checks its hash.

    Parameters
    ----------
    s3
        boto3 client.
    wheels : list of pathlib.Path
    stage : str
        `s3://bucket/prefix` of the staging folder.
    arch : str
        See `build_wheelhouse`.

    Returns
    -------
    list of str
        Keys that were written.
    """
    bucket, key = bucket_and_key(f"{stage}/wheelhouse/{arch}")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{key}/")
    sizes = {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}
    written = []
    for wheel in wheels:
        target = f"{key}/{wheel.name}"
        if sizes.get(target) != wheel.stat().st_size:
            with wheel.open("rb") as content:
                s3.put_object(Bucket=bucket, Key=target, Body=content)
            written.append(target)
    return written


def build_wheel(folder: Path) -> Path:
    """Build the project's own wheel, notebooks included, from this checkout into a folder.

    The same files give the same bytes, so that staging and nodes know what they have already.

    Raises
    ------
    FruitsError
        If this is no checkout, or the build fails.
    """
    sources = [CHECKOUT / name for name in SOURCES]
    _check_checkout(*sources)
    with tempfile.TemporaryDirectory() as scratch:
        # A copy: setuptools would leave a build/ in the checkout, and next time pack what it finds
        # there, modules included that exist no more.
        for source in sources:
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(scratch, source.name))
        _pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", scratch)
    return next(folder.glob("fruits_lib-*.whl"))


def _check_checkout(*paths: Path) -> None:
    for path in paths:
        if not path.exists():
            raise FruitsError(
                f"{path} is missing: run `fruits emr` from a checkout, after `make setup`"
            )


def _pip(command: str, *arguments: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", *arguments],
        env={**os.environ, "SOURCE_DATE_EPOCH": FIRST_ZIP_TIME},
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        raise FruitsError(
            f"pip {command} failed ({_reason(answer.stderr)}): check the network and the lock, "
            "which `make lock` writes"
        )


def _reason(output: str) -> str:
    """Return the last error in pip's words, with the line after it, which names the package."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("ERROR")]
    first = errors[-1] if errors else -1
    return " ".join(lines[first:][:2]).removeprefix("ERROR: ")
