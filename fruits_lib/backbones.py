"""Backbones: Keras Applications networks without their top, exported once to one LiteRT file.

TensorFlow runs only here, in a process of its own, so that neither the driver nor the executors
load it. The exported file takes one uint8 RGB image of shape (1, size, size, 3), has the network's
preprocessing inside, and gives float32 features of shape (1, width).
"""

import fcntl
import hashlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

from fruits_lib import random_weights
from fruits_lib.environment import installed
from fruits_lib.errors import FruitsError
from fruits_lib.networks import (
    KERAS_WEIGHTS,
    NETWORKS,
    BackboneSpec,
    check_backbone,
    keras_models,
)
from fruits_lib.runs import Run, read_bytes
from fruits_lib.storage import cache_folder, write_file
from fruits_lib.udf import DECODING, Decoding

_ENTRY = "backbone/backbone.json"
IMAGENET_STD = (0.229, 0.224, 0.225)  # of red, green and blue, where white is 1


@dataclass(frozen=True)
class Backbone:
    """An exported backbone."""

    spec: BackboneSpec
    width: int  # features per image
    sha256: str  # of the LiteRT file: the identity of the features
    content: bytes  # the LiteRT file
    decoding: int = DECODING  # the version by which the run decodes photographs for it

    def __str__(self) -> str:
        size = self.spec.input_size
        return (
            f"{self.spec.backbone}, {self.spec.weights} weights: "
            f"image {size} x {size} x 3 -> {self.width} features"
        )


def export_backbone(
    run: Run,
    backbone: str = "mobilenet_v2",
    weights: str = "imagenet",
    input_size: int = 0,
    pooling: str = "avg",
    seed: int = 0,
) -> Backbone:
    """Return the run's backbone, after exporting it to `backbone/<name>.tflite` if necessary.

    The parameters are those of `check_backbone`.

    Raises
    ------
    FruitsError
        If a value is out of its bounds, the weights are missing or do not fit, TensorFlow is needed
        and missing, or the run folder holds another backbone.
    """
    spec = check_backbone(backbone, weights, input_size, pooling, seed)
    if run.exists(_ENTRY):
        return _read_exported(run, spec)
    if weights.endswith(".tflite"):
        content = read_bytes(run.spark, weights)
    elif weights in KERAS_WEIGHTS:
        content = export(spec)
    else:
        content = export(spec, read_bytes(run.spark, weights))
    width, sha256 = check_litert(content, spec), hashlib.sha256(content).hexdigest()
    return _write(run, Backbone(spec, width, sha256, content))


def copy_backbone(known: Run, run: Run) -> Backbone:
    """Return the backbone of a run, after copying it into another run that has none.

    Raises
    ------
    FruitsError
        If the run's file is not the one that its features are of, or the other has another.
    """
    network = read_backbone(known)
    if network.sha256 != known.require("featurize")["weights_sha256"]:
        raise FruitsError(
            f"{known.path('backbone')} is not the network of its features: give another run_dir"
        )
    if not run.exists(_ENTRY):
        return _write(run, network)
    there = read_backbone(run)
    if (there.sha256, there.decoding) != (network.sha256, network.decoding):
        what = "decoding" if there.sha256 == network.sha256 else "network"
        raise FruitsError(
            f"{run.uri} holds features of another {what} than that of {known.uri}: give another "
            "folder for the results"
        )
    return network


def read_backbone(run: Run) -> Backbone:
    """Return the backbone that a run holds."""
    return _read_exported(run, BackboneSpec.of(_read_entry(run)))


def _write(run: Run, network: Backbone) -> Backbone:
    entry = {**asdict(network.spec), "width": network.width, "sha256": network.sha256}
    run.write_bytes(f"backbone/{network.spec.name}.tflite", network.content)
    _write_entry(run, {**entry, "decoding": network.decoding})
    return network


def read_decoding(run: Run) -> Decoding | None:
    """Return how the rows of `features/` and `rejects/` were decoded, None if nothing says so."""
    entry = _read_entry(run)
    if "max_pixels" in entry:
        return Decoding.of(entry)
    # A run of an older version recorded it in the manifest alone, at the end of 02.
    return Decoding.of(done) if (done := run.manifest().get("featurize")) else None


def record_decoding(run: Run, decoding: Decoding) -> None:
    """Note how photographs are decoded, beside the network, where a killed run keeps it."""
    _write_entry(run, {**_read_entry(run), **decoding.entry})


def _write_entry(run: Run, entry: dict) -> None:
    run.write_bytes(_ENTRY, json.dumps(entry, indent=2).encode())


def _read_entry(run: Run) -> dict:
    try:
        return json.loads(run.read_bytes(_ENTRY))
    except ValueError:
        raise FruitsError(
            f"{run.path(_ENTRY)} is not JSON: remove it and run 02_featurize again"
        ) from None


def _read_exported(run: Run, spec: BackboneSpec) -> Backbone:
    entry = _read_entry(run)
    differences = ", ".join(
        f"{name}={entry[name]} where {name}={asked} is asked for"
        for name, asked in asdict(spec).items()
        if entry[name] != asked
    )
    if differences:
        raise FruitsError(f"{run.uri} holds features with {differences}: give another run_dir")
    file = f"backbone/{spec.name}.tflite"
    content = run.read_bytes(file)
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise FruitsError(
            f"{run.path(file)} is not the file that was exported: give another run_dir"
        )
    return Backbone(spec, entry["width"], entry["sha256"], content, entry.get("decoding", 1))


def check_litert(content: bytes, spec: BackboneSpec) -> int:
    """Return the width of a LiteRT file's features, or raise FruitsError if it does not fit."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # Only shapes are read, so the delegate that would write to stderr can stay out.
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        network = Interpreter(model_content=content, experimental_op_resolver_type=plain)
    except ValueError as error:
        raise FruitsError(
            f"{spec.weights} is not a LiteRT file ({error}): export one with `fruits export`"
        ) from None
    found = " -> ".join(
        ", ".join(f"{tensor['dtype'].__name__} {tensor['shape'].tolist()}" for tensor in tensors)
        for tensors in (network.get_input_details(), network.get_output_details())
    )
    size, width = spec.input_size, NETWORKS[spec.backbone].width
    wanted = f"uint8 {[1, size, size, 3]} -> float32 {[1, width]}"
    if found != wanted:
        raise FruitsError(
            f"{spec.weights} maps {found}, where backbone={spec.backbone} at input_size={size} "
            f"maps {wanted}: give the matching backbone and input_size, or export it with "
            "`fruits export`"
        )
    return width


@contextmanager
def export_ahead(spec: BackboneSpec | None) -> Iterator[None]:
    """Export a network into the user's cache while other work goes on; `export` then waits for it.

    What fails here fails again in `export`, where it can be said.
    """
    thread = ThreadPoolExecutor(1)
    if spec and spec.weights in KERAS_WEIGHTS:
        thread.submit(export, spec)
    try:
        yield
        thread.shutdown()
    finally:
        thread.shutdown(wait=False)  # a run that fails says so at once


def export(spec: BackboneSpec, weights_file: bytes | None = None) -> bytes:
    """Return a network as a LiteRT file, built with Keras or else from the user's cache.

    `weights_file` is the content of the `.h5` or `.keras` file that `spec.weights` names.

    Raises
    ------
    FruitsError
        If TensorFlow is not installed, or Keras cannot get or fit the weights.
    """
    if spec.weights == "imagenet" and (content := _on_node(spec)):
        return content
    with _one_at_a_time():
        if content := _read_cached(_cached(spec, weights_file)):
            return content
        content = in_tensorflow(_convert, spec, weights_file)
        with suppress(OSError):  # a cache that cannot be written costs time, no more
            # The name again: Keras may have downloaded the weights.
            write_file(_cached(spec, weights_file), hashlib.sha256(content).digest() + content)
        return content


def _on_node(spec: BackboneSpec) -> bytes | None:
    """Return what bootstrap.sh put on a cluster's node, None if there is nothing."""
    file = Path(sys.prefix, "share/fruits/backbones", f"{spec.name}.tflite")
    noted = Path(f"{file}.sha256")  # missing where a person put the network there
    if not file.exists():
        return None
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if noted.exists() and not noted.read_text().startswith(f"{digest} "):
        raise FruitsError(
            f"{file} is not the file that `fruits emr stage` wrote: remove it and run bootstrap.sh "
            "again, or give weights=FILE.tflite"
        )
    return content


def _read_cached(file: Path) -> bytes | None:
    """Return the content behind its digest, None if it is not there as it was written."""
    with suppress(OSError):
        digest, content = (whole := file.read_bytes())[:32], whole[32:]
        if hashlib.sha256(content).digest() == digest:
            return content
    return None


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait while another thread or process exports: the cache may then have what is wanted."""
    with ExitStack() as stack:
        with suppress(OSError):
            cache_folder().mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(cache_folder() / "backbones.lock", "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cached(spec: BackboneSpec, weights_file: bytes | None) -> Path:
    """Return where an export is cached: its name has a hash of all that determines its content."""
    weights = hashlib.sha256(weights_file or b"").hexdigest()
    if spec.weights == "imagenet":  # by Keras' own file, whose name Keras alone knows
        files = ((file.name, file.stat()) for file in sorted(keras_models().glob("*.h5")))
        weights = [(name, found.st_size, found.st_mtime_ns) for name, found in files]
    code = [Path(module).read_text() for module in (__file__, random_weights.__file__)]
    versions = [installed(name) for name in ("keras", "tensorflow", "tensorflow-cpu")]
    known = [spec.name, spec.seed, repr(NETWORKS[spec.backbone]), weights, versions, code]
    key = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    return cache_folder() / "backbones" / f"{spec.name}-{key}.sealed"


def in_tensorflow(function: Callable, spec: BackboneSpec, weights_file: bytes | None, *arguments):
    """Return `function(spec, *arguments)`, called in a process of its own that has TensorFlow.

    There `spec.weights` is a file that holds `weights_file`. Raises FruitsError as `export` does.
    """
    if find_spec("tensorflow") is None:
        raise FruitsError(
            f"TensorFlow, which exports {spec.backbone}, is not installed here: run `fruits export "
            f"--backbone {spec.backbone} --weights {spec.weights} --to FILE.tflite` where it is, "
            "and give weights=FILE.tflite"
        )
    if weights_file is None:
        return _in_own_process(function, spec, *arguments)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, Path(spec.weights).name)
        local.write_bytes(weights_file)
        return _in_own_process(function, replace(spec, weights=str(local)), *arguments)


def _in_own_process(function: Callable, *arguments):
    """Call a function where TensorFlow may take its memory and write its logs."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_start_quietly) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise FruitsError(
                "the process of TensorFlow was killed: check whether the machine ran out of memory"
            ) from None


def _start_quietly() -> None:
    for stream in (1, 2):  # TensorFlow's C++ writes past Python
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", KERAS_BACKEND="tensorflow")
    socket.setdefaulttimeout(20)  # seconds; Keras' download would wait forever


def _model(spec: BackboneSpec):
    """Return the Keras model of a specification, without its top."""
    import keras

    network = getattr(keras.applications, NETWORKS[spec.backbone].function)
    shape = (spec.input_size, spec.input_size, 3)
    build = partial(network, include_top=False, input_shape=shape, pooling=spec.pooling)
    if spec.weights == "imagenet":
        try:
            return build(weights="imagenet")
        except Exception as error:
            raise FruitsError(
                f"ImageNet weights of {spec.backbone} are not in Keras' cache and cannot be "
                f"downloaded ({str(error).splitlines()[0]}): give weights=FILE.h5, or "
                "weights=random to try things out"
            ) from None
    model = build(weights=None)
    if spec.weights == "random":
        random_weights.set_weights(model, _preprocess(spec), spec.seed)
        return model
    try:
        model.load_weights(spec.weights)
    except Exception as error:
        raise FruitsError(
            f"{Path(spec.weights).name} does not fit {spec.backbone} without its top "
            f"({str(error).splitlines()[0]}): give weights saved from that network"
        ) from None
    _divide_by_std(model)
    return model


def _divide_by_std(model) -> None:
    """Add what Keras adds to EfficientNetB0 only for `weights="imagenet"`, but no file contains.

    Its ImageNet weights expect pixels that are divided by the root of `IMAGENET_STD` after the
    layer `Normalization`, whose mean is zero unless the weights came with another.
    """
    import keras
    import numpy as np

    for layer in model.layers:
        adapted = isinstance(layer, keras.layers.Normalization) and layer.variables
        if adapted and np.any(layer.adapt_mean):
            layer.adapt_variance.assign(layer.adapt_variance * np.float32(IMAGENET_STD))
            layer.finalize_state()


def _preprocess(spec: BackboneSpec) -> Callable:
    """Return what Keras does to the pixels; nothing, where the network has it inside."""
    import keras

    return getattr(keras.applications, NETWORKS[spec.backbone].module).preprocess_input


def network(spec: BackboneSpec):
    """Return Keras' tensors of a whole backbone: the photograph, and its features."""
    import keras

    preprocess = _preprocess(spec)
    image = keras.Input((spec.input_size, spec.input_size, 3), batch_size=1, dtype="uint8")
    return image, _model(spec)(preprocess(keras.ops.cast(image, "float32")), training=False)


def _convert(spec: BackboneSpec) -> bytes:
    import keras
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_keras_model(keras.Model(*network(spec))).convert()
