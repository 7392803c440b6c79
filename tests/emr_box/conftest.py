"""Fixtures of the box: the box itself, its tunnel, and two people at work in it."""

import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import parts
import pytest
from box import BUCKET, CLUSTER, FRUITS, PASSWORDS, REQUEST, Box
from browser import Person
from machine import kill_all
from peaks import Peaks
from servers import REGION, await_port, client, free_port, s3_server
from work import NOTEBOOKS, given, in_the_browser, papermill

from fruits_lib.backbones import export
from fruits_lib.emr import steps
from fruits_lib.networks import check_backbone, imagenet_available
from fruits_lib.parameters import find_notebooks
from fruits_lib.storage import cache_folder

INDEXED = f"s3://{BUCKET}/runs/indexed"


def pytest_collection_modifyitems(items):
    """Two people come first: they work at the same time, and no fault shall strike them."""
    items.sort(key=lambda item: item.path.stem != "test_two_people")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A .tflite file of the real size, with ImageNet weights if Keras can get them."""
    file = tmp_path_factory.mktemp("backbone") / "mobilenet_v2.tflite"
    weights = "imagenet" if imagenet_available() else "random"
    file.write_bytes(export(check_backbone("mobilenet_v2", weights)))
    return file


@pytest.fixture(scope="session")
def box(backbone, tmp_path_factory):
    """The box, started once."""
    root = tmp_path_factory.mktemp("root")
    found = parts.collect(cache_folder(), root)
    with Box(found, tmp_path_factory.mktemp("box"), backbone) as running:
        yield running
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def weights(box, backbone):
    """URI of the backbone in the bucket."""
    box.bucket.put(f"weights/{backbone.name}", backbone.read_bytes())
    return f"s3://{BUCKET}/weights/{backbone.name}"


@pytest.fixture(scope="session")
def data(box, sample):
    """URI of the photographs in the bucket."""
    box.bucket.upload(sample, "photographs")
    return f"s3://{BUCKET}/photographs"


@pytest.fixture(scope="session")
def console(box, tmp_path_factory):
    """The environment of an engineer who calls `fruits emr`, and the id of a cluster: the box.

    EMR's API is moto's; ssh is the real one, configured to reach the box.
    """
    folder = tmp_path_factory.mktemp("console")
    ssh = folder / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F "{box.ssh_config}" "$@"\n')
    ssh.chmod(0o755)
    with s3_server("moto", folder / "moto") as moto:
        environment = {**os.environ, **moto.environment}
        environment["PATH"] = f"{ssh.parent}:{environment['PATH']}"
        emr = client(moto.endpoint, "emr")
        cluster = emr.run_job_flow(**REQUEST)["JobFlowId"]
        address = emr.describe_cluster(ClusterId=cluster)["Cluster"]["MasterPublicDnsName"]
        box.check(f"echo '127.0.0.1 {address}' >>/etc/hosts", user="root")
        yield environment, cluster


@pytest.fixture(scope="session")
def tunnel(box, console):
    """Ports of this machine that `fruits emr tunnel` opens: (JupyterHub, history server)."""
    environment, cluster = console
    ports = free_port(), free_port()
    command = [FRUITS, "emr", "tunnel", cluster, "--region", REGION, "--key", box.key]
    command += ["--hub-port", str(ports[0]), "--history-port", str(ports[1])]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            await_port(ports[0], process)
            yield ports
        finally:
            kill_all(process)  # background processes may ignore Ctrl-C


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Folder for screenshots; `FRUITS_PICTURES` names one that stays."""
    named = os.environ.get("FRUITS_PICTURES")
    folder = Path(named) if named else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def values(data, weights):
    """Parameters of the runs that tests compare."""
    return {"data": data, "weights": weights, "variance": 0.8}


@pytest.fixture(scope="session")
def peaks(box):
    """Follows every container from before the first notebook."""
    with Peaks(box) as following:
        yield following


@pytest.fixture(scope="session")
def amina(box, values, peaks):
    """A person who runs the notebooks by papermill: (run folder, future of answers by name)."""
    run_dir = f"s3://{BUCKET}/runs/amina"

    def work():
        answers = {n: papermill(box, n, run_dir, **given(n, **values)) for n in NOTEBOOKS}
        new = {"data": values["data"], "to": f"{run_dir}-new"}
        return {**answers, "apply": papermill(box, "apply", run_dir, **new)}

    with ThreadPoolExecutor(1) as executor:
        yield run_dir, executor.submit(work)


@pytest.fixture(scope="session")
def beginner(sample, backbone, values, tmp_path_factory):
    """A person who runs the same notebooks on this machine, by the plain kernel.

    Yields (run folder, photographs, future of the command's answer).
    """
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    command = [FRUITS, "run", "--data", sample, "--run-dir", run_dir]
    for name, value in {**values, "weights": backbone}.items():
        command += ["-p", f"{name}={value}"] if name != "data" else []
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(subprocess.run, command, capture_output=True, text=True)
        yield str(run_dir), str(sample), future


@pytest.fixture(scope="session")
def plain(beginner):
    """The finished run on this machine: (run folder, photographs)."""
    run_dir, photographs, future = beginner
    assert future.result().returncode == 0, future.result().stderr
    return run_dir, photographs


@pytest.fixture(scope="session")
def errands(box, values):
    """Futures of jobs that run at the same time."""
    run_dir = f"s3://{BUCKET}/runs/steps"
    whole = steps.run_request(steps.check_run(find_notebooks(), {**values, "run_dir": run_dir}))
    script, answer = f"{CLUSTER.stage}/doctor.py", f"s3://{BUCKET}/doctor.json"
    doctor = steps.request("doctor", ["spark-submit", script, answer])

    def run(step):
        assert step["HadoopJarStep"]["Jar"] == "command-runner.jar"  # runs its arguments
        return box.run(shlex.join(step["HadoopJarStep"]["Args"]))

    index = f"{steps.LAUNCHER} run --only 01 --data {values['data']} --run-dir {INDEXED}"
    with ThreadPoolExecutor(2) as executor:
        yield {
            "index": executor.submit(box.run, index),
            "step": executor.submit(run, whole),
            "failed": executor.submit(papermill, box, "04_pca", f"s3://{BUCKET}/runs/empty"),
            "doctor": executor.submit(run, doctor),
        }


@pytest.fixture(scope="session")
def step(errands):
    """All notebooks as the step that `fruits emr run` adds: (answer, run folder)."""
    return errands["step"].result(), f"s3://{BUCKET}/runs/steps"


@pytest.fixture(scope="session")
def indexed(errands):
    """A run folder in which 01 alone has run."""
    answer = errands["index"].result()
    assert answer.returncode == 0, answer.stderr
    return INDEXED


@pytest.fixture(scope="session")
def failed(errands):
    """Papermill's answer of a notebook whose input is missing."""
    return errands["failed"].result()


@pytest.fixture(scope="session")
def jovyan(box, tunnel, values, pictures, amina, beginner):
    """A person in a browser, while amina is at work: (run folder, visit, browser)."""
    run_dir = f"s3://{BUCKET}/runs/jovyan"
    address = f"https://127.0.0.1:{tunnel[0]}"
    with Person(address, "jovyan", PASSWORDS["jovyan"], pictures) as person:
        yield run_dir, in_the_browser(person, run_dir, **values), person
