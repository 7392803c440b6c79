"""S3 requests of `fruits run` per 1,000 photographs, counted at a MinIO server by kind and place.

    make bench-s3

A proxy between run and server writes down every request. Two runs of different sizes, of one
batch and of four on two cores, tell what each photograph costs from what each run costs. The
network is a tiny one of random weights, which changes no number of requests. The log of the larger
run stays in the file that --log names.
"""

import argparse
import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

from servers import REGION, Bucket, recorded, s3_server
from tables import FRUITS, photographs, table, timed, write_section

from fruits_lib.backbones import export
from fruits_lib.networks import check_backbone

KINDS = ("GET", "HEAD", "LIST", "PUT", "DELETE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, nargs=2, default=(3000, 12000))
    parser.add_argument("--log", type=Path, help="Where the requests of the larger run go.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, counts = Path(name), {}
        tiny = folder / "tiny.tflite"
        tiny.write_bytes(export(check_backbone("mobilenet_v2", "random", 32)))
        for number in sorted(asked.photographs):
            counts[number] = count(folder / str(number), number, tiny, asked.log)
    write(counts)


def count(folder: Path, number: int, tiny: Path, log: Path | None) -> Counter:
    """Return how often a run of so many photographs asks for what, by kind and place."""
    data = photographs(folder / "photographs", number)
    with s3_server("minio", folder / "objects") as server, recorded(server) as (endpoint, seen):
        bucket = Bucket("fruits", server.client())
        place = {"LocationConstraint": REGION}
        bucket.client.create_bucket(Bucket="fruits", CreateBucketConfiguration=place)
        bucket.upload(data, "photographs")
        os.environ |= server.environment | {"AWS_ENDPOINT_URL": endpoint}
        command = [FRUITS, "run", "--data", bucket.uri("photographs"), "--run-dir"]
        try:
            timed([*command, bucket.uri("run"), f"-pweights={tiny}", "-pinput_size=32"])
        finally:
            if log:
                log.write_text("\n".join(seen))
    return Counter(map(classify, seen))


def classify(request: str) -> tuple[str, str]:
    """Return the kind and the place of a request line, such as `GET /fruits/run/pca/... HTTP/1.1`.

    S3 bills a POST as the PUT that it is a part of; a POST that deletes is free, as DELETE is.
    """
    kind, path, _ = request.split()
    key, _, query = unquote(path).partition("?")
    if kind == "POST":
        kind = "DELETE" if query.startswith("delete") else "PUT"
    if kind == "GET" and re.search(r"(^|&)(prefix|list-type)=", query):
        kind, key = "LIST", f"/fruits/{re.search(r'(?:^|&)prefix=([^&]*)', query)[1]}"
    parts = key.split("/")[2:]
    place = "/".join(parts[:2]) if parts and parts[0] == "run" else "".join(parts[:1])
    return kind, place or "the bucket"


def write(counts: dict[int, Counter]) -> None:
    (small, few), (large, many) = counts.items()
    rows = [("per 1,000 photographs", *KINDS)]
    totals = {number: Counter() for number in counts}
    for number, found in counts.items():
        for (kind, _), times in found.items():
            totals[number][kind] += times
    for number, total in totals.items():
        rows.append((f"{number:,}", *(f"{1000 * total[kind] / number:.1f}" for kind in KINDS)))
    slope = {kind: (totals[large][kind] - totals[small][kind]) / (large - small) for kind in KINDS}
    fixed = {kind: totals[small][kind] - slope[kind] * small for kind in KINDS}
    each = {kind: 1000 * slope[kind] + fixed[kind] / 100 for kind in KINDS}
    rows.append(("100,000, by the two", *(f"{each[kind]:.1f}" for kind in KINDS)))
    by_place = [("of the run of " + f"{large:,}", *KINDS)]
    for place in sorted({place for _, place in many}):
        by_place.append((f"`{place}`", *(many[kind, place] for kind in KINDS)))
    text = f"""A whole `fruits run`, 01 to 06, that reads from and writes to a bucket. A
run itself asks {", ".join(f"{fixed[kind]:.0f} {kind}" for kind in KINDS)}; each
photograph the rest. Goal: one GET per photograph, HEAD and LIST at most
20 per 1,000 photographs; at 100,000 they are
{each["HEAD"] + each["LIST"]:.1f}.

{table(*rows)}

{table(*by_place)}"""
    write_section("S3 requests", text)


if __name__ == "__main__":
    main()
