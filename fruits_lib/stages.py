"""The stages of a run, what each one needs and writes, and what its manifest says of them."""

from collections.abc import Iterable

from fruits_lib.errors import FruitsError

STAGES = {  # by what the manifest calls them: their notebooks, in order
    "load": "01_load",
    "featurize": "02_featurize",
    "pick_k": "03_pick_k",
    "pca": "04_pca",
    "verify": "05_verify",
    "classify": "06_classify",
    "apply": "apply",
}
NEEDS = {  # the stage whose output each one reads, after those that that one needs
    "featurize": "load",
    "pick_k": "featurize",
    "pca": "pick_k",
    "verify": "pca",
    "classify": "pca",
    "apply": "featurize",  # in a folder of its own: the model is another run's
}
PLACE = "path string, label string, split string"  # path: below the data folder
TABLES = {  # the contract of every Parquet folder
    "index": f"{PLACE}, length long, modification_time timestamp",
    "set_aside": "path string, reason string, extension string",
    "features": f"{PLACE}, features array<float>, weights_sha256 string, content_sha256 string, "
    "truncated boolean",
    "rejects": f"{PLACE}, reason string",
    "pca": f"{PLACE}, pca array<float>",
    "labels": f"{PLACE}, predicted string, probability float",
}
WRITTEN_BY = {
    "index": "load",
    "set_aside": "load",
    "backbone": "featurize",
    "features": "featurize",
    "rejects": "featurize",
    "spectrum": "pick_k",
    "pca": "pca",
    "pca_csv": "pca",
    "model": "pca",
    "model.npz": "pca",
    "classifier": "classify",
    "classifier.npz": "classify",
    "labels": "classify",
}


def needed(stage: str) -> list[str]:
    """Return the stages that must have run before one, first to last."""
    before = NEEDS.get(stage)
    return [*needed(before), before] if before else []


def recorded(manifest: dict, run_dir: str, stage: str) -> dict:
    """Return what a stage recorded; raise FruitsError if it must run first, or again."""
    if not manifest.keys() & STAGES.keys():
        raise FruitsError(
            f"run_dir={run_dir} does not exist or holds no run: check the path, or run "
            f"{STAGES['load']} first"
        )
    entry = manifest.get(stage)
    if not entry or "error" in entry:
        why = entry["error"] if entry else "its result is missing or was made from an older one"
        raise FruitsError(f"{run_dir}: run {STAGES[stage]} first ({why})")
    return entry


def check_unfinished(manifest: dict, run_dir: str, stages: Iterable[str]) -> None:
    """Raise FruitsError if all checks of a run have passed and a stage would replace a result."""
    if manifest.keys() & set(stages) - {"verify"} and verified(manifest):
        finished = manifest["verify"]["finished"]
        raise FruitsError(
            f"run_dir={run_dir} holds a run finished {finished}: give another run_dir, or "
            "overwrite=True (--overwrite) to replace its results (features that are there stay)"
        )


def verified(manifest: dict) -> bool:
    """Return whether all checks of a run have passed."""
    entry = manifest.get("verify")
    return bool(entry) and entry["passed"] == len(entry["checks"])
