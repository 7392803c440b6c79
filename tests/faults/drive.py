"""02 in a process of its own, which a test kills: run folder, backbone, batch size."""

import sys

from pipeline import write_features

from fruits_lib.backbones import export_backbone
from fruits_lib.runs import open_run
from fruits_lib.session import start_session

run_dir, weights, batch_size = sys.argv[1:]
run = open_run(start_session("fruits faults"), run_dir)
network = export_backbone(run, weights=weights, input_size=32)
print("starts", flush=True)
print(write_features(run, network, batch_size=int(batch_size)))
