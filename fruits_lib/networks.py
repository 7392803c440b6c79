"""The networks that can be a backbone, and what may be asked of one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.request import Request, urlopen

from fruits_lib.errors import FruitsError

KERAS_WEIGHTS = ("imagenet", "random")  # what Keras has without a file
# What Keras downloads, to ask without TensorFlow, whose import takes seconds.
IMAGENET_WEIGHTS = (
    "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
    "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
)


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
    "mobilenet_v3_small": Network("mobilenet_v3", "MobileNetV3Small", 224, 576),
    "mobilenet_v3_large": Network("mobilenet_v3", "MobileNetV3Large", 224, 960),
    "efficientnet_b0": Network("efficientnet", "EfficientNetB0", 224, 1280),
    "efficientnet_v2_b0": Network("efficientnet_v2", "EfficientNetV2B0", 224, 1280),
    "resnet50": Network("resnet50", "ResNet50", 224, 2048),
    "vgg16": Network("vgg16", "VGG16", 224, 512),
    "inception_v3": Network("inception_v3", "InceptionV3", 299, 2048, smallest=75),
    "densenet121": Network("densenet", "DenseNet121", 224, 1024),
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

    @classmethod
    def of(cls, entry: Mapping) -> "BackboneSpec":
        """Return the specification in `backbone.json`, or in the manifest's entry of 02."""
        return cls(**{field.name: entry[field.name] for field in fields(cls)})


def check_backbone(
    backbone: str = "mobilenet_v2",
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


def keras_models() -> Path:
    """Return the folder where Keras keeps the weights that it downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras", "models")


def imagenet_available() -> bool:
    """Return whether Keras has MobileNetV2's ImageNet weights, or can reach them in 5 seconds."""
    if (keras_models() / IMAGENET_WEIGHTS.rpartition("/")[2]).is_file():
        return True
    try:
        urlopen(Request(IMAGENET_WEIGHTS, method="HEAD"), timeout=5).close()
    except OSError:
        return False
    return True
