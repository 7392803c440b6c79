"""What a cluster is asked to be."""

import re
from dataclasses import dataclass, field

from fruits_lib.errors import FruitsError

DATA_GB = 64  # beside its root volume, each node's volume for HDFS, shuffles and container logs


@dataclass(frozen=True)
class ClusterSpec:
    """What a cluster is asked to be; everything else follows from it.

    Attributes
    ----------
    stage : str
        `s3://bucket/prefix` where code, notebooks, logs and the cluster's request lie.
    name : str
    region : str
    release : str
    primary, core, task : str
        Instance types.
    core_nodes : int
        Core nodes, on demand.
    task_nodes : int
        Task nodes at most, spot; managed scaling ends those without work and starts them again.
        0: none.
    idle_minutes : int
        Without work, after which the cluster ends itself.
    ebs_gb : int
        Root volume of each node in GB.
    service_role, instance_profile : str
        Roles of the cluster, and of its nodes.
    security_configuration : str
        Name of the EMR security configuration that asks for IMDSv2.
    subnet, key_name : str
        EC2 subnet and SSH key pair; may be empty.
    ssh_group : str
        Security group added to the primary node, such as one that lets your address in by SSH; may
        be empty.
    tags : dict of str to str
        Added to those that `fruits emr policies` asks for; an `owner` is good manners.
    """

    stage: str
    name: str = "fruits"
    region: str = "eu-west-1"
    release: str = "emr-7.14.0"
    primary: str = "m5.xlarge"
    core: str = "m5.xlarge"
    task: str = "m5.xlarge"
    core_nodes: int = 2
    task_nodes: int = 0
    idle_minutes: int = 30
    ebs_gb: int = 32
    service_role: str = "fruits-emr-service"
    instance_profile: str = "fruits-emr-node"
    security_configuration: str = "fruits-imdsv2"
    subnet: str = ""
    key_name: str = ""
    ssh_group: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def bucket(self) -> str:
        """Name of the stage's bucket.

        Raises
        ------
        FruitsError
            If the stage is no `s3://bucket/prefix`.
        """
        found = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/[^/](.*[^/])?", self.stage)
        if not found:
            raise FruitsError(
                f"stage={self.stage!r} is no s3://bucket/prefix: name a bucket in lower case and a "
                "prefix in it, without a slash at its end"
            )
        return found[1]
