"""The sides that `others.py` compares: photographs to features, each a script of its own."""

import os
import sys
from pathlib import Path

import numpy as np

CORES = os.cpu_count()


def with_spark(data: str, network: str, to: str) -> None:
    from pipeline import write_features, write_index

    from fruits_lib import backbones, runs, session

    run = runs.open_run(session.start_session("others"), to)
    write_index(run, data)
    write_features(run, backbones.export_backbone(run, weights=network))
    run.spark.stop()


class Network:
    """The LiteRT file, once per worker."""

    def __init__(self, file: str) -> None:
        from fruits_lib.udf import decode_image, open_backbone

        self.infer, self.decode = open_backbone(Path(file).read_bytes()), decode_image

    def compute(self, contents) -> list[np.ndarray]:
        return [self.infer(self.decode(content, 224)) for content in contents]


def with_ray(data: str, network: str, to: str) -> None:
    import ray

    class Featurize(Network):
        def __call__(self, batch: dict) -> dict:
            return {"path": batch["path"], "features": np.stack(self.compute(batch["bytes"]))}

    files = ray.data.read_binary_files(data, include_paths=True)
    # Half a CPU each, or the actors would leave none to the tasks that read.
    arguments = {"fn_constructor_args": [network], "batch_size": 64, "concurrency": CORES}
    arguments["num_cpus"] = 0.5
    files.map_batches(Featurize, **arguments).write_parquet(to)


def with_daft(data: str, network: str, to: str) -> None:
    import daft
    from daft import DataType

    @daft.cls(max_concurrency=CORES)
    class Featurize(Network):
        @daft.method.batch(return_dtype=DataType.list(DataType.float32()), batch_size=64)
        def __call__(self, contents: daft.Series) -> list:
            return self.compute(contents.to_pylist())

    files = daft.from_glob_path(f"{data}/**/*.jpg")
    contents = files.select("path", files["path"].download().alias("content"))
    featurized = contents.with_column("features", Featurize(network)(contents["content"]))
    featurized.select("path", "features").write_parquet(to)


SIDES = {"01 and 02": with_spark, "Ray Data": with_ray, "Daft": with_daft}

if __name__ == "__main__":
    SIDES[sys.argv[1]](*sys.argv[2:])
