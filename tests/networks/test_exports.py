"""The LiteRT file of every network computes what Keras does: `make test-networks`."""

import json

import numpy as np
import pytest
from test_backbones import KNOWN, in_litert, python

from fruits_lib.networks import NETWORKS
from fruits_lib.udf import decode_image

# All networks in one process: the LiteRT file, and what Keras predicts with the same weights.
EXPORTS = """
import sys, json, keras, numpy as np
from fruits_lib.backbones import _convert, _model
from fruits_lib.networks import NETWORKS, check_backbone
folder, asked = sys.argv[1], json.loads(sys.argv[2])
for name, pooling, module in asked:
    spec = check_backbone(name, "random", NETWORKS[name].smallest, pooling)
    preprocess = getattr(keras.applications, module).preprocess_input if module else np.array
    pixels = preprocess(np.load(f"{folder}/{spec.input_size}.npy").astype("float32"))
    np.save(f"{folder}/{name}.npy", _model(spec).predict(pixels, verbose=0))
    with open(f"{folder}/{name}.tflite", "wb") as file:
        file.write(_convert(spec))
    keras.backend.clear_session()  # else each export is slower than the one before
"""


@pytest.fixture(scope="module")
def exported(sample, tmp_path_factory):
    """A folder with each network's file, the pixels of eight photographs, and Keras' features."""
    folder = tmp_path_factory.mktemp("exports")
    photographs = sorted(sample.glob("*/*/*_100.jpg"))[::12][:8]
    for size in {network.smallest for network in NETWORKS.values()}:
        pixels = [decode_image(path.read_bytes(), size) for path in photographs]
        np.save(folder / f"{size}.npy", np.stack(pixels))
    asked = [(name, pooling, module) for name, (module, _, pooling) in KNOWN.items()]
    python(EXPORTS, folder, json.dumps(asked))
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_of_every_network_computes_what_keras_does(exported, name):
    content = (exported / f"{name}.tflite").read_bytes()
    features = np.load(exported / f"{name}.npy")
    pixels = np.load(exported / f"{NETWORKS[name].smallest}.npy")
    assert features.shape == (8, NETWORKS[name].width)
    # Another preprocessing differs by a tenth of the largest feature or more, rounding by 1e-6 to
    # 1e-3 of it: random weights amplify what the processor rounds, EfficientNetV2B0's most of all.
    assert np.abs(in_litert(content, pixels) - features).max() <= 1e-2 * features.max()
