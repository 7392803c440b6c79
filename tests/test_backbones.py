"""A backbone is a Keras network, exported once per run to a LiteRT file that computes the same."""

import errno
import hashlib
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from servers import answering

from fruits_lib import backbones, networks
from fruits_lib.backbones import export, export_backbone
from fruits_lib.errors import FruitsError
from fruits_lib.networks import NETWORKS, check_backbone
from fruits_lib.runs import open_run
from fruits_lib.udf import decode_image, open_backbone

# Keras alone, none of our code: a network, its weights in every format, and what it predicts.
KERAS = """
import sys, keras, numpy as np, tensorflow as tf
size, weights, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
model = keras.applications.MobileNetV2(
    include_top=False, pooling="avg", input_shape=(size, size, 3),
    weights="imagenet" if weights == "imagenet" else None,
)
if weights == "random":
    generator = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if variable.path.endswith("kernel"):
            fan_in = np.prod(variable.shape[: 2 if "depthwise" in variable.path else 3])
            variable.assign(generator.normal(0, np.sqrt(2 / fan_in), variable.shape))
    model.save(f"{folder}/whole.keras")
    model.save(f"{folder}/whole.h5")
    model.save_weights(f"{folder}/alone.weights.h5")
    image = keras.Input((32, 32, 3), batch_size=1)
    plain = keras.Model(image, keras.layers.Dense(1280)(keras.layers.Flatten()(image)))
    with open(f"{folder}/float.tflite", "wb") as file:
        file.write(tf.lite.TFLiteConverter.from_keras_model(plain).convert())
pixels = keras.applications.mobilenet_v2.preprocess_input(np.load(f"{folder}/pixels.npy") * 1.0)
np.save(f"{folder}/features.npy", model.predict(pixels, verbose=0))
"""

# The networks that we would export, as one array of weights each: much quicker than the export.
BUILD = """
import io, sys, json, numpy as np
from fruits_lib.backbones import _model
from fruits_lib.networks import check_backbone
for asked in json.loads(sys.argv[1]):
    model = _model(check_backbone("mobilenet_v2", input_size=32, **asked))
    stream = io.BytesIO()  # np.save cannot write to a pipe
    np.save(stream, np.concatenate([w.ravel() for w in model.get_weights()]))
    sys.stdout.buffer.write(stream.getvalue())
"""


# What Keras says of each network that we have: widths, the smallest input, features at random.
FACTS = """
import sys, json, keras, numpy as np
from fruits_lib.backbones import _model
from fruits_lib.networks import NETWORKS, check_backbone
facts = {}
for name, network in NETWORKS.items():
    build, size = getattr(keras.applications, network.function), network.smallest
    try:
        build(include_top=False, weights=None, input_shape=(size - 1, size - 1, 3))
        refused = ""
    except ValueError as error:
        refused = str(error)
    options = dict(include_top=False, weights=None, input_shape=(size, size, 3))
    module = getattr(keras.applications, network.module)
    pixels = module.preprocess_input(np.load(sys.argv[1])[:, :size, :size].astype("float32"))
    model = _model(check_backbone(name, "random", size))
    features = np.asarray(model(pixels, training=False))
    facts[name] = dict(
        refused=refused, scale=float(features.std()),
        widths=[features.shape[1], build(pooling="max", **options).output_shape[1]],
        differ=float(features.std(axis=0).mean() / features.std()),
    )
print("FACTS" + json.dumps(facts))
"""

# EfficientNetB0 as Keras builds it for ImageNet weights, which are not at hand.
IMAGENET = """
import sys, keras, numpy as np
from unittest.mock import patch
from keras.src.utils import file_utils
from fruits_lib.backbones import _model
from fruits_lib.networks import check_backbone
with patch.object(keras.Model, "load_weights"), patch.object(file_utils, "get_file"):
    model = keras.applications.EfficientNetB0(
        include_top=False, pooling="avg", input_shape=(32, 32, 3), weights="imagenet"
    )
model.get_layer("normalization").adapt_mean.assign([0.485, 0.456, 0.406])
model.get_layer("normalization").adapt_variance.assign([0.229, 0.224, 0.225])
model.get_layer("normalization").finalize_state()
model.save_weights(sys.argv[1])
ours = _model(check_backbone("efficientnet_b0", sys.argv[1], 32))
pixels = np.load(sys.argv[2])[:, :32, :32].astype("float32")

def seen(model):  # by the first convolution: what follows is the same
    return keras.Model(model.input, model.get_layer("stem_conv").output).predict(pixels, verbose=0)

np.testing.assert_allclose(seen(ours), seen(model), rtol=1e-4, atol=1e-5)
assert abs(seen(ours)).max() > 0.1
"""

# Module of preprocessing by Keras' documentation, None where the network has it inside; width; the
# pooling that is exported.
KNOWN = {
    "mobilenet_v2": ("mobilenet_v2", 1280, "max"),
    "mobilenet_v3_small": (None, 576, "avg"),
    "mobilenet_v3_large": (None, 960, "max"),
    "efficientnet_b0": (None, 1280, "avg"),
    "efficientnet_v2_b0": (None, 1280, "max"),
    "resnet50": ("resnet50", 2048, "avg"),
    "vgg16": ("vgg16", 512, "max"),
    "inception_v3": ("inception_v3", 2048, "avg"),
    "densenet121": ("densenet", 1024, "max"),
}


def python(code, *arguments):
    """Run code with TensorFlow in a process of its own; return what it wrote."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    answer = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True)
    assert answer.returncode == 0, answer.stderr.decode()
    return answer.stdout


def in_keras(size, weights, folder, photographs):
    """Return pixels (n, size, size, 3), and the features (n, 1280) that Keras predicts of them."""
    pixels = np.stack([decode_image(path.read_bytes(), size) for path in photographs])
    np.save(folder / "pixels.npy", pixels)
    python(KERAS, size, weights, folder)
    return pixels, np.load(folder / "features.npy")


def in_litert(content, pixels):
    infer = open_backbone(content)
    return np.stack([infer(image).copy() for image in pixels])


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def no_export(*_):
    pytest.fail("a backbone was exported")


@pytest.fixture
def run(spark, tmp_path):
    return open_run(spark, str(tmp_path / "run"))


@pytest.fixture(scope="module")
def keras(sample, tmp_path_factory):
    """A network of random weights at 32 px: (folder of weight files, pixels, its features)."""
    folder = tmp_path_factory.mktemp("keras weights é 100%")
    photographs = sorted(sample.glob("*/*/*_100.*"))[:64]
    return folder, *in_keras(32, "random", folder, photographs)


@pytest.fixture(scope="module")
def built(keras):
    """Weights of each way to ask for them: .keras, .weights.h5, .h5; seed 0, 1."""
    files = [str(keras[0] / name) for name in ("whole.keras", "alone.weights.h5", "whole.h5")]
    asked = [{"weights": file} for file in files]
    asked += [{"weights": "random", "seed": seed} for seed in (0, 1)]
    stream = io.BytesIO(python(BUILD, json.dumps(asked)))
    return [np.load(stream) for _ in asked]


@pytest.fixture(scope="module")
def pixels(sample, tmp_path_factory):
    """A file of eight drawn photographs of different labels, uint8 (8, 75, 75, 3)."""
    file = tmp_path_factory.mktemp("pixels") / "75.npy"
    photographs = sorted(sample.glob("*/*/*_100.jpg"))[::12][:8]
    np.save(file, np.stack([decode_image(path.read_bytes(), 75) for path in photographs]))
    return file


@pytest.fixture(scope="module")
def facts(pixels):
    return json.loads(python(FACTS, pixels).split(b"FACTS")[1])


# --- what may be asked for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"backbone": "vgg17"}, r"^backbone='vgg17' .* one of mobilenet_v2, .*, densenet121$"),
        ({"input_size": 31}, r"^input_size=31 is below 32 pixels, .* or 0 for its own 224$"),
        (
            {"backbone": "inception_v3", "input_size": 74},
            r"^input_size=74 is below 75 pixels, the least that inception_v3 .* own 299$",
        ),
        ({"input_size": -1}, r"^input_size=-1 is below 32 pixels"),
        ({"weights": "noisy"}, r"^weights='noisy' is neither imagenet nor random nor .*give one"),
        ({"weights": "/a/b.pt"}, r"^weights='/a/b.pt' is neither"),
        ({"pooling": ""}, r"^pooling='' is not known: choose one of avg, max$"),
        ({"seed": -1}, r"^seed=-1 is outside 0 to 2\*\*32 - 1: choose one inside$"),
        ({"seed": 2**32}, r"^seed=4294967296 is outside"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(asked, message):
    with pytest.raises(FruitsError, match=message):
        check_backbone(**{"backbone": "mobilenet_v2", **asked})


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_has_an_input_size_of_its_own(name):
    assert check_backbone(name).input_size == (299 if name == "inception_v3" else 224)


def test_the_message_names_every_network():
    with pytest.raises(FruitsError, match=", ".join(KNOWN)):
        check_backbone("vgg17")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_registry_knows_width_and_smallest_input_as_keras_does(facts, name):
    assert facts[name]["widths"] == [NETWORKS[name].width] * 2 == [KNOWN[name][1]] * 2
    assert f"at least {NETWORKS[name].smallest}" in facts[name]["refused"]


@pytest.mark.parametrize("name", NETWORKS)
def test_random_features_are_near_one_and_tell_images_apart(facts, name):
    assert 0.01 < facts[name]["scale"] < 1000
    assert facts[name]["differ"] > 0.05


def test_a_weights_file_brings_all_of_keras_preprocessing(pixels, tmp_path):
    python(IMAGENET, tmp_path / "b0.weights.h5", pixels)


def test_the_seed_matters_for_random_weights_alone():
    assert check_backbone("vgg16", "imagenet", seed=5) == check_backbone("vgg16", "imagenet")
    assert check_backbone("vgg16", "random", seed=5) != check_backbone("vgg16", "random")


# --- the LiteRT file ----------------------------------------------------------------------------


def test_litert_features_equal_keras_of_the_same_weights(keras):
    folder, pixels, features = keras
    assert len(pixels) == 64
    file = folder / "whole.keras"
    content = export(check_backbone("mobilenet_v2", str(file), 32), file.read_bytes())
    assert np.abs(features).max() > 0.1  # else equal means nothing
    assert np.abs(in_litert(content, pixels) - features).max() <= 1e-3


@pytest.mark.slow
def test_litert_features_equal_keras_on_real_photographs(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(shared / "keras"))
    photographs = sorted((shared / "fruits360").glob("*/*/*.jpg"))[::61][:64]
    pixels, features = in_keras(224, "imagenet", tmp_path, photographs)
    content = export(check_backbone("mobilenet_v2", "imagenet"))
    assert len(features) == 64
    assert np.abs(in_litert(content, pixels) - features).max() <= 1e-3


def test_every_file_format_gives_the_same_weights(built):
    np.testing.assert_array_equal(built[0], built[1])
    np.testing.assert_array_equal(built[0], built[2])


def test_random_weights_are_others_for_another_seed(built):
    kernels = built[3] != built[4]
    assert kernels.mean() > 0.9
    assert not np.array_equal(built[0], built[3])


def test_the_same_seed_gives_the_same_file(tiny, cache):
    assert export(check_backbone("mobilenet_v2", "random", 32)) == tiny.read_bytes()


def test_random_features_tell_images_apart(tiny, keras):
    features = in_litert(tiny.read_bytes(), keras[1])
    assert 0.01 < features.std() < 100
    assert (features.std(axis=0) > 1e-3).mean() > 0.5


# --- one backbone per run -----------------------------------------------------------------------


@pytest.fixture
def tiny_run(run, tiny):
    export_backbone(run, weights=str(tiny), input_size=32)
    return run


def test_a_litert_file_is_used_byte_for_byte(run, tiny, monkeypatch):
    monkeypatch.setattr(backbones, "export", no_export)
    backbone = export_backbone(run, weights=str(tiny), input_size=32)
    assert backbone.content == tiny.read_bytes()
    assert backbone.sha256 == sha256(tiny.read_bytes())
    assert backbone.width == 1280
    assert run.read_bytes("backbone/mobilenet_v2-32-avg-file.tflite") == backbone.content


def test_the_run_folder_says_what_its_backbone_is(tiny_run, tiny):
    assert json.loads(tiny_run.read_bytes("backbone/backbone.json")) == {
        "backbone": "mobilenet_v2",
        "weights": str(tiny),
        "input_size": 32,
        "pooling": "avg",
        "seed": 0,
        "width": 1280,
        "sha256": sha256(tiny.read_bytes()),
        "decoding": 2,
    }


def test_a_later_stage_reuses_the_file(run, tiny, monkeypatch):
    monkeypatch.setattr(backbones, "export", lambda spec: tiny.read_bytes())
    first = export_backbone(run, weights="random", input_size=32)
    monkeypatch.setattr(backbones, "export", no_export)
    assert export_backbone(run, weights="random", input_size=32) == first


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"backbone": "vgg16"}, r"backbone=mobilenet_v2 where backbone=vgg16 is asked for"),
        ({"input_size": 64}, r"input_size=32 where input_size=64 is asked for"),
        ({"pooling": "max"}, r"pooling=avg where pooling=max is asked for"),
        ({"weights": "imagenet"}, r"weights=\S+/tiny.tflite where weights=imagenet is asked for"),
    ],
)
def test_another_backbone_needs_another_run(tiny_run, tiny, other, difference):
    asked = {"backbone": "mobilenet_v2", "weights": str(tiny), "input_size": 32, **other}
    with pytest.raises(FruitsError, match=f"features with {difference}: give another run_dir$"):
        export_backbone(tiny_run, **asked)


def test_a_backbone_that_was_replaced_is_refused(tiny_run, tiny):
    tiny_run.write_bytes("backbone/mobilenet_v2-32-avg-file.tflite", b"another")
    with pytest.raises(FruitsError, match=r"is not the file that was exported: give another run"):
        export_backbone(tiny_run, weights=str(tiny), input_size=32)


def test_a_damaged_backbone_json_is_one_line(tiny_run, tiny):
    tiny_run.write_bytes("backbone/backbone.json", b'{"width"')
    message = r"^\S+/backbone\.json is not JSON: remove it and run 02_featurize again$"
    with pytest.raises(FruitsError, match=message):
        export_backbone(tiny_run, weights=str(tiny), input_size=32)


def test_a_backbone_says_what_it_does(tiny_run, tiny):
    backbone = export_backbone(tiny_run, weights=str(tiny), input_size=32)
    assert str(backbone) == (f"mobilenet_v2, {tiny} weights: image 32 x 32 x 3 -> 1280 features")


# --- weights that cannot be had -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "maps"),
    [
        ({"input_size": 64}, r"uint8 \[1, 64, 64, 3\] -> float32 \[1, 1280\]"),
        ({"backbone": "vgg16", "input_size": 32}, r"uint8 \[1, 32, 32, 3\] -> float32 \[1, 512\]"),
    ],
)
def test_a_litert_file_of_another_shape_is_refused(run, tiny, asked, maps):
    message = rf"tiny.tflite maps uint8 \[1, 32, 32, 3\] -> float32 \[1, 1280\], where .* {maps}: "
    with pytest.raises(FruitsError, match=message):
        export_backbone(run, **{"backbone": "mobilenet_v2", "weights": str(tiny), **asked})
    assert not run.exists("backbone")


def test_a_litert_file_without_preprocessing_is_refused(run, keras):
    with pytest.raises(FruitsError, match=r"maps float32 \[1, 32, 32, 3\] -> float32 \[1, 1280\]"):
        export_backbone(run, weights=str(keras[0] / "float.tflite"), input_size=32)


@pytest.mark.parametrize("content", [b"", b"any\ntext\n", b"\x1c\0\0\0TFL3" + bytes(range(256))])
def test_what_is_no_litert_file_is_one_line(run, tmp_path, content):
    file = tmp_path / "x.tflite"
    file.write_bytes(content)
    with pytest.raises(
        FruitsError, match=r"x\.tflite is not a LiteRT file \(.*\): export"
    ) as caught:
        export_backbone(run, weights=str(file), input_size=32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.tflite", "absent.keras", "absent.h5"])
def test_a_missing_weights_file_is_one_line(run, tmp_path, name):
    with pytest.raises(FruitsError, match=rf"/{name} does not exist: check the path$"):
        export_backbone(run, weights=str(tmp_path / name))


def test_weights_of_another_network_are_refused(keras):
    file = keras[0] / "alone.weights.h5"
    spec = check_backbone("vgg16", str(file), 32)
    message = r"^alone\.weights\.h5 does not fit vgg16 without its top \(.*\): give weights saved"
    with pytest.raises(FruitsError, match=message) as caught:
        export(spec, file.read_bytes())
    assert "\n" not in str(caught.value)


def test_imagenet_out_of_reach_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    message = (
        r"^ImageNet weights of mobilenet_v2 are not in Keras' cache and cannot be downloaded "
        r"\(.*\): give weights=FILE\.h5, or weights=random to try things out$"
    )
    with pytest.raises(FruitsError, match=message) as caught:
        export(check_backbone("mobilenet_v2"))
    assert "\n" not in str(caught.value)


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    """An empty folder where Keras keeps its weights, and no host that has any."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/weights.h5"
    monkeypatch.setattr(networks, "IMAGENET_WEIGHTS", url)
    return tmp_path / "models"


def test_imagenet_is_within_reach_where_keras_has_it(keras_home):
    assert not networks.imagenet_available()
    (keras_home / "weights.h5").write_bytes(b"")
    assert networks.imagenet_available()


@pytest.mark.parametrize("status", [200, 403])
def test_imagenet_is_within_reach_where_it_can_be_downloaded(status, keras_home, monkeypatch):
    with answering((status, {}, b"")) as server:
        monkeypatch.setattr(networks, "IMAGENET_WEIGHTS", f"{server}/weights.h5")
        assert networks.imagenet_available() is (status == 200)


def test_keras_downloads_from_where_it_is_asked():
    (package,) = find_spec("keras").submodule_search_locations
    source = Path(package, "src/applications/mobilenet_v2.py").read_text()
    folder, _, name = networks.IMAGENET_WEIGHTS.rpartition("/")
    assert f'"{folder}/"' in source
    assert f'"{name.removesuffix("1.0_224_no_top.h5")}"' in source


def test_without_tensorflow_the_error_names_the_command(cache, monkeypatch):
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)
    command = "fruits export --backbone vgg16 --weights imagenet --to FILE.tflite"
    with pytest.raises(FruitsError, match=rf"run `{command}` where it is, and give weights=FILE"):
        export(check_backbone("vgg16"))


# --- an export is cached ------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the user's."""
    monkeypatch.setenv("FRUITS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/backbones"


@pytest.fixture
def conversions(cache, monkeypatch):
    """The specifications that were converted, where a conversion takes no time."""
    done = []

    def convert(function, spec, weights_file):
        done.append(spec)
        return f"network {len(done)}".encode()

    monkeypatch.setattr(backbones, "in_tensorflow", convert)
    return done


def test_a_network_is_converted_once(conversions):
    spec = check_backbone("vgg16", "random")
    assert [export(spec) for _ in range(3)] == [b"network 1"] * 3
    assert conversions == [spec]


def test_two_who_want_a_network_at_once_convert_it_once(conversions, monkeypatch):
    spec, convert = check_backbone("vgg16", "random"), backbones.in_tensorflow
    both = threading.Barrier(2)

    def slow(*arguments):
        time.sleep(0.2)  # so that the other one would come here too
        return convert(*arguments)

    def ask(_):
        both.wait()
        return export(spec)

    monkeypatch.setattr(backbones, "in_tensorflow", slow)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(ask, range(2))) == [b"network 1"] * 2


def test_an_export_ahead_is_in_the_cache(conversions):
    spec = check_backbone("vgg16", "random")
    with backbones.export_ahead(spec):
        pass
    assert export(spec) == b"network 1"


def test_an_export_ahead_that_fails_fails_where_it_is_needed(cache, monkeypatch):
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)
    spec = check_backbone("vgg16", "random")
    with backbones.export_ahead(spec):
        pass
    with pytest.raises(FruitsError, match="is not installed"):
        export(spec)


@pytest.mark.parametrize(
    "other",
    [{"backbone": "resnet50"}, {"input_size": 96}, {"pooling": "max"}, {"seed": 1}],
    ids=lambda other: next(iter(other)),
)
def test_another_specification_is_another_export(conversions, other):
    asked = {"backbone": "vgg16", "weights": "random"}
    export(check_backbone(**asked))
    assert export(check_backbone(**{**asked, **other})) == b"network 2"


def test_weights_are_known_by_their_content(conversions):
    exported = [export(check_backbone("vgg16", "a.h5"), content) for content in (b"1", b"2", b"1")]
    assert exported == [b"network 1", b"network 2", b"network 1"]
    assert export(check_backbone("vgg16", "b.h5"), b"2") == b"network 2"


def test_imagenet_weights_are_those_that_keras_has(conversions, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    for number in (1, 2):
        (tmp_path / "models/vgg16.h5").write_bytes(b"\0" * number)
        for _ in range(2):
            assert export(check_backbone("vgg16")) == f"network {number}".encode()


def test_a_cache_that_cannot_be_written_costs_time_alone(conversions, cache):
    cache.parent.write_text("a file")
    assert [export(check_backbone("vgg16", "random")) for _ in range(2)] == [
        b"network 1",
        b"network 2",
    ]


def test_nothing_partial_is_left_in_the_cache(conversions, cache):
    export(check_backbone("vgg16", "random"))
    (file,) = cache.iterdir()
    assert file.read_bytes().endswith(b"network 1")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-4] + b"\0\0\0\0",
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content + b"\0",
    ],
    ids=["changed", "half", "empty", "longer"],
)
def test_a_damaged_file_in_the_cache_is_made_again(conversions, cache, damage):
    spec = check_backbone("vgg16", "random")
    export(spec)
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert [export(spec) for _ in range(2)] == [b"network 2"] * 2
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("call", ["flush", "replace"])
def test_a_full_disk_leaves_no_part_in_the_cache(conversions, cache, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "replace":
        monkeypatch.setattr(os, "replace", full)
    else:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        monkeypatch.setattr(backbones, "in_tensorflow", lambda *_: bytes(100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # real bytes, then an error
    try:
        assert export(check_backbone("vgg16", "random"))
    finally:
        if call == "flush":
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert list(cache.iterdir()) == []


def test_an_export_that_runs_out_of_memory_says_so():
    message = r"^the process of TensorFlow was killed: check whether the machine ran out of memory$"
    with pytest.raises(FruitsError, match=message):
        backbones._in_own_process(os._exit, 137)


def test_a_damaged_network_on_a_node_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    file = tmp_path / "share/fruits/backbones/vgg16-224-avg-imagenet.tflite"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"damaged")
    for text in ("", f"{sha256(b'whole')}  {file.name}\n"):
        Path(f"{file}.sha256").write_text(text)
        with pytest.raises(FruitsError, match=r"is not the file that .* wrote: remove it and run"):
            export(check_backbone("vgg16"))


def test_importing_the_library_does_not_import_tensorflow():
    code = (
        "import sys, fruits_lib.backbones, fruits_lib.featurize; print('tensorflow' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "False\n"


def test_a_node_takes_imagenet_from_where_bootstrap_put_it(spark, tiny, tmp_path, monkeypatch):
    file = tmp_path / "share/fruits/backbones/mobilenet_v2-32-avg-imagenet.tflite"
    file.parent.mkdir(parents=True)
    file.write_bytes(tiny.read_bytes())
    Path(f"{file}.sha256").write_text(f"{sha256(tiny.read_bytes())}  {file.name}\n")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    exported = export_backbone(
        open_run(spark, str(tmp_path / "run")), "mobilenet_v2", "imagenet", 32
    )
    assert exported.content == tiny.read_bytes()
