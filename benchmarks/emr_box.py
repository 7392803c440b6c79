"""Scale, start-up and memory of the notebooks in EMR in a box (tests/emr_box); writes emr_box.md.

    make bench-emr ARGS="--data /path/to/photographs"

The box has two NodeManagers with the memory of m5.xlarge and the cores of this machine. Its
notebooks run as steps (`fruits run`, client mode) and in a session (sparkmagic, Livy, cluster mode)
while every container is followed from outside.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/emr_box")]

import parts  # noqa: E402
from box import BUCKET, CLUSTER, Box  # noqa: E402
from peaks import DRIVER, EXECUTOR, MASTER, Container, Peaks  # noqa: E402
from settings import HISTORY_PORT, PRIMARY  # noqa: E402
from work import papermill, read_manifest  # noqa: E402

from fruits_lib.backbones import export, imagenet_available  # noqa: E402
from fruits_lib.connector import cache_folder  # noqa: E402
from fruits_lib.emr.spec import ClusterSpec, executor_settings  # noqa: E402
from fruits_lib.networks import check_backbone  # noqa: E402
from fruits_lib.sample import write_sample  # noqa: E402

SHARED = Path(os.environ.get("FRUITS_SHARED", ROOT.parent / "shared"))
DATA, WEIGHTS = f"s3://{BUCKET}/photographs", f"s3://{BUCKET}/weights/mobilenet_v2.tflite"
PREPARED = "runs/prepared"
CONFIGURED = "as configured"
LATER = ("03_pick_k", "04_pca", "05_verify", "06_classify")
WHOLE = "all six in one step"
OPTIONS = {"01_load": f"--data {DATA}", "02_featurize": f"-p weights={WEIGHTS}"}
OPTIONS[WHOLE] = " ".join(OPTIONS.values())
SPARK_ARROW = 10_000  # rows of an Arrow batch, Spark's default
MOMENTS = """\
from pyspark.sql import SparkSession, functions as F
from fruits_lib import moments

spark = SparkSession.builder.appName("moments").getOrCreate()
row = F.array_repeat(F.rand(0).cast("float"), 1280)
moments.compute(spark.range(0, 40_000, 1, 4).select(row.alias("features")))
"""
JVM_MB = 512  # an assumption: memory of an executor's JVM outside its heap


@dataclass(frozen=True)
class Step:
    """One application and its seconds, before and after its first task."""

    application: str
    start: float
    rest: float

    @property
    def seconds(self) -> float:
        return self.start + self.rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="By default Fruits-360's Test, or the sample.")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    if SHARED.exists():
        os.environ.setdefault("KERAS_HOME", str(SHARED / "keras"))
    load = os.getloadavg()[0]  # of other work, which would spoil the times
    folder = Path(tempfile.mkdtemp(prefix="fruits-bench-"))
    try:
        for name in ("root", "box"):
            (folder / name).mkdir()
        data = asked.data or SHARED / "fruits360/Test"
        if not data.exists():
            data = folder / "sample"
            write_sample(data)
        found = parts.collect(cache_folder(), folder / "root")
        with Box(found, folder / "box") as box, Peaks(box) as peaks:
            weights = "imagenet" if imagenet_available() else "random"
            box.bucket.upload(data, "photographs")
            box.bucket.put(
                "weights/mobilenet_v2.tflite", export(check_backbone("mobilenet_v2", weights))
            )
            write(*measure(box, peaks, asked.rounds), weights, load)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- measure --------------------------------------------------------------------------------------


def measure(box: Box, peaks: Peaks, rounds: int):
    """Run everything; return manifest, steps, rates, sessions' start-ups, containers by work."""
    work: dict[str, list[Container]] = {}
    steps = {"01_load": step(box, "01_load", f"s3://{BUCKET}/{PREPARED}")}
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, conf in arms().items():
            run_dir = copy_prepared(box, f"runs/{number}-{name.replace(' ', '-')}")
            done = step(box, "02_featurize", run_dir, conf)
            manifest = read_manifest(box, run_dir)["featurize"]
            rates.setdefault(name, []).append(manifest["computed"] / manifest["seconds"])
            print(f"{name}: {rates[name][-1]:.0f} images/s", flush=True)
            note(work, f"02_featurize, {name}", peaks, done.application)
    steps["02_featurize"] = done  # the arms end with the configured executors
    for name in LATER:
        steps[name] = step(box, name, run_dir)
        note(work, "03 to 06 as steps", peaks, steps[name].application)
    steps[WHOLE] = step(box, WHOLE, f"s3://{BUCKET}/runs/whole")
    note(work, WHOLE, peaks, steps[WHOLE].application)
    for name in ("02_featurize", "03_pick_k"):
        run_dir = copy_prepared(box, "runs/session") if name == "02_featurize" else run_dir
        values = {"weights": WEIGHTS} if name == "02_featurize" else {}
        answer = papermill(box, name, run_dir, **values)
        assert answer.returncode == 0, answer.stderr
        note(work, f"{name} in a session", peaks, newest(box))
    sessions = [session_start(box) for _ in range(rounds)]
    box.put("/mnt/tmp/moments.py", MOMENTS)
    for rows in (1000, SPARK_ARROW):
        setting = f"--conf spark.sql.execution.arrow.maxRecordsPerBatch={rows}"
        box.check(f"/usr/lib/spark/bin/spark-submit {setting} /mnt/tmp/moments.py")
        note(work, f"moments of 40,000 rows, {rows:,} a batch", peaks, newest(box))
    return manifest, steps, rates, sessions, work


def arms() -> dict[str, dict[str, str]]:
    """Return the settings that 02_featurize is compared under, by name."""
    one = {"spark.dynamicAllocation.enabled": "false", "spark.executor.cores": "1"}
    return {
        "1 executor of 1 core": one | {"spark.executor.instances": "1"},
        "2 executors of 1 core": one | {"spark.executor.instances": "2"},
        CONFIGURED: {},
    }


def step(box: Box, notebook: str, run_dir: str, conf: dict[str, str] | None = None) -> Step:
    """Run one notebook, or all of them, as EMR runs a step."""
    options = "".join(f"--conf {key}={value} " for key, value in (conf or {}).items())
    which = "" if notebook == WHOLE else f"--only {notebook}"
    own = OPTIONS.get(notebook, "")
    command = f"/opt/fruits/bin/fruits run --run-dir {run_dir} {own} {which}"
    began = time.time()
    box.check(command, PYSPARK_SUBMIT_ARGS=f"{options}pyspark-shell")
    ended = time.time()
    application = newest(box)
    first = first_task(box, application)
    print(f"{notebook}: {first - began:.0f} + {ended - first:.0f} s", flush=True)
    return Step(application, first - began, ended - first)


def newest(box: Box) -> str:
    """Return the latest application."""
    return max(box.yarn("cluster/apps")["app"], key=lambda app: app["startedTime"])["id"]


def first_task(box: Box, application: str) -> float:
    """Return when Spark launched its first task, by the history server."""
    url = f"http://{PRIMARY}:{HISTORY_PORT}/api/v1/applications/{application}"

    def completed() -> bool:
        (attempt,) = json.loads(box.check(f"curl --silent {url}"))["attempts"]
        return attempt["completed"]

    box.wait("the history server", completed)
    stages = json.loads(box.check(f"curl --silent {url}/stages"))
    first = "firstTaskLaunchedTime"
    times = (stage[first] for stage in stages if first in stage)
    return datetime.strptime(min(times), "%Y-%m-%dT%H:%M:%S.%f%Z").timestamp()


def copy_prepared(box: Box, target: str) -> str:
    """Give a new run folder what 01 wrote into the prepared one; return its URI."""
    for key in box.bucket.listing(f"{PREPARED}/"):
        if not key.startswith((f"{PREPARED}/notebooks/", f"{PREPARED}/report")):
            box.bucket.put(key.replace(PREPARED, target), box.bucket.get(key))
    return f"s3://{BUCKET}/{target}"


def session_start(box: Box) -> float:
    """Return the seconds until a new Livy session accepts code."""
    began = time.monotonic()
    path = f"sessions/{box.livy('sessions', 'POST', kind='pyspark')['id']}"
    box.wait("the session", lambda: box.livy(path)["state"] == "idle")
    seconds = time.monotonic() - began
    box.livy(path, "DELETE")
    return seconds


def note(work: dict, what: str, peaks: Peaks, application: str) -> None:
    found = [one for one in peaks.containers() if one.application == application]
    work.setdefault(what, []).extend(found)


# --- write ----------------------------------------------------------------------------------------


def write(manifest, steps, rates, sessions, work, weights: str, load: float) -> None:
    """Write the figures to emr_box.md, and print them."""
    lines = [
        "# On YARN",
        "",
        f"`make bench-emr`, {date.today()}, {platform.machine()}, {os.cpu_count()} cores for "
        f"everything (load before: {load:.1f}): HDFS, YARN",
        "with two NodeManagers of m5.xlarge's memory, Livy, MinIO, JupyterHub, and "
        f"{manifest['computed']:,} photographs",
        f"in a bucket; {manifest['backbone']}, {weights} weights.",
        "",
        "## Scale",
        "",
        "02_featurize as a step, by the seconds in its manifest; the sides take turns.",
        "",
        "| executors | images/s, by round | median | ratio |",
        "|---|---|---|---|",
        *scale(rates),
        "",
        "## Start-up",
        "",
        "From the command to Spark's first task, with executors as configured. `fruits emr run` is",
        "one step for all notebooks. Goal: at most 15 %.",
        "",
        "| as a step | start-up, s | rest, s | share of start-up |",
        "|---|---|---|---|",
        *(
            f"| {name} | {one.start:.0f} | {one.rest:.0f} | {one.start / one.seconds:.0%} |"
            for name, one in steps.items()
        ),
        "",
        "A Livy session accepts code after "
        + ", ".join(f"{seconds:.0f}" for seconds in sessions)
        + " s.",
        "",
        "## Memory",
        "",
        "The largest container of each kind, sampled every second, in MB. Shared resident pages "
        "count once",
        "for each process, as YARN counts them. Arrow batches hold 64 photographs, or 1,000 rows "
        f"of features;\nSpark's default is {SPARK_ARROW:,}.",
        "",
        "| work | container | limit | JVM | largest heap | all Python | one Python | total | "
        "of the limit |",
        "|---|---|---|---|---|---|---|---|---|",
        *memory(work),
        "",
        "## Other nodes, estimated",
        "",
        f"An executor's JVM with a full heap and {JVM_MB} MB outside it, and a Python process as "
        "large as the\nlargest above for each task and for their daemon.",
        "",
        "| core node | limit | heap | tasks | one Python | total | of the limit |",
        "|---|---|---|---|---|---|---|",
        *estimates(work),
    ]
    text = "\n".join(lines) + "\n"
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def scale(rates: dict[str, list[float]]) -> list[str]:
    medians = {name: statistics.median(found) for name, found in rates.items()}
    one = next(iter(medians.values()))
    return [
        f"| {name} | {', '.join(f'{rate:.0f}' for rate in found)} | {medians[name]:.0f} | "
        f"{medians[name] / one:.2f} |"
        for name, found in rates.items()
    ]


def memory(work: dict[str, list[Container]]) -> list[str]:
    lines = []
    for what, containers in work.items():
        for kind in (DRIVER, MASTER, EXECUTOR):
            found = [one for one in containers if one.kind == kind]
            if found:
                most = max(found, key=lambda one: one.total_mb)
                jvm, python, worker = (
                    max(getattr(one, f"{part}_mb") for one in found)
                    for part in ("jvm", "python", "worker")
                )
                lines.append(
                    f"| {what} | {kind} | {most.limit_mb:,} | {jvm:,.0f} | {most.heap_mb:,} | "
                    f"{python:,.0f} | {worker:,.0f} | {most.total_mb:,.0f} | "
                    f"{most.total_mb / most.limit_mb:.0%} |"
                )
    return lines


def estimates(work: dict[str, list[Container]]) -> list[str]:
    worker = max(one.worker_mb for found in work.values() for one in found if one.kind == EXECUTOR)
    lines = []
    for node in ("m5.xlarge", "m5.2xlarge", "r5.xlarge"):
        settings = executor_settings(ClusterSpec(CLUSTER.stage, core=node))
        heap, overhead = (
            int(settings[f"spark.executor.{key}"].removesuffix("m"))
            for key in ("memory", "memoryOverhead")
        )
        tasks = int(settings["spark.executor.cores"])
        needed = heap + JVM_MB + (tasks + 1) * worker
        lines.append(
            f"| {node} | {heap + overhead:,} | {heap:,} | {tasks} | {worker:,.0f} | {needed:,.0f} "
            f"| {needed / (heap + overhead):.0%} |"
        )
    return lines


if __name__ == "__main__":
    main()
