"""What a cluster finds in the bucket: code, notebooks, lock, bootstrap script, backbone."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from botocore.exceptions import ClientError

from fruits_lib import parameters
from fruits_lib.backbones import check_backbone, check_litert, export
from fruits_lib.emr.cluster import MISSING
from fruits_lib.emr.spec import ClusterSpec
from fruits_lib.errors import FruitsError
from fruits_lib.storage import bucket_and_key

CHECKOUT = Path(__file__).parents[2]
HUB_FOLDER = "jupyter/jovyan"  # of the bucket: what EMR's JupyterHub shows its first user
# As JupyterHub on EMR names it: the driver runs on the cluster, not in the hub's container.
HUB_KERNEL = {
    "kernelspec": {"name": "pysparkkernel", "display_name": "PySpark", "language": "python"},
    "language_info": {
        "name": "pyspark",
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "codemirror_mode": {"name": "python", "version": 3},
        "pygments_lexer": "python3",
    },
}


@dataclass
class Staged:
    """What staging did, by key.

    Attributes
    ----------
    written : list of str
        New, or replaced.
    same : list of str
        There already, with the same content.
    kept : list of str
        Notebooks that were edited in JupyterHub, which are never replaced.
    note : str
        What the user should know of the backbone; may be empty.
    """

    written: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    note: str = ""


def check_bucket(s3, spec: ClusterSpec) -> None:
    """Check that the stage's bucket lies in the cluster's region.

    Raises
    ------
    FruitsError
        If it lies in another one: every byte between the two costs money, and may leave the EU.
    """
    answer = s3.get_bucket_location(Bucket=spec.bucket)
    # S3's oldest regions have names of their own here.
    region = {None: "us-east-1", "EU": "eu-west-1"}.get(
        answer["LocationConstraint"], answer["LocationConstraint"]
    )
    if region != spec.region:
        raise FruitsError(
            f"bucket {spec.bucket} lies in {region}, the cluster would in {spec.region}: give "
            f"--region {region}, or a bucket in {spec.region}"
        )


def stage(s3, spec: ClusterSpec, wheel: Path, weights: Path | None = None) -> Staged:
    """Write what a cluster needs to its stage; what is there already stays as it is.

    Parameters
    ----------
    s3
        boto3 client.
    spec : ClusterSpec
    wheel : pathlib.Path
        The project's own wheel.
    weights : pathlib.Path, optional
        A `.tflite` file for the default backbone; else it is exported here, where that is possible.

    Raises
    ------
    FruitsError
        If a file is missing here, or `weights` is not the default backbone's.
    """
    backbone = _read_litert(weights) if weights else b""
    prefix = bucket_and_key(spec.stage)[1]
    done = Staged()

    def put(key: str, content: bytes) -> None:
        wrote = put_if_new(s3, spec.bucket, key, content)
        (done.written if wrote else done.same).append(key)

    for path in (CHECKOUT / "bootstrap.sh", CHECKOUT / "requirements-node.lock"):
        put(f"{prefix}/{path.name}", _read(path))
    content = wheel.read_bytes()
    _remove_other_wheels(s3, spec.bucket, prefix, wheel.name)
    put(f"{prefix}/{wheel.name}", content)
    put(
        f"{prefix}/{wheel.name}.sha256",
        f"{hashlib.sha256(content).hexdigest()}  {wheel.name}\n".encode(),
    )
    for path in parameters.find_notebooks():
        put(f"{prefix}/notebooks/{path.name}", path.read_bytes())
        key = f"{HUB_FOLDER}/{path.name}"
        if _sha256(s3, spec.bucket, key) == "":  # JupyterHub saved it: it is someone's work
            done.kept.append(key)
        else:
            put(key, for_hub(path.read_bytes()))
    done.note = _stage_backbone(s3, spec.bucket, prefix, backbone, put)
    return done


def put_if_new(s3, bucket: str, key: str, content: bytes) -> bool:
    """Write an object unless the same content is there; say whether it was written."""
    digest = hashlib.sha256(content).hexdigest()
    if _sha256(s3, bucket, key) == digest:
        return False
    s3.put_object(Bucket=bucket, Key=key, Body=content, Metadata={"sha256": digest})
    return True


def for_hub(notebook: bytes) -> bytes:
    """Return a notebook with the kernel that runs it on a cluster, from JupyterHub."""
    content = json.loads(notebook)
    content["metadata"] = {**content["metadata"], **HUB_KERNEL}
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def _remove_other_wheels(s3, bucket: str, prefix: str, name: str) -> None:
    """Leave no other version of the project: `bootstrap.sh` takes the wheel that there is."""
    answer = s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/fruits_lib-")
    for entry in answer.get("Contents", []):
        if entry["Key"].removesuffix(".sha256") != f"{prefix}/{name}":
            s3.delete_object(Bucket=bucket, Key=entry["Key"])


def _stage_backbone(
    s3, bucket: str, prefix: str, given: bytes, put: Callable[[str, bytes], None]
) -> str:
    spec = check_backbone("mobilenet_v2")
    key = f"{prefix}/backbones/{spec.name}.tflite"
    if given:
        put(key, given)
        return ""
    if _sha256(s3, bucket, key) is not None:
        return ""
    try:
        put(key, export(spec))
    except FruitsError as error:
        return (
            f"no backbone is staged ({error}). The cluster has no TensorFlow: stage one by "
            "--weights FILE.tflite, which `fruits export` makes where TensorFlow is"
        )
    return ""


def _sha256(s3, bucket: str, key: str) -> str | None:
    """Return what we wrote down of an object; empty if another wrote it, None if there is none."""
    try:
        return s3.head_object(Bucket=bucket, Key=key)["Metadata"].get("sha256", "")
    except ClientError as error:
        if error.response["Error"]["Code"] not in MISSING:
            raise
        return None


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FruitsError(
            f"{path} is missing: run `fruits emr` from a checkout, after `make setup`"
        )
    return path.read_bytes()


def _read_litert(path: Path) -> bytes:
    content = path.read_bytes()
    check_litert(content, check_backbone("mobilenet_v2", str(path)))
    return content
