"""What a LiteRT file says about itself, so that an app needs no other file.

Twice, because apps read it in two ways: as TensorFlow Lite's metadata (a flatbuffer in the model,
which MediaPipe and Android Studio read), and as a zip archive behind the model, which any zip
library opens. LiteRT reads neither.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence

import flatbuffers
import numpy as np

LABELS, FACTS = "labels.txt", "metadata.json"
# github.com/tensorflow/tflite-support, metadata_schema.fbs: its identifier, and its values of
# AssociatedFileType, ContentProperties and ColorSpaceType.
_IDENTIFIER, _PARSER = b"M001", "1.0.0"
# Where `str.splitlines` divides, and the backslash.
_ESCAPES = {
    ord(character): character.encode("unicode_escape").decode()
    for character in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\\"
}
_TENSOR_AXIS_LABELS, _IMAGE_PROPERTIES, _RGB = 2, 2, 1


def pack(model: bytes, name: str, labels: Sequence[str], facts: Mapping) -> bytes:
    """Return a LiteRT file with its labels and facts inside.

    Parameters
    ----------
    model : bytes
        A LiteRT file that maps one photograph to one probability per label.
    name : str
    labels : sequence of str
        In the order of the probabilities; `labels.txt` gets the `lines` of them.
    facts : mapping
        The content of `metadata.json`.
    """
    file = io.BytesIO(_with_metadata(model, _metadata(name)))
    with zipfile.ZipFile(file, "a") as archive:  # stored, as MediaPipe demands; dated 1980
        archive.writestr(zipfile.ZipInfo(LABELS), "".join(f"{line}\n" for line in lines(labels)))
        text = json.dumps(facts, indent=2, ensure_ascii=False)
        archive.writestr(zipfile.ZipInfo(FACTS), text)
    return file.getvalue()


def lines(labels: Sequence[str]) -> list[str]:
    """Return one line per label: what some reader takes for a line's end is escaped as in Python.

    The backslash is escaped too, so that different labels stay different.
    """
    return [label.translate(_ESCAPES) for label in labels]


def read_labels(file: bytes) -> tuple[list[str], list[str]]:
    """Return the lines of a file's `labels.txt`, as Python and as C and Java divide them."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        text = archive.read(LABELS).decode()
    return text.splitlines(), text.removesuffix("\n").split("\n")


def _with_metadata(model: bytes, metadata: bytes) -> bytes:
    from ai_edge_litert import schema_py_generated as schema

    parts = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(metadata, np.uint8)
    entry.name, entry.buffer = "TFLITE_METADATA", len(parts.buffers)
    parts.buffers.append(buffer)
    parts.metadata = [*(parts.metadata or []), entry]
    builder = flatbuffers.Builder(len(model) + len(metadata))
    builder.Finish(parts.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _metadata(name: str) -> bytes:
    """Return a ModelMetadata of the schema; the numbers are its fields in order."""
    builder = flatbuffers.Builder()

    def table(offsets: Mapping[int, int], numbers: Mapping[int, int] = {}) -> int:  # noqa: B006
        builder.StartObject(max(*offsets, *numbers, 0) + 1)
        for slot, offset in offsets.items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        for slot, number in numbers.items():
            builder.PrependInt8Slot(slot, number, 0)
        return builder.EndObject()

    def vector(*tables: int) -> int:
        builder.StartVector(4, len(tables), 4)
        for offset in reversed(tables):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()

    text = builder.CreateString
    content = table({1: table({}, {0: _RGB})}, {0: _IMAGE_PROPERTIES})
    image = table({0: text("image"), 1: text("RGB, 0 to 255"), 3: content})
    file = table({0: text(LABELS), 1: text("a label a line")}, {2: _TENSOR_AXIS_LABELS})
    probabilities = table(
        {0: text("probability"), 1: text("one per label, 0 to 1"), 6: vector(file)}
    )
    graph = table({2: vector(image), 3: vector(probabilities)})
    facts = table({0: text(FACTS), 1: text("network, decoding, accuracy")})
    whole = {0: text(name), 1: text("A label for a photograph"), 3: vector(graph)}
    builder.Finish(table({**whole, 6: vector(facts), 7: text(_PARSER)}), _IDENTIFIER)
    return bytes(builder.Output())
