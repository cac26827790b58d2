"""`kind: Cluster`: one description of a cluster for all targets."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from clusters.document.addresses import Url
from clusters.document.images import require_own
from clusters.document.pools import CONFIG, Pools, Toleration
from clusters.document.targets import KubernetesConfig, Name, SecretKey, SlurmConfig
from clusters.document.words import Image, LabelValue, NodeLabels, ObjectName, Title

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(
    r".*(KEY|TOKEN|SECRET|PASS(WORD|WD)?|AUTH|CREDENTIALS?)(_ID|S)?", re.IGNORECASE
)
_KEY_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# Set by KubeRay, by our own manifests or by `gwp`.
_TAKEN = {
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "MLFLOW_TRACKING_URI",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    # Nodes leave as long as a pod has time to end.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S",
}
# Set by our own manifests, and no secrets; `env` may give other values.
_PLAIN = {"GWP_CACHE", "RAY_USAGE_STATS_ENABLED", "RAY_SERVE_ENABLE_HA_PROXY"}


def _named(given: Any) -> Any:
    """A reference; ValueError for a value, which must not be shown either."""
    if isinstance(given, (dict, SecretKey)):
        return given
    raise ValueError("a secret is named, never written: give {name: SECRET, key: KEY}")


SecretRef = Annotated[SecretKey, BeforeValidator(_named)]


class StorageConfig(BaseModel):
    """The object store. Its credentials are secrets of the cluster."""

    model_config = CONFIG

    endpoint: Url | None = None
    """Address of a store that is not AWS (`https://minio.example.com`); None: AWS."""
    region: LabelValue | None = None
    """Region; None: `us-east-1`."""


class SpotConfig(BaseModel):
    """How nodes that may be taken back are known on this cloud."""

    model_config = CONFIG

    node_selector: NodeLabels = {}
    """Their labels, e.g. `cloud.google.com/gke-spot: "true"`."""
    tolerations: tuple[Toleration, ...] = ()
    """Their taints."""


class Machine(BaseModel):
    """A machine type that this cluster can have; pools are held against them."""

    model_config = CONFIG

    name: Title
    """What the cloud or the site calls it."""
    cpus: float = Field(gt=0)
    """CPUs that pods can have."""
    memory_gb: float = Field(gt=0)
    """Memory that pods can have, GiB."""
    gpus: int = Field(default=0, ge=0)
    """GPUs."""
    gpu_type: LabelValue | None = None
    """Which."""


class Cluster(BaseModel):
    """A cluster: what it consists of, and where its storage and records are."""

    model_config = CONFIG

    kind: Literal["Cluster"]
    """Kind of this document."""
    version: Literal[1]
    """Version of this kind."""
    name: Name = "gwp"
    """Name of the cluster, and of what is rendered."""
    image: Annotated[Image, AfterValidator(require_own)] | None = None
    """Image with gwp, with a tag or digest (`clusters/image/Dockerfile`); only Kubernetes needs
    it.
    """
    pools: Pools
    """The nodes."""
    machines: tuple[Machine, ...] = ()
    """Machine types that there are: a pool that fits on none is refused. Empty: not checked."""
    spot: SpotConfig | None = None
    """How spot nodes are known; pools with `spot: true` need it on Kubernetes."""
    storage: StorageConfig = StorageConfig()
    """The object store."""
    mlflow: Url | None = None
    """Address of the MLflow server; None: none, and names such as `models:/gwp@champion` are not
    known.
    """
    secrets: dict[str, SecretRef] = {}
    """Environment variable -> where Kubernetes has its value. On Slurm `slurm.env_file` sets
    them.
    """
    env: dict[str, str] = {}
    """Other environment variables of all nodes."""
    token_auth: bool = True
    """Ray asks everybody for a token. Without it whoever reaches a port of Ray runs code."""
    token_secret: ObjectName | None = None
    """Secret with Ray's token in its key `auth_token`; None: KubeRay makes one."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    """What only Kubernetes needs to know."""
    slurm: SlurmConfig = SlurmConfig()
    """What only Slurm needs to know."""

    @field_validator("secrets", "env")
    @classmethod
    def _variables(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
            if name in _TAKEN:
                raise ValueError(f"{name} follows from other fields of this document; remove it")
        return given

    @field_validator("secrets")
    @classmethod
    def _secret(cls, secrets: dict[str, SecretKey]) -> dict[str, SecretKey]:
        for name in secrets:
            if name in _PLAIN:
                raise ValueError(f"{name} is no secret; give its value under `env`")
        return secrets

    @field_validator("env")
    @classmethod
    def _open(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if _SECRET.fullmatch(name):
                raise ValueError(f"{name} looks like a secret; name it under `secrets` instead")
            if "\0" in value:
                raise ValueError(f"{name} holds a zero byte, which no variable can; remove it")
        return env

    @field_validator("secrets")
    @classmethod
    def _pairs(cls, secrets: dict[str, SecretKey]) -> dict[str, SecretKey]:
        missing = [name for name in _KEY_PAIR if name not in secrets]
        if len(missing) == 1:
            raise ValueError(f"the keys of storage come in pairs: {missing[0]} is missing")
        return secrets

    @model_validator(mode="after")
    def _consistent(self) -> "Cluster":
        if both := sorted(set(self.env) & set(self.secrets)):
            raise ValueError(f"{both[0]} is under `env` and under `secrets`; remove one")
        if not self.token_auth and self.token_secret:
            raise ValueError("token_secret names a token that token_auth: false does not ask for")
        for name, pool in self.pools.all().items():
            if pool.spot and self.spot is None:
                raise ValueError(
                    f"pools.{name} is spot: say under `spot` how such nodes are known "
                    "(node_selector, tolerations)"
                )
            short = [_lacks(machine, pool) for machine in self.machines]
            if short and all(short):
                raise ValueError(
                    f"pools.{name} fits on no machine: {'; '.join(filter(None, short))}"
                )
        return self

    def keyless(self, pools: Iterable[str]) -> tuple[str, ...]:
        """Those of these pools whose pods cannot reach private buckets, neither by keys nor as
        somebody.
        """
        if self.kubernetes.service_account is not None:
            return ()
        keys = [self.secrets.get(name) for name in _KEY_PAIR]
        return tuple(
            pool
            for pool in pools
            if not all(key and (not key.pools or pool in key.pools) for key in keys)
        )


def _lacks(machine: Machine, pool: Any) -> str | None:
    """What a machine has too little of for a node of the pool; None: it fits."""
    asked = {
        "CPUs": (pool.cpus, machine.cpus),
        "GiB": (pool.memory_gb, machine.memory_gb),
        "GPUs": (pool.gpus, machine.gpus),
    }
    for what, (needed, there) in asked.items():
        if needed > there:
            return f"{machine.name} has {there:g} {what}, a node needs {needed:g}"
    if pool.gpu_type and pool.gpu_type != machine.gpu_type:
        return f"{machine.name} has {machine.gpu_type or 'no'} GPUs, not {pool.gpu_type}"
    return None
