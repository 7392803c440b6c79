"""Versions and settings that a reader needs to repeat a run."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import fruits_lib

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PACKAGES = ("pyspark", "numpy", "pandas", "pyarrow", "pillow", "ai-edge-litert", "tensorflow-cpu")


def environment(spark: SparkSession) -> dict:
    """Return versions and settings by name, for the manifest."""
    return {
        "fruits_lib": fruits_lib.__version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "java": spark._jvm.System.getProperty("java.version"),
        "spark": spark.version,
        "hadoop": spark._jvm.org.apache.hadoop.util.VersionInfo.getVersion(),
        "master": spark.sparkContext.master,
        "parallelism": spark.sparkContext.defaultParallelism,
        "packages": {name: installed(name) for name in PACKAGES},
    }


def git_commit() -> str | None:
    """Return the commit that this code was checked out from, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "-q", "HEAD"]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    with suppress(PackageNotFoundError):
        return version(package)
