"""`fruits export --run-dir`: network, scaler, components and classifier of a run as one file.

The file takes one photograph, uint8 RGB (1, size, size, 3), and gives float32 probabilities
(1, labels). It is built like a backbone (see `backbones`), then judged by what Spark answered.
"""

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

import fruits_lib
from fruits_lib import appfile, storage
from fruits_lib.backbones import in_tensorflow, network
from fruits_lib.errors import FruitsError
from fruits_lib.networks import KERAS_WEIGHTS, BackboneSpec, check_backbone
from fruits_lib.results import Results, open_results
from fruits_lib.splits import FITTED_SHARE
from fruits_lib.udf import ImageError, decode_image, open_backbone

PRECISIONS = ("float32", "float16", "int8")
# The largest difference of a probability. Half precision keeps 11 bits of each weight: of 992
# photographs, 5e-3 was seen. Eight bits whose ranges fit gave 9e-3 there; beyond 0.05, a label that
# leads by ten points may lose.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "int8": 5e-2}
TOLERANCE = TOLERANCES["float32"]  # of features too, by their largest
CALIBRATION = 200  # photographs, by which int8 finds the range of every layer
BLOCK = 64  # photographs that are decoded, then answered by one file after the other


@dataclass(frozen=True)
class Agreement:
    """What a file answers, beside Spark's answers for the same photographs."""

    precision: str
    same_label: float  # share of the photographs
    difference: float  # the largest, of the probability of Spark's label
    accuracy: float  # share of the labelled photographs
    milliseconds: float  # per photograph on one core, decoding left out; median
    size: int  # bytes


@dataclass(frozen=True)
class Exported:
    """What `export_run` wrote. As text: a table in Markdown, which is written beside the file."""

    file: str
    labels: int
    input_size: int
    network: str  # how it was found to be the run's
    photographs: int
    tested_on: str  # what 06 calls them
    left_out: int  # photographs that could not be read
    calibrated: int  # photographs that gave int8 its ranges
    agreements: list[Agreement]  # float32, then the precision that was asked for

    @property
    def fault(self) -> str:
        """Why the file should not be used as it is, or nothing."""
        found = self.agreements[-1]
        if found.difference <= TOLERANCES[found.precision]:
            return ""
        better = {"int8": "float16", "float16": "float32"}[found.precision]
        return (
            f"{found.precision} differs from Spark by {found.difference:.1e} in a probability, "
            f"more than {TOLERANCES[found.precision]}: give --precision {better}, or a run with "
            f"more photographs; {self.file} was written all the same"
        )

    def __str__(self) -> str:
        size = self.input_size
        judged = (
            f"Judged by {self.photographs:,} photographs that the classifier was not fitted on: "
            f"{self.tested_on}"
        )
        if self.left_out:
            judged += f"; {self.left_out:,} more could not be read"
        intervals = [interval(found.same_label, self.photographs) for found in self.agreements]
        table = {
            "": [found.precision for found in self.agreements],
            "same label as Spark": [f"{found.same_label:.2%}" for found in self.agreements],
            "95 % interval of that share (Wilson)": [
                f"{low:.1%} to {high:.1%}" for low, high in intervals
            ],
            "largest difference of a probability": [
                f"{found.difference:.1e}" for found in self.agreements
            ],
            "accuracy": [f"{found.accuracy:.2%}" for found in self.agreements],
            "milliseconds per photograph, one core": [
                f"{found.milliseconds:.2f}" for found in self.agreements
            ],
            "megabytes": [f"{found.size / 1e6:.2f}" for found in self.agreements],
        }
        rows = [f"| {name:<37} | " + " | ".join(f"{v:>16}" for v in table[name]) for name in table]
        rows.insert(1, f"| {'-' * 37} | " + " | ".join("-" * 15 + ":" for _ in self.agreements))
        notes = [self.fault]
        if self.agreements[-1].precision == "int8" and self.calibrated < CALIBRATION:
            notes.append(
                f"int8 found the range of every layer by {self.calibrated:,} photographs, fewer "
                f"than {CALIBRATION}: others may go beyond"
            )
        lines = [
            self.file,
            "",
            f"uint8 RGB photograph {size} x {size} -> {self.labels:,} float32 probabilities. "
            f"{self.network}",
            f"{judged}.",
            "",
            *(f"{row} |" for row in rows),
            *(f"\nWarning: {note}." for note in notes if note),
        ]
        return "\n".join(lines)


def interval(share: float, n: int) -> tuple[float, float]:
    """Return the bounds of the 95 % interval of a share of n trials.

    By E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209-212: it holds
    for shares of 0 and 1 too.
    """
    z = 1.959964  # of the normal distribution, with 2.5 % beyond
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def export_run(run_dir: str, target: str, precision: str = "float32", **asked) -> Exported:
    """Write `<name>.tflite`, and a table of what it answers as `<name>.md`, into a folder.

    Parameters
    ----------
    run_dir, target : str
        A run that has finished 06, and the folder: paths or URIs.
    precision : str
        One of `PRECISIONS`.
    **asked
        weights and seed, where those of the run are a `.tflite` file or are gone.

    Raises
    ------
    FruitsError
        If the run has no classifier, its network cannot be built again, or the file in float32
        does not answer what Spark did. Another precision that does not is written, and its `fault`
        says so.
    """
    if precision not in PRECISIONS:
        raise FruitsError(
            f"--precision {precision} is not known: choose one of {', '.join(PRECISIONS)}"
        )
    run = open_results(run_dir)
    classify = run.require("classify")
    spec, weights_file = _weights(run, asked)
    storage.check_writable(target, "--to")
    answers = run.read_table("labels", ["path", "label", "split", "predicted", "probability"])
    fitted, judged = _parts(answers.to_pandas(), classify)
    if len(judged) != classify["tested"]:
        raise FruitsError(
            f"{run.uri}/labels has {len(judged):,} photographs to test on, and 06_classify "
            f"recorded {classify['tested']:,}: run 06_classify again"
        )
    chosen = fitted.sample(min(CALIBRATION, len(fitted)), random_state=0)["path"]
    calibration = [pixels for _, pixels in _decoded(run, chosen)]
    if not calibration:
        raise FruitsError(f"{run.data} has no photograph of the run left: bring them back")
    classifier = run.read_npz("classifier.npz")
    layers = _layers(run.read_npz("model.npz"), classifier)
    alone, plain, asked_for = in_tensorflow(
        _convert, spec, weights_file, layers, precision, np.stack(calibration)
    )
    same_network = _same_network(run, spec, alone, calibration[:BLOCK])
    labels, name = list(map(str, classifier["labels"])), f"{run.spec.name}-{precision}"
    facts = _facts(run, labels, precision)
    files = {"float32": plain, precision: asked_for}
    packed = {key: appfile.pack(file, name, labels, facts) for key, file in files.items()}
    agreements, found = _judge(run, judged, labels, packed)
    if not agreements[0].difference <= TOLERANCE:  # also if it is not a number
        raise FruitsError(
            f"the float32 file differs from Spark by {agreements[0].difference:.1e} in a "
            f"probability, more than {TOLERANCE}: nothing was written, run 06_classify again"
        )
    file = f"{target.rstrip('/')}/{name}.tflite"
    exported = Exported(
        file,
        len(labels),
        spec.input_size,
        same_network,
        found,
        classify["tested_on"],
        len(judged) - found,
        len(calibration),
        agreements,
    )
    storage.write_bytes(file, packed[precision])
    storage.write_text(file.replace(".tflite", ".md"), f"{exported}\n")
    return exported


def _parts(answers, classify: dict):
    """Return the rows of `labels/` that 06 fitted, and those that it tested: see `splits`."""
    answers = answers[answers["label"].notna()]
    if classify["fitted_on"] == "Training":
        fitted = answers["split"] == "Training"
        known = answers["label"].isin(answers["label"][fitted])
        return answers[fitted], answers[known & (answers["split"] == classify["tested_on"])]
    texts = (f"{classify['seed']}/{path}" for path in answers["path"])
    chance = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    answers = answers.assign(chance=chance).sort_values(["chance", "path"])
    of_label = answers.groupby("label")["path"]
    bound = (FITTED_SHARE * of_label.transform("size")).astype(int).clip(lower=1)
    fitted = of_label.cumcount() < bound
    return answers[fitted], answers[~fitted]


def _weights(run: Results, asked: dict) -> tuple[BackboneSpec, bytes | None]:
    """Return the network to build, and the content of its weights file if it has one."""
    for name in sorted(asked.keys() - {"weights", "seed"}):
        option = f"--{name.replace('_', '-')}"
        raise FruitsError(f"{option} {asked[name]} is given by --run-dir: leave it out")
    spec = run.spec
    spec = check_backbone(**{**vars(spec), **asked})
    if spec.weights.endswith(".tflite"):
        raise FruitsError(
            f"the run's network is {spec.weights}, to which no layers can be added: give the "
            "weights that it was exported from, --weights imagenet or FILE.h5; they are compared"
        )
    if spec.weights in KERAS_WEIGHTS:
        return spec, None
    try:
        return spec, storage.read_bytes(spec.weights)
    except OSError:
        raise FruitsError(
            f"weights={spec.weights} cannot be read: give their new place, --weights FILE.h5"
        ) from None


def _layers(model: dict, classifier: dict) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return name, kernel and bias of the layers behind the features."""
    scaled = model["components"] * model["scale"]
    return [
        ("scores", scaled.T, -scaled @ model["mean"]),
        ("logits", classifier["coefficients"].T, classifier["intercepts"]),
    ]


def _convert(
    spec: BackboneSpec, layers: list, precision: str, photographs: np.ndarray
) -> tuple[bytes, bytes, bytes]:
    """Return LiteRT files: the backbone, with all layers in float32, and in a precision.

    `photographs`, uint8 (n, size, size, 3), show int8 the range of every layer.
    """
    import keras
    import tensorflow as tf

    image, features = network(spec)
    # First, for a file has the names of Keras' objects inside, which number them.
    alone = tf.lite.TFLiteConverter.from_keras_model(keras.Model(image, features)).convert()
    answer = features
    for name, kernel, bias in layers:
        layer = keras.layers.Dense(len(bias), name=name)
        answer = layer(answer)
        layer.set_weights([kernel, bias])
    whole = keras.Model(image, keras.layers.Softmax(name="probabilities")(answer))

    def convert(precision: str) -> bytes:
        converter = tf.lite.TFLiteConverter.from_keras_model(whole)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.representative_dataset = lambda: ([pixels[None]] for pixels in photographs)
        return converter.convert()

    plain = convert("float32")
    return alone, plain, plain if precision == "float32" else convert(precision)


def _same_network(run: Results, spec: BackboneSpec, alone: bytes, photographs: list) -> str:
    """Say how the network is that of the run, or raise FruitsError if it is not."""
    content = run.read_backbone()
    if hashlib.sha256(alone).digest() == hashlib.sha256(content).digest():
        return "Its network is the run's, byte for byte."
    ours, theirs = (
        np.stack([infer(pixels) for pixels in photographs])
        for infer in map(open_backbone, (alone, content))
    )
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not difference <= TOLERANCE:  # also if it is not a number
        raise FruitsError(
            f"weights={spec.weights} gives features that differ from the run's by "
            f"{difference:.1%}: give the weights that the run's network has"
        )
    return (
        f"Its network is not the run's byte for byte; features of {len(photographs)} photographs "
        f"differ by {difference:.1e} of the largest at most."
    )


def _facts(run: Results, labels: list[str], precision: str) -> dict:
    """Return what `metadata.json` tells an app, and no name of a person's folder."""
    size, classify = run.spec.input_size, run.require("classify")
    return {
        "input": f"uint8 RGB, 1 x {size} x {size} x 3, values 0 to 255; resize the upright "
        "photograph to the square, bicubic, without cropping",
        "output": f"float32 probabilities, 1 x {len(labels)}, in the order of labels",
        "labels": labels,
        "precision": precision,
        "network": run.spec.name,
        "weights_sha256": run.require("featurize")["weights_sha256"],
        "components": run.require("pca")["k"],
        **{key: classify[key] for key in ("fitted_on", "tested_on", "accuracy")},
        "fruits_lib": fruits_lib.__version__,
    }


def _decoded(run: Results, paths) -> Iterator[tuple[int, np.ndarray]]:
    """Yield number and pixels of the photographs that can be read."""
    for number, content in enumerate(run.photographs(paths)):
        try:
            if content is not None:
                yield number, decode_image(content, run.spec.input_size, run.decoding)
        except ImageError:
            continue  # it has changed


def _judge(run: Results, judged, labels: list[str], files: dict) -> tuple[list[Agreement], int]:
    """Return what files answer for photographs of `labels/`, and how many could be read."""
    expected = appfile.lines(labels)
    for file in files.values():
        if any(found != expected for found in appfile.read_labels(file)):
            raise FruitsError(
                f"{appfile.LABELS} of the file does not hold the {len(labels):,} labels in their "
                "order: nothing was written, report it with the names of the label folders"
            )
    answer = {precision: open_backbone(file) for precision, file in files.items()}
    answers = {precision: [] for precision in files}
    seconds = {precision: [] for precision in files}
    found, decoded = [], _decoded(run, judged["path"])
    while block := list(islice(decoded, BLOCK)):  # one file after the other, each with warm caches
        found += [number for number, _ in block]
        for precision, infer in answer.items():
            for _, pixels in block:
                started = time.perf_counter()
                probabilities = infer(pixels)
                seconds[precision].append(time.perf_counter() - started)
                answers[precision].append(probabilities.copy())
    if not found:
        raise FruitsError(f"{run.data} has no photograph of the run left: bring them back")
    rows, names = judged.iloc[found], np.array(labels)
    of_spark = rows["predicted"].map({label: i for i, label in enumerate(labels)}).to_numpy()
    labelled = rows["label"].notna().to_numpy()
    agreements = []
    for precision, file in files.items():
        table = np.stack(answers[precision])
        best = table.argmax(axis=1)
        of_label = table[np.arange(len(table)), of_spark]
        agreements.append(
            Agreement(
                precision,
                float((best == of_spark).mean()),
                float(np.abs(of_label - rows["probability"].to_numpy()).max()),
                float((names[best] == rows["label"])[labelled].mean()),
                1000 * float(np.median(seconds[precision])),
                len(file),
            )
        )
    return agreements, len(found)
