"""S3 requests of `fruits run` per 1,000 photographs, counted at a MinIO server by kind and place.

    make bench-s3

A proxy between run and server writes down every request. Two runs of different sizes tell what a
run costs from what each of its batches costs. Batches are as large as on the eight cores of
emr-config.json. The network is a tiny one of random weights, which changes no number of requests.
The log of the larger run stays in the file that --log names.
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
from fruits_lib.featurize import IMAGES_PER_CORE
from fruits_lib.networks import check_backbone

KINDS = ("GET", "HEAD", "LIST", "PUT", "DELETE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, nargs=2, default=(12000, 24000))
    parser.add_argument("--batch", type=int, default=8 * IMAGES_PER_CORE)
    parser.add_argument("--log", type=Path, help="Where the requests of the larger run go.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, counts = Path(name), {}
        tiny = folder / "tiny.tflite"
        tiny.write_bytes(export(check_backbone("mobilenet_v2", "random", 32)))
        for number in sorted(asked.photographs):
            counts[number] = count(folder / str(number), number, asked.batch, tiny, asked.log)
    write(counts, asked.batch)


def count(folder: Path, number: int, batch: int, tiny: Path, log: Path | None) -> Counter:
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
            tiny_network = f"-pweights={tiny}", "-pinput_size=32", f"-pbatch_size={batch}"
            timed([*command, bucket.uri("run"), *tiny_network])
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


def write(counts: dict[int, Counter], batch: int) -> None:
    (small, few), (large, many) = counts.items()
    rows = [("", *KINDS)]
    for number, found in counts.items():
        shown = (f"{1000 * n / number:.1f}" for n in total(found).values())
        rows.append((f"per 1,000 of a run of {number:,}", *shown))
    # What is asked of photographs grows with their number, all else with that of batches.
    rest = [
        {k: n - found[k, "photographs"] for k, n in total(found).items()} for found in (few, many)
    ]
    each = {k: (rest[1][k] - rest[0][k]) / ((large - small) / batch) for k in KINDS}
    fixed = {k: rest[0][k] - each[k] * small / batch for k in KINDS}
    rows.append(("a run itself", *(f"{n:.0f}" for n in fixed.values())))
    rows.append((f"each batch of {batch:,}", *(f"{n:.0f}" for n in each.values())))
    asked = {k: many[k, "photographs"] / large + fixed[k] / 1e5 + each[k] / batch for k in KINDS}
    rows.append(("per 1,000 of 100,000, by these", *(f"{1000 * n:.1f}" for n in asked.values())))
    by_place = [("of the run of " + f"{large:,}", *KINDS)]
    for place in sorted({place for _, place in many}):
        by_place.append((f"`{place}`", *(many[kind, place] for kind in KINDS)))
    text = f"""A whole `fruits run`, 01 to 06, that reads from and writes to a bucket, in
batches of {batch:,}, as on {batch // IMAGES_PER_CORE} cores. Goal: one GET per photograph, HEAD and
LIST at most 20 per 1,000 photographs; at 100,000 they are
{1000 * (asked["HEAD"] + asked["LIST"]):.1f}.

{table(*rows)}

{table(*by_place)}"""
    write_section("S3 requests", text)


def total(found: Counter) -> dict[str, int]:
    """Return the requests of each kind, whatever their place."""
    return {kind: sum(n for (k, _), n in found.items() if k == kind) for kind in KINDS}


if __name__ == "__main__":
    main()
