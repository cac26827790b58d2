"""What `gwp serve` reads: one policy, how it is reached, how it scales."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gwp.paths import PathField
from gwp.policy.admission.guard import Guard
from gwp.policy.batching.schedule import BatchingConfig

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Config(BaseModel):
    """What all of them have in common: unknown fields are mistakes, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class GatewayConfig(_Config):
    """The part that robots talk to: access, decoding, checks. Needs no accelerator."""

    replicas: int = Field(default=2, ge=1)
    """Gateway processes. Those of one machine share its port; a robot's connection stays on one of
    them, and finds another when it is lost.
    """
    cpus: float = Field(default=0.1, ge=0)
    """CPUs reserved for each gateway process."""
    pool: str | None = None
    """Run gateways only on nodes labelled `gwp/pool=<pool>`; None: anywhere."""


class ReplicaConfig(_Config):
    """The part that holds the model."""

    cpus: float = Field(default=1, ge=0)
    """CPUs reserved for each replica."""
    gpus: float = Field(default=0, ge=0)
    """GPUs reserved for each replica; 0 computes on the CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights."""
    steps: int | None = Field(default=None, ge=1)
    """Euler steps of the solver; None: the policy's own. Fewer are faster and less exact."""
    torch_threads: int = Field(default=1, ge=1)
    """Threads that one replica computes with on the CPU."""
    surge_percent: int = Field(default=100, ge=0, le=100)
    """Replicas of a new version started before old ones stop, in percent of those running. It
    needs room for them on the cluster; 0 stops old ones first, so capacity is lower while a new
    version is rolled out.
    """
    pool: str | None = None
    """Run replicas only on nodes labelled `gwp/pool=<pool>`; None: anywhere."""


class AutoscalingConfig(_Config):
    """How many replicas run. Set `min_replicas` so that a whole fleet that joins at once still
    meets its deadlines.
    """

    min_replicas: int = Field(default=1, ge=1)
    """Replicas that always run."""
    max_replicas: int = Field(default=1, ge=1)
    """Most replicas that may run."""
    target_ongoing_requests: float | None = Field(default=None, gt=0)
    """Waiting and running requests per replica that scaling aims at; None: `engine.slots`."""
    upscale_delay_s: float = Field(default=2, ge=0)
    """How long the load has to last before replicas are added, seconds."""
    downscale_delay_s: float = Field(default=300, ge=0)
    """How long the load has to be low before replicas are removed, seconds."""
    look_back_period_s: float = Field(default=2, gt=0)
    """Window over which the load is averaged, seconds."""
    metrics_interval_s: float = Field(default=0.5, gt=0)
    """How often the load is reported, seconds."""

    @model_validator(mode="after")
    def _ordered(self) -> "AutoscalingConfig":
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}"
            )
        return self


class LimitsConfig(_Config):
    """What a client may cost, and what is too late to be answered."""

    connections: int = Field(default=1000, ge=1)
    """Open websockets of one process that robots talk to; more are told 503."""
    decoders: int = Field(default=4, ge=1)
    """Threads of such a process that unpack messages and decode pictures."""
    robot_hz: float | None = Field(default=None, gt=0)
    """Requests per second that one robot may send; None: no limit."""
    key_hz: float | None = Field(default=None, gt=0)
    """Requests per second for each API key; None: no limit."""
    max_age_s: float = Field(default=10, gt=0)
    """Oldest observation that is answered, seconds, where it says when it was made
    (`observed_at`).
    """
    max_ages_s: dict[str, float] = {}
    """The same for single embodiments, by name."""
    max_ahead_s: float = Field(default=1, gt=0)
    """How far in the future an observation may claim to be made, seconds: clocks differ."""
    on_stale: Literal["refuse", "flag"] = "refuse"
    """What happens to one that is older or further ahead: it is refused, or answered with the
    flag `stale` or `future`.
    """

    max_message_mb: float = Field(default=16, gt=0, le=16)
    """Largest message, MiB. The web server cuts websocket frames at 16."""
    queue: int = Field(default=64, ge=1)
    """Requests of one such process that may wait to be decoded, and as many to be computed; more
    are told `busy` at once.
    """
    request_timeout_s: float = Field(default=10, gt=0)
    """Longest time one request may take from its arrival on, seconds; a robot may ask for less with
    `deadline_s`.
    """
    drain_s: float = Field(default=5, ge=0)
    """How long a process that is being replaced goes on with what it has, seconds; then robots
    have to reconnect.
    """


class ServeApp(_Config):
    """One endpoint that serves one policy to a fleet."""

    policy: Annotated[str, PathField(names="models:/.*")]
    """Bundle to serve: a path, `s3://bucket/bundle`, or `models:/name@alias` (resolved once,
    when the endpoint is deployed).
    """
    name: str = Field(default="gwp", min_length=1)
    """Name of the Ray Serve application."""
    host: str = "127.0.0.1"
    """Address to listen on. Other than loopback needs `api_keys_env` or `allow_anonymous`."""
    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port to listen on."""
    start_timeout_s: float = Field(default=900, gt=0)
    """Longest wait for the policy to be loaded and ready, seconds."""
    api_keys_env: str | None = None
    """Name of the environment variable with the accepted keys, comma-separated. It must be set
    where the gateways run.
    """
    allow_anonymous: bool = False
    """Listen beyond loopback without keys, because something in front checks access."""
    gateway: Literal["inline"] | GatewayConfig = "inline"
    """The part that robots talk to. `inline`: the process of the model itself, which is fastest on
    one machine. Otherwise processes of their own, in front of replicas on any machine: a robot then
    uses all replicas, and loses nothing with one of them.
    """
    noise: Literal["fixed", "fresh"] = "fixed"
    """Noise of a request without a seed. `fixed`: always the same, so equal observations get equal
    chunks. `fresh`: another one each time, as the published server has it.
    """
    replica: ReplicaConfig = ReplicaConfig()
    """The part that holds the model."""
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    """How many replicas run."""
    engine: BatchingConfig = BatchingConfig()
    """How observations are computed together."""
    guard: Guard = Guard()
    """What is asked of robots, and promised of answers, beyond what the bundle says."""
    limits: LimitsConfig = LimitsConfig()
    """What a client may cost, and what is too late to be answered."""

    @model_validator(mode="after")
    def _guarded(self) -> "ServeApp":
        if self.host not in _LOOPBACK and self.api_keys_env is None and not self.allow_anonymous:
            raise ValueError(
                f"host {self.host} is reachable from the network: set api_keys_env, or "
                "allow_anonymous: true"
            )
        return self

    def autoscaling_options(self) -> dict[str, Any]:
        """The `autoscaling_config` of Ray Serve."""
        target = self.autoscaling.target_ongoing_requests or float(self.engine.slots)
        # Requests do not pass through Serve, so it cannot count them: replicas do.
        policy = {"policy_function": "serve.deployments.scaling:by_load"}
        return self.autoscaling.model_dump() | {
            "target_ongoing_requests": target,
            "policy": policy,
        }

    @property
    def separate(self) -> GatewayConfig | None:
        """Gateways of their own, if any."""
        return None if self.gateway == "inline" else self.gateway
