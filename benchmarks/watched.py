"""Where the seconds of Spark's workers go."""

import json
import os
import time
from collections import Counter
from pathlib import Path

from fruits_lib import udf


def watched(folder: str):
    """Return a featurizer that also writes how long each task's kinds of work took."""

    def featurizer(weights, size, decoding):
        def run_watched(batches):
            spent, started = Counter(), time.monotonic()

            def clocked(name, function):
                def call(*arguments):
                    began = time.monotonic()
                    try:
                        return function(*arguments)
                    finally:
                        spent[name] += time.monotonic() - began

                return call

            kept = udf.open_backbone, udf._decode_image
            opened = clocked("opening the network", kept[0])
            udf.open_backbone = lambda content: clocked("inference", opened(content))
            udf._decode_image = clocked("decoding and resizing", kept[1])
            try:
                # Made here, in the worker, so that it finds the clocked functions.
                run_backbone = udf.featurizer(weights, size, decoding)
                waited = iter(clocked("waiting for rows", batches.__next__), None)
                yield from run_backbone(waited)
            finally:
                udf.open_backbone, udf._decode_image = kept
            spent["task"] = time.monotonic() - started
            spent["reading, hashing, Arrow, handing over"] = 2 * spent["task"] - sum(spent.values())
            Path(folder, f"{os.getpid()}-{time.monotonic_ns()}.json").write_text(json.dumps(spent))

        return run_watched

    return featurizer
