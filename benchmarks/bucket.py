"""A whole run from and to a bucket beside one on local folders; writes bucket.md.

    make bench-s3 ARGS="--data /path/to/photographs --latency 15"

`fruits run` on local folders, then on a MinIO server of this machine; with --latency, once more
with that latency before every answer (toxiproxy).
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from servers import REGION, Bucket, Faults, s3_server  # noqa: E402

from fruits_lib.runs import read_manifest  # noqa: E402

SHARED = Path(os.environ.get("FRUITS_SHARED", ROOT.parent / "shared"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED / "fruits360")
    parser.add_argument("--weights", default="imagenet" if SHARED.exists() else "random")
    parser.add_argument("--latency", type=int, default=0, help="Milliseconds.")
    asked = parser.parse_args()
    if SHARED.exists():
        os.environ.setdefault("KERAS_HOME", str(SHARED / "keras"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [("local folders", *whole_run(str(asked.data), f"{folder}/run", asked.weights))]
        with s3_server("minio", folder / "objects") as server:
            bucket = Bucket("fruits", server.client())
            bucket.client.create_bucket(
                Bucket="fruits", CreateBucketConfiguration={"LocationConstraint": REGION}
            )
            files = [file for file in asked.data.rglob("*") if file.is_file()]
            with ThreadPoolExecutor(8) as threads:
                list(threads.map(lambda file: put(bucket, file, asked.data), files))
            os.environ.update(server.environment)
            data = bucket.uri("photographs")
            rows.append(("a bucket", *whole_run(data, bucket.uri("near"), asked.weights)))
            if asked.latency:
                with closing(Faults(server, folder / "toxiproxy.log")) as proxy:
                    proxy.add("latency", latency=asked.latency)
                    os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
                    rows.append(
                        (
                            f"a bucket {asked.latency} ms away",
                            *whole_run(data, bucket.uri("far"), asked.weights),
                        )
                    )
    write(rows)


def put(bucket: Bucket, file: Path, folder: Path) -> None:
    bucket.put(f"photographs/{file.relative_to(folder).as_posix()}", file.read_bytes())


def whole_run(data: str, run_dir: str, weights: str) -> tuple[float, dict]:
    """Return the wall time of `fruits run` in seconds, and the run's manifest."""
    started = time.monotonic()
    command = [Path(sys.executable).with_name("fruits"), "run", "--data", data]
    subprocess.run([*command, "--run-dir", run_dir, "-p", f"weights={weights}"], check=True)
    return time.monotonic() - started, read_manifest(run_dir)


def write(rows: list[tuple[str, float, dict]]) -> None:
    counts = rows[0][2]["featurize"]
    lines = [
        "# From and to a bucket",
        "",
        f"`make bench-s3`, {date.today()}, {platform.machine()}, {os.cpu_count()} cores: "
        f"`fruits run` on {counts['features']:,} photographs, {counts['backbone']},",
        f"{counts['weights']} weights, one run each, one after the other.",
        "",
        "| photographs and results in | whole run, s | 02, s | images/s in 02 | checks passed |",
        "|---|---|---|---|---|",
    ]
    for name, seconds, manifest in rows:
        done, checks = manifest["featurize"], manifest["verify"]
        lines.append(
            f"| {name} | {seconds:.0f} | {done['seconds']:.0f} | "
            f"{done['computed'] / done['seconds']:.0f} | "
            f"{checks['passed']} of {len(checks['checks'])} |"
        )
    text = "\n".join(lines) + "\n"
    Path(__file__).with_name("bucket.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
