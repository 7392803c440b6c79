"""What a cluster would be, where, for how long and at what price."""

import json
import textwrap
from dataclasses import dataclass, replace

from fruits_lib.emr.prices import hourly_costs, instance_type, load_prices, note
from fruits_lib.emr.request import build_request, load_configurations
from fruits_lib.emr.spec import DATA_GB, ClusterSpec
from fruits_lib.errors import FruitsError

# Images per second and vCPU, computed, not measured on AWS. A vCPU of m5 is half a core, for which
# benchmarks/README.md has 100: it computes 50. A request to S3 takes some 15 ms. Contents are
# fetched ahead while the network computes, but Spark asks for one image after the other: a HEAD for
# each meanwhile, which bounds the one task of a vCPU at 60 a second; and before, as a micro-batch
# begins, a LIST and a HEAD. So 30 ms + 20 ms for an image.
RATE = 20.0
START_MINUTES = 8.0  # from the first node's start through bootstrap.sh and EMR's own installing
OTHER_MINUTES = 6.0  # notebooks 01, 03, 04 and 05, and five starts of Spark on YARN
# What a run asks of S3 for an image, as counted in moto's log: by Spark two HEADs for the index, a
# LIST (priced as a write) and two HEADs for the stream; by a worker one GET. The 0.03 are writes of
# many images at once.
READS, WRITES = 5, 1.03
RESULT_BYTES = 2 * 4 * 1280  # features and scores of the default backbone, at most
REGIONS = {
    "eu-central-1": "Frankfurt",
    "eu-north-1": "Stockholm",
    "eu-south-1": "Milan",
    "eu-south-2": "Spain",
    "eu-west-1": "Ireland",
    "eu-west-3": "Paris",
}  # of the European Union; eu-west-2 is London, eu-central-2 Zurich
YARDSTICK_IMAGES = 67_692
YARDSTICK_RATE = 6.6  # images per second and vCPU, of the best public run
PERSONAL = (
    "labels, paths and photographs can hold personal data: names, faces. EXIF (place, time, "
    "camera) never leaves the decoder: features, scores and manifest have none of it"
)
INDENT = 11


@dataclass(frozen=True)
class Plan:
    """A cluster's work and price; its text is what `fruits emr plan` prints.

    Attributes
    ----------
    spec : ClusterSpec
    images : int
    rate : float
        Images per second and vCPU of core and task nodes.
    vcpus : int
        Of core and task nodes.
    minutes : dict of str to float
        By phase.
    on_demand, spot : dict of str to float, or None
        Dollars by item, with all nodes on demand, and with spot nodes.
        None if a price is not known.
    """

    spec: ClusterSpec
    images: int
    rate: float
    vcpus: int
    minutes: dict[str, float]
    on_demand: dict[str, float] | None
    spot: dict[str, float] | None

    @property
    def hours(self) -> float:
        return sum(self.minutes.values()) / 60

    def to_json(self) -> str:
        """Return the request, as RunJobFlow takes it."""
        return json.dumps(build_request(self.spec, load_configurations(self.spec)), indent=2)

    def __str__(self) -> str:
        return "\n".join([*self._what(), "", *self._time(), "", *self._price()])

    def _what(self) -> list[str]:
        spec = self.spec
        task = f" + up to {spec.task_nodes} {spec.task} on spot" if spec.task_nodes else ""
        inbound = f"{spec.ssh_group} may reach the primary" if spec.ssh_group else "no inbound rule"
        return [
            *_block(
                "cluster",
                f"{spec.name}, {spec.release}: 1 primary {spec.primary} + {spec.core_nodes} core "
                f"{spec.core}{task}; {self.vcpus} vCPU to compute with; {spec.ebs_gb} + {DATA_GB} "
                f"GB of EBS each; {inbound}, IMDSv2 only; ends itself after {spec.idle_minutes} "
                f"minutes without work; code, notebooks and logs in {spec.stage}",
            ),
            *_block("where", _place(spec.region)),
            *_block("privacy", PERSONAL),
        ]

    def _time(self) -> list[str]:
        parts = " + ".join(f"{value:.0f} {name}" for name, value in self.minutes.items())
        ours = "an estimate" if self.rate == RATE else "as given"
        return [
            *_block("time", f"{60 * self.hours:.0f} min = {parts}"),
            *_block(
                "",
                f"{self.images:,} images at {self.rate:g} a second and vCPU: {ours}; the other "
                "minutes are an estimate too; give a rate that you measured by --rate",
            ),
            *_block(
                "elsewhere",
                f"public runs of this job: {YARDSTICK_IMAGES:,} images took 83 min in all on 16 "
                f"vCPU; so many would take {self._minutes_for(YARDSTICK_IMAGES):.0f} min here, by "
                f"the estimate. The quickest featurized {YARDSTICK_RATE} images a second and vCPU; "
                f"at that, these {self.images:,} would take "
                f"{self._featurize(self.images, YARDSTICK_RATE):,.0f} min to featurize, not "
                f"{self.minutes['featurize']:,.0f}",
            ),
        ]

    def _featurize(self, images: int, rate: float) -> float:
        return images / rate / self.vcpus / 60

    def _minutes_for(self, images: int) -> float:
        return START_MINUTES + self._featurize(images, self.rate) + OTHER_MINUTES

    def _price(self) -> list[str]:
        if self.on_demand is None or self.spot is None:
            return _block("price", f"not known for these instance types in this region; {note()}")
        variant = _spot_variant(self.spec)
        columns = (self.on_demand, self.spot)
        totals = [sum(costs.values()) for costs in columns]
        idle_share = self.spec.idle_minutes / 60 / self.hours
        rows = {
            **{item: [costs[item] for costs in columns] for item in self.on_demand},
            "dollars in all": totals,
            f"then {self.spec.idle_minutes} min idle": [
                idle_share * (total - costs["S3"])
                for total, costs in zip(totals, columns, strict=True)
            ],
        }
        count = self.spec.core_nodes + self.spec.task_nodes + 1
        head = f"{self.hours:.2f} h x {count} nodes"
        return [
            f"{'price':<{INDENT}}{head:<26}{'on demand':>10}{'spot':>10}",
            *(f"{'':<{INDENT}}{name:<26}{a:>10.2f}{b:>10.2f}" for name, (a, b) in rows.items()),
            *_block(
                "",
                "S3 is the run's requests, and its results kept for a month; idle minutes come if "
                "nobody ends the cluster, as `run --and-terminate` does; spot is --core-nodes "
                f"{variant.core_nodes} --task-nodes {variant.task_nodes}",
            ),
            *_block("", note()),
        ]


def _block(head: str, text: str) -> list[str]:
    """Lines of a text, its head before the first."""
    first, rest = f"{head:<{INDENT}}", " " * INDENT
    return textwrap.wrap(text, 96, initial_indent=first, subsequent_indent=rest)


def make_plan(spec: ClusterSpec, images: int, rate: float | None = None) -> Plan:
    """Return how long a cluster would work on so many images, and at what price.

    Parameters
    ----------
    spec : ClusterSpec
    images : int
    rate : float, optional
        Images per second and vCPU; by default a careful estimate, `RATE`.

    Raises
    ------
    FruitsError
        If a number is not above 0 or an instance type is not known.
    """
    if images < 1:
        raise FruitsError(f"images={images} is below 1: give the number of photographs")
    if rate is not None and not rate > 0:
        raise FruitsError(f"rate={rate} is not above 0: give images per second and vCPU")
    if spec.core_nodes < 1 or spec.task_nodes < 0:
        raise FruitsError(
            f"{spec.core_nodes} core and {spec.task_nodes} task nodes: at least 1 and 0 are needed"
        )
    rate = rate or RATE
    instance_type(spec.primary)
    vcpus = sum(
        count * instance_type(kind).vcpu
        for count, kind in ((spec.core_nodes, spec.core), (spec.task_nodes, spec.task))
    )
    minutes = {
        "start": START_MINUTES,
        "featurize": images / rate / vcpus / 60,
        "other notebooks": OTHER_MINUTES,
    }
    hours = sum(minutes.values()) / 60
    return Plan(
        spec,
        images,
        rate,
        vcpus,
        minutes,
        _costs(spec, hours, images, with_spot=False),
        _costs(_spot_variant(spec), hours, images, with_spot=True),
    )


def _spot_variant(spec: ClusterSpec) -> ClusterSpec:
    """The cluster with the spot nodes it has; if none, with one core node and the others spot."""
    if spec.task_nodes:
        return spec
    return replace(spec, core_nodes=1, task=spec.core, task_nodes=spec.core_nodes - 1)


def _nodes(spec: ClusterSpec) -> list[tuple[int, str, bool]]:
    """Return a cluster's nodes as (count, instance type, whether spot)."""
    groups = [
        (1, spec.primary, False),
        (spec.core_nodes, spec.core, False),
        (spec.task_nodes, spec.task, True),
    ]
    return [group for group in groups if group[0]]


def _costs(
    spec: ClusterSpec, hours: float, images: int, with_spot: bool
) -> dict[str, float] | None:
    local = load_prices()["regions"].get(spec.region)
    costs = dict.fromkeys(("EC2", "EMR", "EBS"), 0.0)
    try:
        for count, kind, spot in _nodes(spec):
            node = hourly_costs(kind, spec.region, spot and with_spot, spec.ebs_gb)
            for item, dollars in node.items():
                costs[item] += hours * count * dollars
    except FruitsError:
        return None
    costs["S3"] = (
        images * (READS * local["s3_1000_reads"] + WRITES * local["s3_1000_writes"]) / 1000
        + images * RESULT_BYTES / 1e9 * local["s3_gb_month"]
    )
    return costs


def _place(region: str) -> str:
    if region in REGIONS:
        return f"{region}, {REGIONS[region]}: in the EU, so photographs stay under the GDPR's rules"
    return (
        f"WARNING: {region} is not in the EU: photographs of persons or their property need the "
        "GDPR's grounds for a transfer; choose eu-west-1 or settle it first"
    )
