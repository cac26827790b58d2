"""Pools: nodes of one kind, for one kind of work."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from clusters.document.words import LabelKey, LabelValue, NodeLabels, ObjectName

POOL = "gwp/pool"
"""Label of a Ray node that says which pool it is of."""
HEAD, DATA, TRAIN, SERVE = "head", "data", "train", "serve"

CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
"""Of every model of the document; docstrings of fields become the reference page."""

_OWN_SHARE = 0.3
"""Share of a node's memory that Ray's object store takes by itself."""


class Toleration(BaseModel):
    """A taint of nodes that a pool puts up with."""

    model_config = CONFIG

    key: LabelKey
    """Key of the taint."""
    value: LabelValue | None = None
    """Its value; None: any."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Its effect; None: any."""


class Pool(BaseModel):
    """Nodes of one kind. What is given is what a node offers to Ray; one pod is one node."""

    model_config = CONFIG

    cpus: int = Field(ge=1, le=10_000)
    """CPUs of a node."""
    memory_gb: float = Field(ge=0.5, le=1e6)
    """Memory of a node, GiB, shared memory included."""
    gpus: int = Field(default=0, ge=0, le=1000)
    """GPUs of a node."""
    gpu_type: LabelValue | None = None
    """Which GPU: value of the node label `gpu_label`, and the name in Slurm's `--gres`."""
    gpu_memory_gb: float | None = Field(default=None, gt=0)
    """Memory of one GPU, GB as its maker says it (80); stages are checked against it. None: not
    checked.
    """
    min_nodes: int = Field(default=0, ge=0)
    """Nodes that are always there."""
    max_nodes: int = Field(default=1, le=100_000)
    """Nodes at most; more than `min_nodes` come and go with the work."""
    shared_memory_gb: float | None = Field(default=None, ge=0.1)
    """Memory of a node for Ray's object store (/dev/shm), GiB; None: 30 % of its memory."""
    spill_gb: float = Field(default=50, ge=0.01, le=1e7)
    """Local disk of a node for what does not fit into the object store, and for logs, GiB."""
    labels: NodeLabels = {}
    """Labels of its Ray nodes, beside `gwp/pool`."""
    node_selector: NodeLabels = {}
    """Labels that a Kubernetes node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of Kubernetes nodes that it puts up with."""
    priority: ObjectName | None = None
    """Priority class of its pods; None: that of the namespace."""
    spot: bool = False
    """On nodes that may be taken back at any time. Of `data` and `train` only."""

    @model_validator(mode="after")
    def _possible(self) -> "Pool":
        if self.max_nodes < 1:
            raise ValueError(
                f"max_nodes {self.max_nodes}: a pool without nodes is none; remove the pool, or "
                "raise max_nodes"
            )
        if self.min_nodes > self.max_nodes:
            raise ValueError(
                f"min_nodes {self.min_nodes} is above max_nodes {self.max_nodes}; raise max_nodes"
            )
        if self.object_store_gb > 0.8 * self.memory_gb:
            raise ValueError(
                f"shared_memory_gb {self.object_store_gb:g} leaves too little of memory_gb "
                f"{self.memory_gb:g} for processes; four fifths at most"
            )
        if not self.gpus and (self.gpu_type or self.gpu_memory_gb):
            raise ValueError(
                "gpu_type and gpu_memory_gb speak of GPUs; give `gpus`, or remove them"
            )
        if own := [k for k in self.labels if k.startswith("ray.io/")]:
            raise ValueError(f"labels: {own[0]} is Ray's own to set; take another name")
        if POOL in self.labels:
            raise ValueError(f"labels: {POOL} is the name of the pool already; remove it")
        return self

    @property
    def object_store_gb(self) -> float:
        """Shared memory of a node, GiB."""
        return self.shared_memory_gb or round(_OWN_SHARE * self.memory_gb, 2)


class StandingPool(Pool):
    """Nodes whose loss is felt at once."""

    @field_validator("spot")
    @classmethod
    def _stays(cls, spot: bool) -> bool:
        if spot:
            raise ValueError(
                "spot nodes are taken back at any time, and with them the head of a run or the "
                "robots' endpoint; only the pools data and train may be spot"
            )
        return spot


class HeadPool(StandingPool):
    """The node with Ray's control plane and the drivers of jobs; no work is placed on it."""

    min_nodes: int = Field(default=1, ge=1, le=1)
    """One."""
    max_nodes: int = Field(default=1, ge=1, le=1)
    """One."""


class Pools(BaseModel):
    """Each kind of work on nodes of its own."""

    model_config = CONFIG

    head: HeadPool
    """Ray's control plane and the drivers of jobs."""
    data: Pool | None = None
    """Decoding of training data; None: on the nodes of `train`."""
    train: Pool | None = None
    """Training; None: this cluster does not train."""
    serve: StandingPool | None = None
    """The endpoint; None: this cluster does not serve."""

    @model_validator(mode="after")
    def _some(self) -> "Pools":
        if not self.workers():
            raise ValueError("a head alone does no work; give data, train or serve")
        return self

    def workers(self) -> dict[str, Pool]:
        """Name -> pool, without the head."""
        named = {DATA: self.data, TRAIN: self.train, SERVE: self.serve}
        return {name: pool for name, pool in named.items() if pool is not None}

    def all(self) -> dict[str, Pool]:
        """Name -> pool."""
        return {HEAD: self.head, **self.workers()}
