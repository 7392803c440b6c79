"""Backbones: Keras Applications networks without their top, exported once to one LiteRT file.

TensorFlow runs only here, in a process of its own, so that neither the driver nor the executors
load it. The exported file takes one uint8 RGB image of shape (1, size, size, 3), has the network's
preprocessing inside, and gives float32 features of shape (1, width).
"""

import hashlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

from fruits_lib.errors import FruitsError
from fruits_lib.runs import Run, read_bytes

KERAS_WEIGHTS = ("imagenet", "random")  # what Keras has without a file


@dataclass(frozen=True)
class Network:
    """One network of `keras.applications`: its function, and the module of its preprocessing."""

    module: str
    function: str
    input_size: int  # default side of the square input, in pixels
    width: int  # features per image after global pooling
    smallest: int = 32  # side that Keras accepts, in pixels


NETWORKS = {
    "mobilenet_v2": Network("mobilenet_v2", "MobileNetV2", 224, 1280),
    "resnet50": Network("resnet50", "ResNet50", 224, 2048),
    "vgg16": Network("vgg16", "VGG16", 224, 512),
}


@dataclass(frozen=True)
class BackboneSpec:
    """What was asked for; it determines the features, so a run folder has exactly one."""

    backbone: str  # a name in NETWORKS
    weights: str  # imagenet, random, or path or URI of a .h5, .keras or exported .tflite file
    input_size: int  # side of the square input, in pixels
    pooling: str  # avg or max
    seed: int  # of random weights; 0 for all others

    @property
    def name(self) -> str:
        weights = self.weights if self.weights in KERAS_WEIGHTS else "file"
        return f"{self.backbone}-{self.input_size}-{self.pooling}-{weights}"


@dataclass(frozen=True)
class Backbone:
    """An exported backbone."""

    spec: BackboneSpec
    width: int  # features per image
    sha256: str  # of the LiteRT file: the identity of the features
    content: bytes  # the LiteRT file

    def __str__(self) -> str:
        size = self.spec.input_size
        return (
            f"{self.spec.backbone}, {self.spec.weights} weights: "
            f"image {size} x {size} x 3 -> {self.width} features"
        )


def check_backbone(
    backbone: str,
    weights: str = "imagenet",
    input_size: int = 0,
    pooling: str = "avg",
    seed: int = 0,
) -> BackboneSpec:
    """Return the specification, or raise FruitsError if a value is out of its bounds.

    The parameters are those of `BackboneSpec`; an `input_size` of 0 takes the network's own.
    """
    if backbone not in NETWORKS:
        raise FruitsError(
            f"backbone={backbone!r} is not known: choose one of {', '.join(NETWORKS)}"
        )
    network = NETWORKS[backbone]
    size = input_size or network.input_size
    if size < network.smallest:
        raise FruitsError(
            f"input_size={input_size} is below {network.smallest} pixels, the least that "
            f"{backbone} takes: raise it, or 0 for its own {network.input_size}"
        )
    if weights not in KERAS_WEIGHTS and not weights.endswith((".h5", ".keras", ".tflite")):
        raise FruitsError(
            f"weights={weights!r} is neither imagenet nor random nor a .h5, .keras or .tflite "
            "file: give one of these"
        )
    if pooling not in ("avg", "max"):
        raise FruitsError(f"pooling={pooling!r} is not known: choose one of avg, max")
    if not 0 <= seed < 2**32:
        raise FruitsError(f"seed={seed} is outside 0 to 2**32 - 1: choose one inside")
    return BackboneSpec(backbone, weights, size, pooling, seed if weights == "random" else 0)


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
    if run.exists("backbone/backbone.json"):
        return _read_exported(run, spec)
    installed = Path(sys.prefix, "share/fruits/backbones", f"{spec.name}.tflite")
    if weights.endswith(".tflite"):
        content = read_bytes(run.spark, weights)
    elif weights == "imagenet" and installed.is_file():  # on a cluster's node, by bootstrap.sh
        content = installed.read_bytes()
    elif weights in KERAS_WEIGHTS:
        content = export(spec)
    else:
        content = export(spec, read_bytes(run.spark, weights))
    width, sha256 = check_litert(content, spec), hashlib.sha256(content).hexdigest()
    entry = {**asdict(spec), "width": width, "sha256": sha256}
    run.write_bytes(f"backbone/{spec.name}.tflite", content)
    run.write_bytes("backbone/backbone.json", json.dumps(entry, indent=2).encode())
    return Backbone(spec, width, sha256, content)


def _read_exported(run: Run, spec: BackboneSpec) -> Backbone:
    entry = json.loads(run.read_bytes("backbone/backbone.json"))
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
    return Backbone(spec, entry["width"], entry["sha256"], content)


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


def export(spec: BackboneSpec, weights_file: bytes | None = None) -> bytes:
    """Build a network with Keras and return it as a LiteRT file.

    `weights_file` is the content of the `.h5` or `.keras` file that `spec.weights` names.

    Raises
    ------
    FruitsError
        If TensorFlow is not installed, or Keras cannot get or fit the weights.
    """
    if find_spec("tensorflow") is None:
        raise FruitsError(
            f"TensorFlow, which exports {spec.backbone}, is not installed here: run `fruits export "
            f"--backbone {spec.backbone} --weights {spec.weights} --to FILE.tflite` where it is, "
            "and give weights=FILE.tflite"
        )
    if weights_file is None:
        return _in_own_process(_convert, spec)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, Path(spec.weights).name)
        local.write_bytes(weights_file)
        return _in_own_process(_convert, replace(spec, weights=str(local)))


def imagenet_available() -> bool:
    """Return whether Keras has MobileNetV2's ImageNet weights cached or can download them now."""
    try:
        _in_own_process(_check_weights, check_backbone("mobilenet_v2"))
    except FruitsError:
        return False
    return True


def _in_own_process(function: Callable, argument):
    """Call a function where TensorFlow may take its memory and write its logs."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_start_quietly) as pool:
        try:
            return pool.submit(function, argument).result()
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
        _set_random_weights(model, spec.seed)
        return model
    try:
        model.load_weights(spec.weights)
    except Exception as error:
        raise FruitsError(
            f"{Path(spec.weights).name} does not fit {spec.backbone} without its top "
            f"({str(error).splitlines()[0]}): give weights saved from that network"
        ) from None
    return model


def _set_random_weights(model, seed: int) -> None:
    """Draw every kernel from He's normal distribution, the same on any machine.

    Keras' own initializers shrink MobileNetV2's features to 1e-12, because its batch normalization
    has seen no data; variance 2 / fan_in keeps them near one (He et al. 2015, arXiv:1502.01852,
    equation 10).
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if variable.path.endswith("kernel"):
            shape = variable.shape
            depthwise = "depthwise" in variable.path.lower()
            fan_in = np.prod(shape[:2] if depthwise else shape[:-1])
            variable.assign(generator.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32))


def _check_weights(spec: BackboneSpec) -> None:
    _model(spec)


def _convert(spec: BackboneSpec) -> bytes:
    import keras
    import tensorflow as tf

    preprocess = getattr(keras.applications, NETWORKS[spec.backbone].module).preprocess_input
    image = keras.Input((spec.input_size, spec.input_size, 3), batch_size=1, dtype="uint8")
    features = _model(spec)(preprocess(keras.ops.cast(image, "float32")), training=False)
    return tf.lite.TFLiteConverter.from_keras_model(keras.Model(image, features)).convert()
