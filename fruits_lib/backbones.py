"""Backbones: Keras Applications networks without their top, exported once to one LiteRT file.

TensorFlow runs only here, in a process of its own, so that neither the driver nor the executors
carry it. The exported file takes one uint8 RGB image of shape (1, size, size, 3), has the network's
preprocessing inside, and gives float32 features of shape (1, width).
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from fruits_lib.errors import FruitsError
from fruits_lib.runs import Run, read_bytes

POOLINGS = ("avg", "max")


@dataclass(frozen=True)
class Network:
    """One network of `keras.applications`.

    Attributes
    ----------
    module, function : str
        `keras.applications.<module>.<function>` builds it; the module's `preprocess_input` is used.
    input_size : int
        Default side of the square input, in pixels.
    width : int
        Features per image after global pooling.
    smallest : int
        Smallest side that the network's strides allow, in pixels.
    """

    module: str
    function: str
    input_size: int
    width: int
    smallest: int = 32


NETWORKS = {
    "mobilenet_v2": Network("mobilenet_v2", "MobileNetV2", 224, 1280),
    "resnet50": Network("resnet50", "ResNet50", 224, 2048),
    "vgg16": Network("vgg16", "VGG16", 224, 512),
}


@dataclass(frozen=True)
class BackboneSpec:
    """What was asked for; it decides the features, so one run folder has one.

    Attributes
    ----------
    backbone : str
        A name in `NETWORKS`.
    weights : str
        `imagenet`, `random`, or the path or URI of a `.h5`, `.keras` or exported `.tflite` file.
    input_size : int
        Side of the square input in pixels.
    pooling : str
        `avg` or `max`.
    seed : int
        Of the random weights; 0 for all other weights.
    """

    backbone: str
    weights: str
    input_size: int
    pooling: str
    seed: int

    @property
    def name(self) -> str:
        weights = self.weights if self.weights in ("imagenet", "random") else "file"
        return f"{self.backbone}-{self.input_size}-{self.pooling}-{weights}"


@dataclass(frozen=True)
class Backbone:
    """An exported backbone.

    Attributes
    ----------
    spec : BackboneSpec
    width : int
        Features per image.
    sha256 : str
        Of the LiteRT file: the identity of the features.
    content : bytes
        The LiteRT file.
    """

    spec: BackboneSpec
    width: int
    sha256: str
    content: bytes

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
    """Return the specification of a backbone, or say in one line what is wrong with it.

    Parameters
    ----------
    backbone, weights, pooling, seed
        See `BackboneSpec`.
    input_size : int
        Side of the square input in pixels; 0 takes the network's own.

    Raises
    ------
    FruitsError
        If a value is out of its bounds.
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
    if weights not in ("imagenet", "random") and not weights.endswith((".h5", ".keras", ".tflite")):
        raise FruitsError(
            f"weights={weights!r} is neither imagenet nor random nor a .h5, .keras or .tflite "
            "file: give one of these"
        )
    if pooling not in POOLINGS:
        raise FruitsError(f"pooling={pooling!r} is not known: choose one of {', '.join(POOLINGS)}")
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
    """Return the run's backbone, exporting it to `backbone/<name>.tflite` when it is not there.

    Parameters
    ----------
    run : Run
    backbone, weights, input_size, pooling, seed
        See `check_backbone`.

    Raises
    ------
    FruitsError
        If a value is out of its bounds, the weights cannot be had or do not fit, TensorFlow is
        needed and missing, or the run folder holds another backbone.
    """
    spec = check_backbone(backbone, weights, input_size, pooling, seed)
    if run.exists("backbone/backbone.json"):
        return _read_exported(run, spec)
    installed = Path(sys.prefix, "share/fruits/backbones", f"{spec.name}.tflite")
    if weights.endswith(".tflite"):
        content = read_bytes(run.spark, weights)
    elif weights == "imagenet" and installed.is_file():  # a cluster's node, by bootstrap.sh
        content = installed.read_bytes()
    elif spec.weights in ("imagenet", "random"):
        content = export(spec)
    else:
        content = export(spec, read_bytes(run.spark, weights))
    exported = Backbone(
        spec, check_litert(content, spec), hashlib.sha256(content).hexdigest(), content
    )
    run.write_bytes(f"backbone/{spec.name}.tflite", content)
    run.write_bytes("backbone/backbone.json", json.dumps(_entry(exported), indent=2).encode())
    return exported


def _entry(backbone: Backbone) -> dict:
    return {**asdict(backbone.spec), "width": backbone.width, "sha256": backbone.sha256}


def _read_exported(run: Run, spec: BackboneSpec) -> Backbone:
    entry = json.loads(run.read_bytes("backbone/backbone.json"))
    width, sha256 = entry.pop("width"), entry.pop("sha256")
    there = BackboneSpec(**entry)
    if there != spec:
        differences = ", ".join(
            f"{name}={value} where {name}={asdict(spec)[name]} is asked for"
            for name, value in asdict(there).items()
            if value != asdict(spec)[name]
        )
        raise FruitsError(f"{run.uri} holds features with {differences}: give another run_dir")
    file = f"backbone/{spec.name}.tflite"
    content = run.read_bytes(file)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise FruitsError(
            f"{run.path(file)} is not the file that was exported: give another run_dir"
        )
    return Backbone(spec, width, sha256, content)


def check_litert(content: bytes, spec: BackboneSpec) -> int:
    """Return the width of a LiteRT file's features after checking that it is what we run.

    Parameters
    ----------
    content : bytes
        The file.
    spec : BackboneSpec
        What it should compute; its `weights` name the file in an error.

    Raises
    ------
    FruitsError
        If it is no LiteRT file, or has other inputs or outputs than the backbone.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    size, width = spec.input_size, NETWORKS[spec.backbone].width
    # Only shapes are read, so the delegate that would write to stderr can stay out.
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        network = Interpreter(model_content=content, experimental_op_resolver_type=plain)
    except ValueError as error:
        raise FruitsError(
            f"{spec.weights} is no LiteRT file ({error}): export one with `fruits export`"
        ) from None
    (image, *more_images), (features, *more_features) = (
        network.get_input_details(),
        network.get_output_details(),
    )
    found = " -> ".join(
        f"{tensor['dtype'].__name__} {list(tensor['shape'])}" for tensor in (image, features)
    )
    wanted = f"uint8 {[1, size, size, 3]} -> float32 {[1, width]}"
    if more_images or more_features or found != wanted:
        raise FruitsError(
            f"{spec.weights} maps {found}, where backbone={spec.backbone} at input_size={size} "
            f"maps {wanted}: give the matching backbone and input_size, or export it with "
            "`fruits export`"
        )
    return width


def export(spec: BackboneSpec, weights_file: bytes | None = None) -> bytes:
    """Build a network with Keras and convert it to LiteRT, in a process of its own.

    Parameters
    ----------
    spec : BackboneSpec
    weights_file : bytes, optional
        Content of the `.h5` or `.keras` file that `spec.weights` names.

    Returns
    -------
    bytes
        The LiteRT file.

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
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "backbone.tflite")
        if weights_file is not None:
            local = Path(folder, Path(spec.weights).name)
            local.write_bytes(weights_file)
            spec = replace(spec, weights=str(local))
        _in_own_process("export", {**asdict(spec), "target": str(target)})
        return target.read_bytes()


def imagenet_available(backbone: str = "mobilenet_v2") -> bool:
    """Say whether Keras has a network's ImageNet weights in its cache, or can download them now."""
    try:
        _in_own_process("build", asdict(check_backbone(backbone)))
    except FruitsError:
        return False
    return True


def _in_own_process(task: str, arguments: dict) -> None:
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
    }
    answer = subprocess.run(
        [sys.executable, "-m", "fruits_lib.backbones", task, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    if answer.returncode < 0:  # by a signal; its last line is any line of TensorFlow's log
        raise FruitsError(
            f"TensorFlow was killed by signal {-answer.returncode} over {arguments['backbone']}: "
            "look whether the machine runs out of memory"
        )
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        raise FruitsError(lines[-1])


def _build(spec: BackboneSpec):
    """Return the Keras model of a specification, without its top."""
    import keras

    network = NETWORKS[spec.backbone]
    module = getattr(keras.applications, network.module)
    build = getattr(module, network.function)
    shape = {"input_shape": (spec.input_size, spec.input_size, 3)}
    shape |= {"include_top": False, "pooling": spec.pooling}
    if spec.weights == "imagenet":
        try:
            return build(weights="imagenet", **shape)
        except Exception as error:
            raise FruitsError(
                f"ImageNet weights of {spec.backbone} are neither in Keras' cache nor within reach "
                f"({str(error).splitlines()[0]}): give weights=FILE.h5, or weights=random to try "
                "things out"
            ) from None
    model = build(weights=None, **shape)
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

    Keras' own initialisers shrink MobileNetV2's features to 1e-12, for its batch normalisation has
    seen no data; variance 2 / fan_in keeps them near one (He et al. 2015, arXiv:1502.01852,
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


def _export(spec: BackboneSpec, target: str) -> None:
    import keras
    import tensorflow as tf

    preprocess = getattr(keras.applications, NETWORKS[spec.backbone].module).preprocess_input
    image = keras.Input((spec.input_size, spec.input_size, 3), batch_size=1, dtype="uint8")
    features = _build(spec)(preprocess(keras.ops.cast(image, "float32")), training=False)
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(image, features))
    Path(target).write_bytes(converter.convert())


def _main(task: str, arguments: str) -> None:
    values = json.loads(arguments)
    target = values.pop("target", None)
    try:
        if task == "export":
            _export(BackboneSpec(**values), target)
        else:
            _build(BackboneSpec(**values))
    except FruitsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    import socket

    socket.setdefaulttimeout(20)  # Keras' download would wait for ever
    _main(*sys.argv[1:])
