"""Every key that a run records, with the check that proves it or the reason why none does.

A manifest that lacks a key which some reader needs is refused when it is read.
"""

from functools import reduce
from typing import NamedTuple

from fruits_lib.errors import FruitsError
from fruits_lib.stages import STAGES

_MISSING = object()
_NUMBER = (int, float)
_COUNTS = "counts unlike the manifest's"
_BACKBONE = "backbone unlike backbone.json or manifest"
_WEIGHTS = "sets of weights"
_CHOICE = "figures of k unlike the manifest's"
_SPECTRUM = "spectrum or model unlike the features"
_COMPONENTS = "components.npz unlike model/"
_MODEL = "model.npz unlike model/"
_FIGURES = "accuracy or F1 unlike the manifest's"
_CLASSIFIER = "classifier.npz unlike classifier/"
INFORMATION = "information: "
_TIME = f"{INFORMATION}when, or how long"
_HISTORY = f"{INFORMATION}what one call did; nothing that stays depends on it"
_ASKED = f"{INFORMATION}a bound that was asked for; the run stopped if it was passed"
_REASON = f"{INFORMATION}why the step refused its result, which nothing then reads"
_VERIFIED = f"{INFORMATION}what 05_verify found; it writes all of it anew"
_APPLIED = f"{INFORMATION}`fruits apply` writes and checks it in one step, 05 never sees it"


class Key(NamedTuple):
    """What is known of a key."""

    kind: type | tuple[type, ...]
    owner: str  # the name of a check of 05, or INFORMATION and the reason
    always: bool = True  # whether some reader needs it; others are of some runs only


_TIMES = {"seconds": Key(_NUMBER, _TIME, False), "finished": Key(str, _TIME, False)}
_ERROR = {"error": Key(str, _REASON, False)}
MANIFEST = {
    "load": {
        "data": Key(str, "photographs added since 01_load"),
        "exclude": Key(str, f"{INFORMATION}05 lists the folder again with it", False),
        "files": Key(int, _COUNTS),
        "images": Key(int, _COUNTS),
        "labels": Key(int, _COUNTS),
        "set_aside": Key(list, _COUNTS),
        "unlabelled": Key(int, _COUNTS, False),
        "normalised": Key(int, _COUNTS, False),
        "dropped": Key(int, _HISTORY, False),
    },
    "featurize": {
        "backbone": Key(str, _BACKBONE),
        "weights": Key(str, _BACKBONE),
        "input_size": Key(int, _BACKBONE),
        "pooling": Key(str, _BACKBONE),
        "seed": Key(int, _BACKBONE),
        "width": Key(int, _BACKBONE),
        "weights_sha256": Key(str, _WEIGHTS),
        "max_pixels": Key(int, _BACKBONE),
        "max_bytes": Key(int, _BACKBONE, False),
        "accept_truncated": Key(bool, _BACKBONE),
        "decoding": Key(int, _BACKBONE, False),
        "max_reject_ratio": Key(_NUMBER, _ASKED, False),
        "features": Key(int, _COUNTS),
        "truncated": Key(int, _COUNTS, False),
        "rejects": Key(int, _COUNTS),
        "digests": Key(dict, "batches unlike what 02_featurize wrote", False),
        "computed": Key(int, _HISTORY),
    },
    "pick_k": {
        "variance": Key(_NUMBER, _CHOICE, False),
        "k": Key(int, _CHOICE, False),
        "standardize": Key(bool, _CHOICE),
        "fit_split": Key(str, _CHOICE, False),
        "images": Key(int, _COUNTS),
        "warning": Key(str, _CHOICE, False),
        "raw.k": Key(int, _CHOICE),
        "raw.explained_variance": Key(_NUMBER, _CHOICE),
        "standardized.k": Key(int, _CHOICE),
        "standardized.explained_variance": Key(_NUMBER, _CHOICE),
    },
    "pca": {
        "images": Key(int, _COUNTS, False),
        "k": Key(int, _CHOICE),
        "standardize": Key(bool, _CHOICE, False),
        "explained_variance": Key(_NUMBER, _CHOICE, False),
        "csv": Key(bool, "rows of pca_csv/ unlike pca/", False),
    },
    "verify": {
        "sample_seed": Key(int, _VERIFIED, False),
        "checks": Key(list, _VERIFIED),
        "passed": Key(int, _VERIFIED),
        "failed": Key(int, _VERIFIED, False),
        "finished": Key(str, _TIME),
    },
    "classify": {
        "classes": Key(int, _FIGURES, False),
        "fitted_on": Key(str, _FIGURES),
        "tested_on": Key(str, _FIGURES),
        "fitted": Key(int, _FIGURES),
        "tested": Key(int, _FIGURES),
        "accuracy": Key(_NUMBER, _FIGURES),
        "macro_f1": Key(_NUMBER, _FIGURES),
        "knn_accuracy": Key(_NUMBER, _FIGURES),
        "neighbors": Key(int, f"{INFORMATION}knn_accuracy is computed again with it"),
        "seed": Key(int, f"{INFORMATION}fitted_on names it where it divided the photographs"),
        "fruits_accuracy": Key(_NUMBER, f"{INFORMATION}it takes a fit of its own", False),
        "warning": Key(str, f"{INFORMATION}it follows from fit_split and tested_on", False),
        "checks": Key(list, _VERIFIED),
    },
    "apply": {
        "run": Key(str, _APPLIED),
        "weights_sha256": Key(str, _APPLIED, False),
        "model_sha256": Key(str, _APPLIED, False),
        "classifier_sha256": Key(str, _APPLIED, False),
        "images": Key(int, _APPLIED),
        "k": Key(int, _APPLIED),
        "labels": Key(bool, _APPLIED),
        "labelled": Key(int, _APPLIED, False),
        "accuracy": Key(_NUMBER, _APPLIED, False),
        "sample_seed": Key(int, _APPLIED, False),
        "checks": Key(list, _APPLIED),
        "finished": Key(str, _TIME),
    },
}
MANIFEST = {stage: {**_TIMES, **_ERROR, **keys} for stage, keys in MANIFEST.items()}
_VERSION = Key((str, int, type(None)), f"{INFORMATION}a version, or where the run ran last", False)
_VERSIONS = ("fruits_lib", "git_commit", "python", "java", "spark", "hadoop", "master")
MANIFEST["environment"] = {
    **dict.fromkeys((*_VERSIONS, "parallelism"), _VERSION._replace(always=True)),
    "packages": _VERSION._replace(kind=dict, always=True),
}
PLACES = {  # of the manifest, beside its entries
    "run": Key(str, f"{INFORMATION}where the run was made", False),
    "created": Key(str, _TIME, False),
}
_MODEL_KEYS = ("mean", "std", "standardize", "components", "eigenvalues")
FILES = {
    "backbone/backbone.json": {
        **dict.fromkeys(("backbone", "weights", "input_size", "pooling", "seed"), _BACKBONE),
        **dict.fromkeys(("max_pixels", "max_bytes", "accept_truncated", "decoding"), _BACKBONE),
        "width": _BACKBONE,
        "sha256": _WEIGHTS,
    },
    "spectrum/spectrum.npz": {
        **dict.fromkeys(("n", "mean", "std", "raw", "standardized"), _SPECTRUM),
        **dict.fromkeys(("fit_split", "standardize", "variance"), _CHOICE),
        "k": "k of the model",
        "explained": "explained variance",
    },
    "spectrum/components.npz": dict.fromkeys(_MODEL_KEYS, _COMPONENTS),
    "model.npz": dict.fromkeys((*_MODEL_KEYS, "scale", "explained_variance_ratio"), _MODEL),
    "classifier.npz": dict.fromkeys(("labels", "coefficients", "intercepts"), _CLASSIFIER),
}


def check_manifest(manifest, uri: str) -> dict:
    """Return a run's manifest, or raise FruitsError if it is none, or an entry is damaged."""
    name = f"{uri}/manifest.json"
    if not isinstance(manifest, dict) or _fault(manifest, PLACES):
        raise FruitsError(
            f"{name} is not the manifest of a run: remove it and run from 01_load on; features "
            "that are sound stay"
        )
    load = manifest.get("load", {"files": 0})
    if isinstance(load, dict) and "files" not in load:
        raise FruitsError(
            f"{uri} was written by an older version of fruits_lib, with tables that this one "
            "cannot read: give another run_dir"
        )
    for entry in (entry for entry in MANIFEST if entry in manifest):
        if why := _fault(manifest[entry], MANIFEST[entry]):
            again = f" and run {STAGES[entry]} again" if entry in STAGES else ""
            raise FruitsError(f"{name} is damaged ({entry} {why}): remove {entry} from it{again}")
    return manifest


def _fault(entry, keys: dict[str, Key]) -> str:
    """Return what is wrong with an entry of the manifest, or nothing."""
    if not isinstance(entry, dict):
        return f"is {entry!r:.40}"
    for name, key in keys.items():
        value = reduce(_item, name.split("."), entry)
        if value is _MISSING:
            if key.always:
                return f"has no {name}"
        elif not isinstance(value, key.kind):
            return f"has {name}={value!r:.40}"
    return ""


def _item(entry, name: str):
    return entry.get(name, _MISSING) if isinstance(entry, dict) else _MISSING
