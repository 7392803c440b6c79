"""What a cluster is asked to be."""

from dataclasses import dataclass, field


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
        Task nodes at most, spot; managed scaling starts and ends them. 0: none.
    idle_minutes : int
        Without work, after which the cluster ends itself.
    ebs_gb : int
        Root volume of each node in GB.
    service_role, instance_profile : str
        Roles of the cluster, and of its nodes.
    subnet, key_name : str
        EC2 subnet and SSH key pair; may be empty.
    tags : dict of str to str
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
    subnet: str = ""
    key_name: str = ""
    tags: dict[str, str] = field(default_factory=dict)
