"""What a cluster finds in the bucket: code, notebooks, wheels, bootstrap script, backbone."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from botocore.exceptions import ClientError

from fruits_lib import parameters
from fruits_lib.backbones import check_litert, export
from fruits_lib.emr.cluster import MISSING
from fruits_lib.errors import FruitsError
from fruits_lib.networks import check_backbone
from fruits_lib.storage import bucket_and_key, content_type

CHECKOUT = Path(__file__).parents[2]
NODE_LOCK = CHECKOUT / "requirements-node.lock"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "fruits_lib", "notebooks")
# What Amazon Linux 2023 (glibc 2.34) runs. For another platform pip takes names literally: it does
# not know that 2_28 includes 2_17.
GLIBCS = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 35)))
FIRST_ZIP_TIME = "315532800"  # 1980-01-01: the same files give the same wheel, byte for byte
HUB_FOLDER = "jupyter/jovyan"  # of the bucket: what EMR's JupyterHub shows its first user
# As JupyterHub on EMR names it: the driver runs on the cluster, not in the hub's container.
HUB_KERNEL = {
    "kernelspec": {"name": "pysparkkernel", "display_name": "PySpark", "language": "python"},
    "language_info": {"name": "pyspark", "file_extension": ".py", "mimetype": "text/x-python"},
}


def check_bucket(s3, stage: str) -> None:
    """Refuse a bucket in another region: traffic would cost money, and might leave the EU."""
    bucket, _ = bucket_and_key(stage)
    answer = s3.get_bucket_location(Bucket=bucket)["LocationConstraint"]
    # S3's oldest regions have names of their own here.
    region = {None: "us-east-1", "EU": "eu-west-1"}.get(answer, answer)
    if region != s3.meta.region_name:
        elsewhere = f"bucket {bucket} is in {region}, the cluster would be in {s3.meta.region_name}"
        raise FruitsError(f"{elsewhere}: give --region {region}, or another bucket")


def stage(s3, stage: str, wheels: dict[str, Path], weights: Path | None = None) -> list[str]:
    """Write what a cluster needs to its stage, and return lines that say what was done.

    Parameters
    ----------
    s3
        boto3 client.
    stage : str
    wheels : dict of str to pathlib.Path
        By key below the stage; see `build_wheels`.
    weights : pathlib.Path, optional
        A `.tflite` file for the default backbone; else it is exported here if possible.
    """
    backbone = check_backbone("mobilenet_v2")
    if weights:
        check_litert(weights.read_bytes(), check_backbone("mobilenet_v2", str(weights)))
    bucket, prefix = bucket_and_key(stage)
    written, same, notes = [], [], []

    def put(key: str, content: bytes) -> None:
        (written if put_if_new(s3, bucket, key, content) else same).append(key)

    for path in (CHECKOUT / "bootstrap.sh", CHECKOUT / "scripts/doctor.py", NODE_LOCK):
        put(f"{prefix}/{path.name}", _read(path))
    _remove_other_wheels(s3, bucket, prefix, wheels)
    for name, path in wheels.items():
        put(f"{prefix}/{name}", path.read_bytes())
        if "/" not in name:
            put(f"{prefix}/{name}.sha256", _digest_file(path.read_bytes(), name))
    for path in [*parameters.find_notebooks(), parameters.find_notebook("apply")]:
        put(f"{prefix}/notebooks/{path.name}", path.read_bytes())
        key = f"{HUB_FOLDER}/{path.name}"
        if _sha256(s3, bucket, key) == "":  # JupyterHub saved it: it is someone's work
            notes.append(f"s3://{bucket}/{key} was edited in JupyterHub: it stays as it is")
        else:
            put(key, for_hub(path.read_bytes()))
    key = f"{prefix}/backbones/{backbone.name}.tflite"
    try:
        if weights or _sha256(s3, bucket, key) is None:
            content = weights.read_bytes() if weights else export(backbone)
            put(key, content)
            put(f"{key}.sha256", _digest_file(content, f"{backbone.name}.tflite"))
    except FruitsError as error:
        notes.append(f"no backbone is staged ({error}): nodes need one, --weights FILE.tflite")
    return [f"{stage}: {len(written)} files written, {len(same)} there already", *notes]


def put_if_new(s3, bucket: str, key: str, content: bytes) -> bool:
    """Write an object unless the same content is there; return whether it was written."""
    digest = hashlib.sha256(content).hexdigest()
    if _sha256(s3, bucket, key) == digest:
        return False
    metadata = {"Metadata": {"sha256": digest}, "ContentType": content_type(key)}
    s3.put_object(Bucket=bucket, Key=key, Body=content, **metadata)
    return True


def _digest_file(content: bytes, name: str) -> bytes:
    """Return what `sha256sum --check` reads."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()


def for_hub(notebook: bytes) -> bytes:
    """Return a notebook with the kernel that runs it on a cluster, from JupyterHub."""
    content = json.loads(notebook)
    content["metadata"] = {**content["metadata"], **HUB_KERNEL}
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def _remove_other_wheels(s3, bucket: str, prefix: str, wheels: dict[str, Path]) -> None:
    """Leave no other version of the project: bootstrap.sh wants exactly one."""
    answer = s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/fruits_lib-")
    for entry in answer.get("Contents", []):
        if entry["Key"].removeprefix(f"{prefix}/").removesuffix(".sha256") not in wheels:
            s3.delete_object(Bucket=bucket, Key=entry["Key"])


def _sha256(s3, bucket: str, key: str) -> str | None:
    """Return the digest that we noted of an object; empty if another wrote it, None if missing."""
    try:
        return s3.head_object(Bucket=bucket, Key=key)["Metadata"].get("sha256", "")
    except ClientError as error:
        if error.response["Error"]["Code"] not in MISSING:
            raise
        return None


def build_wheels(folder: Path, arch: str) -> dict[str, Path]:
    """Return all wheels that nodes of an architecture install, by their key below the stage."""
    wheelhouse = build_wheelhouse(folder / arch, arch)
    own = build_wheel(folder)
    return {own.name: own, **{f"wheelhouse/{arch}/{path.name}": path for path in wheelhouse}}


def build_wheelhouse(folder: Path, arch: str, lock: Path = NODE_LOCK) -> list[Path]:
    """Download the wheels of a hashed lock for nodes of an architecture, whatever this one's is."""
    _read(lock)
    platforms = [f"--platform={glibc}_{arch}" for glibc in GLIBCS]
    _pip(
        *("download", "--no-deps", "--require-hashes", "--only-binary=:all:", *platforms),
        *("--implementation=cp", "--python-version=3.11"),
        *(f"--dest={folder}", f"--requirement={lock}"),
    )
    return sorted(folder.glob("*.whl"))


def build_wheel(folder: Path) -> Path:
    """Build the project's own wheel, notebooks included; the same files give the same bytes."""
    _read(CHECKOUT / SOURCES[0])
    with tempfile.TemporaryDirectory() as scratch:
        # A copy: setuptools would leave a build/ in the checkout, and pack what is there next time.
        for source in (CHECKOUT / name for name in SOURCES):
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(scratch, source.name))
        _pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", scratch)
    return next(folder.glob("fruits_lib-*.whl"))


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FruitsError(f"{path} is missing: run `fruits emr` from a checkout")
    return path.read_bytes()


def _pip(*arguments: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet"],
        env={**os.environ, "SOURCE_DATE_EPOCH": FIRST_ZIP_TIME},
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        # pip's last error, with the line after it, which names the package.
        lines = [" ".join(line.split()) for line in answer.stderr.splitlines() if line.strip()]
        errors = [number for number, line in enumerate(lines) if line.startswith("ERROR")]
        said = " ".join(lines[errors[-1] if errors else -1 :][:2]).removeprefix("ERROR: ")
        raise FruitsError(f"pip {arguments[0]} failed ({said}): check the network and the lock")
