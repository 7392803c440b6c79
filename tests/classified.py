"""A small run after 04, for what reads one without Spark."""

import pytest
from pipeline import pick_k, write_features, write_index, write_scores

from fruits_lib import backbones
from fruits_lib.backbones import export_backbone
from fruits_lib.runs import open_run


def reduced(spark, folder, photographs, tiny):
    """Return a run after 04, of the quick backbone, as if it had just been exported."""
    run = open_run(spark, str(folder))
    write_index(run, photographs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "export", lambda *_: tiny.read_bytes())
        network = export_backbone(run, weights="random", input_size=32)
    write_features(run, network)
    pick_k(run)
    write_scores(run)
    return run
