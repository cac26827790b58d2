"""What a cluster document says for one target only: Kubernetes, Slurm."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from clusters.document.addresses import Address, Networks
from clusters.document.mounts import MountPath, NodePath, require_apart
from clusters.document.pools import CONFIG
from clusters.document.words import (
    LabelKey,
    LabelValue,
    ObjectName,
    SecretEntry,
    SlurmWord,
)

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST = 40
"""KubeRay makes longer names of it; those of services end at 63 characters."""


def check_name(name: str) -> str:
    """ValueError when it cannot be the name of a Kubernetes object of ours."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ValueError(
            f"{name!r} is no name: lower-case letters, digits and -, a letter first, at most "
            f"{_LONGEST} characters"
        )
    return name


Name = Annotated[str, AfterValidator(check_name)]


def _free(name: str) -> str:
    if name.startswith("kube-"):
        raise ValueError(f"{name} is a namespace of Kubernetes itself; give another one")
    return name


class SecretKey(BaseModel):
    """A value that a Kubernetes Secret holds. Never the value itself."""

    model_config = CONFIG

    name: ObjectName
    """Name of the Secret, in the namespace of the cluster."""
    key: SecretEntry
    """Key in it."""
    pools: tuple[Literal["head", "data", "train", "serve"], ...] = ()
    """Pools whose pods get it; empty: all. Keys of the fleet are for `serve` alone."""


class Volume(BaseModel):
    """A disk that all pods mount."""

    model_config = CONFIG

    claim: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: MountPath
    """Where it is mounted. Paths of stages below it are found."""
    read_only: bool = True
    """Whether pods may only read it."""


def _apart(volumes: tuple[Volume, ...]) -> tuple[Volume, ...]:
    require_apart([volume.path for volume in volumes])
    return volumes


class Redis(BaseModel):
    """A Redis that keeps Ray's control state, so that the endpoint outlives its head."""

    model_config = CONFIG

    address: Address
    """`host:port`."""
    password: SecretKey | None = None
    """Where its password is; None: it asks for none."""


class JobRules(BaseModel):
    """How stages run as RayJobs."""

    model_config = CONFIG

    submission: Literal["K8sJobMode", "HTTPMode", "SidecarMode"] = "K8sJobMode"
    """Who hands the stage to Ray: a small pod whose log is that of the stage, the operator, or a
    container beside the head.
    """
    retries: int = Field(default=2, ge=0, le=100)
    """How often a failed stage is started anew, on new pods; it goes on from its last checkpoint."""
    deadline_h: float | None = Field(default=None, gt=0, le=100_000)
    """Hours after which a stage is stopped; None: never."""
    start_deadline_h: float | None = Field(default=None, gt=0, le=100_000)
    """Hours that a stage may wait for its nodes; None: any."""
    keep_failed_h: float = Field(default=1, ge=0, le=100_000)
    """Hours that the pods of a failed stage stay, for whoever looks at them."""
    queue: LabelValue | None = None
    """Local queue of Kueue. Stages then wait until it admits them, and their nodes are those they
    need at least: Kueue takes no autoscaled cluster. None: no queue.
    """


class ServiceRules(BaseModel):
    """How the endpoint runs as a RayService."""

    model_config = CONFIG

    upgrade: Literal["new-cluster", "incremental", "in-place"] = "in-place"
    """What a new version of the cluster does. `in-place`: pods stay, policies are exchanged by Ray
    Serve, and no second set of GPUs is needed; a new image waits until pods are deleted.
    `new-cluster`: a second cluster, then all robots move. `incremental`: by steps, through a
    Gateway; needs `gateway_class`.
    """
    gateway_class: ObjectName | None = None
    """Gateway class of the Kubernetes Gateway API, for `incremental`."""
    step_percent: int = Field(default=10, ge=1, le=100)
    """Share of the robots that moves at a time, percent, for `incremental`."""
    surge_percent: int = Field(default=20, ge=1, le=100)
    """Capacity of the new cluster beyond what moved, percent, for `incremental`."""
    interval_s: int = Field(default=30, ge=1)
    """Between two steps, seconds, for `incremental`."""
    redis: Redis | None = None
    """Keeps Ray's control state; None: the endpoint starts anew with its head."""
    robots: Networks = ()
    """Networks (10.20.0.0/16) from which robots reach the endpoint; empty: from anywhere."""

    @model_validator(mode="after")
    def _complete(self) -> "ServiceRules":
        if self.upgrade == "incremental" and self.gateway_class is None:
            raise ValueError(
                "upgrade: incremental moves robots through a Gateway; give gateway_class"
            )
        if self.step_percent > self.surge_percent:
            raise ValueError(
                f"step_percent {self.step_percent} is above surge_percent {self.surge_percent}; "
                "a step needs its capacity first"
            )
        return self


class KubernetesConfig(BaseModel):
    """What only Kubernetes needs to know."""

    model_config = CONFIG

    namespace: Annotated[Name, AfterValidator(_free)] = "gwp"
    """Namespace of everything that is rendered."""
    service_account: ObjectName | None = None
    """Service account of the pods, for storage without keys (workload identity); None: the default
    one, without a token.
    """
    pull_secret: ObjectName | None = None
    """Secret with access to the image's registry; None: the image is open to all nodes."""
    gpu_resource: LabelKey = "nvidia.com/gpu"
    """What the device plugin calls a GPU."""
    gpu_label: LabelKey = "nvidia.com/gpu.product"
    """Node label that names the GPU (`gpu_type` of a pool)."""
    volumes: Annotated[tuple[Volume, ...], AfterValidator(_apart)] = ()
    """Disks that all pods mount."""
    operator_namespace: Name = "kuberay-system"
    """Where the KubeRay operator runs: it may reach Ray's dashboard, nobody else outside may."""
    monitoring_namespace: Name | None = None
    """Where Prometheus runs (with its operator): it may read metrics, and is told of the pods.
    None: nobody reads them.
    """
    jobs: JobRules = JobRules()
    """How stages run."""
    service: ServiceRules = ServiceRules()
    """How the endpoint runs."""


class SlurmConfig(BaseModel):
    """What only Slurm needs to know."""

    model_config = CONFIG

    partition: SlurmWord | None = None
    """Partition; None: the site's default."""
    data_partition: SlurmWord | None = None
    """Partition of the pool `data`; None: that of `partition`."""
    account: SlurmWord | None = None
    """Account that is charged; None: the user's own."""
    qos: SlurmWord | None = None
    """Quality of service; None: the site's default."""
    time_min: int = Field(default=1440, ge=2, le=525_600)
    """Time limit of one allocation, minutes; a stage that needs more is queued again."""
    save_s: int = Field(default=300, ge=30, le=65_535)
    """How long before the end of an allocation the stage takes its checkpoint, seconds."""
    venv: NodePath | None = None
    """Virtual environment with gwp, on a disk that all nodes see; None: `gwp` is on the PATH."""
    env_file: NodePath | None = None
    """Shell file that sets secrets and storage (`AWS_...`), readable by you only; None: none."""
    port: int = Field(default=6379, ge=1024, le=65535)
    """Port of Ray on the first node."""

    @model_validator(mode="after")
    def _in_time(self) -> "SlurmConfig":
        if self.save_s >= 60 * self.time_min:
            raise ValueError(
                f"save_s {self.save_s} is no less than time_min {self.time_min}; raise time_min"
            )
        return self
