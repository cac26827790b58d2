"""The training job: one typed file per stage. A stage is configuration, not code.

A job names its data mixture, modes and losses (`objective`), where its weights start (`init`),
and how it runs.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from gwp import storage
from gwp.data.buckets import Bucket, batch_sizes
from gwp.data.canvas import Canvas
from gwp.data.plan.curate import CurationConfig
from gwp.data.plan.plan import Rules
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from gwp.errors import GwpError
from gwp.model.adapters import LoraConfig
from gwp.model.codecs.text import TextEncoderConfig
from gwp.model.codecs.video import VideoCodecConfig
from gwp.model.config import (
    ActionForm,
    Family,
    ModelConfig,
    VisibilityField,
    check_actions,
)
from gwp.model.objective import ObjectiveConfig
from gwp.paths import Location, PathField
from gwp.storage.names import relative_name
from pipelines.jobs.cluster import ClusterConfig
from pipelines.jobs.embodiment import EmbodimentConfig
from pipelines.jobs.engine import DeepSpeedConfig, OptimizerConfig
from pipelines.jobs.recipes import Recipe, family_of, with_recipe
from pipelines.jobs.trained import (
    adapter_count,
    parameters_named,
    trained_count,
    trained_names,
)
from pipelines.jobs.validation import ValidationConfig, ValidatorConfig

# Docstrings of fields become the reference page, so each field has one.
_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ReleasedConfig(BaseModel):
    """A published shape instead of widths."""

    model_config = _CONFIG

    released: Family
    """`gwp05` (6.0 B parameters) or `gwp0` (5.0 B)."""
    visibility: VisibilityField = "action-centred"
    """Which groups of tokens see which, as in a model of other widths."""
    actions: ActionForm = "tokens"
    """What states and actions are to the transformer, as in a model of other widths."""

    @model_validator(mode="after")
    def _consistent(self) -> "ReleasedConfig":
        check_actions(self.actions, self.released, self.visibility)
        return self

    @model_serializer(mode="wrap")
    def _without_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        if self.actions == "tokens":
            fields.pop("actions", None)
        return fields


class DataConfig(BaseModel):
    """What a stage reads and how a sample looks."""

    model_config = _CONFIG

    sources: tuple[Source, ...] = Field(min_length=1)
    """Data sets of the mixture, with weights."""
    canvas: Canvas
    """How camera views are composed into one picture."""
    window: Window
    """Actions per chunk and stride of the future frames, for robot sets."""
    # The shortest that a causal codec takes (4n + 1): a reference, and one latent frame more.
    clip: ClipWindow = ClipWindow(frames=5, fps=5.0)
    """Frames and rate of windows cut from plain videos."""
    curate: CurationConfig | None = None
    """Which of those windows are used; None: all, one after another, whatever they show."""
    buckets: tuple[Bucket, ...] = ()
    """Shapes of clips; each goes to the nearest in aspect ratio. A batch holds clips of one
    bucket, and as many tokens as any other.
    Empty: every clip fills the canvas, with `clip.frames` frames.
    """
    batch_multiple: int = Field(default=8, gt=0)
    """Batches of buckets are multiples of this many samples, so that they divide evenly among any
    number of workers that divides it.
    """
    batches: Literal["apart", "mixed"] = "apart"
    """`apart`: samples with actions and samples without have batches of their own. `mixed`: they
    share them, and each sample draws its mode.
    """
    max_broken: float = Field(default=0.05, ge=0, le=1)
    """Share of a source's episodes or videos, and of the samples of a run, that may be broken;
    above it the stage stops.
    """
    together: int = Field(default=2, gt=0)
    """Windows of one file that stand next to each other in the plan and are decoded together;
    1: none.
    """
    embodiments: dict[str, EmbodimentConfig] = {}
    """Robots of the mixture by name; sources refer to them."""
    augment: bool = True
    """Random crop offsets in training; off: centre crop."""
    zoom: float = Field(default=1.0, ge=1, le=2)
    """Views are enlarged by a random factor between 1 and this before they are cropped, the same
    for all frames of a sample; 1: not at all. Against learning a small data set by heart: 1.1.
    """
    light: float = Field(default=0.0, ge=0, le=0.9)
    """Contrast, brightness and the strength of each colour of a view change by up to this share, the
    same for all frames of a sample; 0: not at all.
    """
    cache: Location | None = None
    """Folder or URI of a cache made by `gwp data cache`: latents and text embeddings are read
    from it, and no video is decoded. It holds centre crops, so it needs `augment: false`. A
    linear codec is taken from it instead of fitted. None: frames are decoded and encoded.
    """

    @model_validator(mode="after")
    def _augmented(self) -> "DataConfig":
        if not self.augment and (self.zoom > 1 or self.light > 0):
            raise ValueError(
                "data.zoom and data.light need data.augment: true; set that, or zoom to 1 and light "
                "to 0"
            )
        return self

    @model_validator(mode="after")
    def _cached_as_cropped(self) -> "DataConfig":
        if self.cache is not None and self.augment:
            raise ValueError(
                "data.cache holds centre crops only; set data.augment: false, or train without "
                "the cache"
            )
        return self


class RunConfig(BaseModel):
    """Length, places and names of a run."""

    model_config = _CONFIG

    name: str
    """Run name; the folder below `storage`, so a plain relative name. Running the same name
    again resumes it.
    """
    storage: Location = "runs/train"
    """Folder or `s3://bucket/prefix` for checkpoints, manifests and weights."""
    experiment: str = "gwp"
    """MLflow experiment."""
    steps: int = Field(gt=0)
    """Optimiser steps."""
    seed: int = 0
    """Seed of weights, plan, noise and crops."""
    checkpoint_every: int = Field(default=100, gt=0)
    """Optimiser steps between checkpoints; the last step always writes one."""
    keep: int = Field(default=2, gt=0)
    """Committed checkpoints to keep."""
    log_every: int = Field(default=10, gt=0)
    """Optimiser steps between logged losses."""
    record_samples: bool = False
    """Write which samples each worker took at each step, below `consumed/` of the run folder:
    one small file per step and worker.
    """

    @property
    def uri(self) -> str:
        """Folder of the run."""
        return storage.join(self.storage, self.name)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        try:
            # It becomes a folder below `storage`, here and in buckets.
            return relative_name(name, "run.name")
        except GwpError as error:
            # pydantic collects ValueErrors, and tells them with the line of the file.
            raise ValueError(str(error)) from error


def _unseen(model: ModelConfig, objective: ObjectiveConfig) -> str | None:
    """What a model needs for acting and such training never shows it, or what it cannot be shown."""
    visibility = model.visibility
    if visibility == "action-centred":
        return None
    if model.actions == "latent-frame" and objective.chunk_prefix > 0:
        return (
            "a latent frame has one noise level for all actions in it, so that none of them can be "
            "clean beside noisy ones; set objective.chunk_prefix to 0"
        )
    if objective.video_weight == 0:
        return (
            f"a model that is {visibility} denoises a future when it acts, and with "
            "objective.video_weight 0 none is learnt; give it a weight"
        )
    if visibility == "video-first" and objective.shared_noise:
        return (
            "a model that is video-first acts upon a clean future, which objective.shared_noise "
            "never shows it beside noisy actions; set it to false"
        )
    if visibility == "video-first" and objective.modes.ac_wm > 0:
        return (
            "the future of a model that is video-first sees no actions, so that there is nothing to "
            "learn in the mode ac_wm; set objective.modes.ac_wm to 0"
        )
    return None


class TrainJob(BaseModel):
    """One stage of training."""

    model_config = _CONFIG

    kind: Literal["TrainJob"]
    """Kind of this document."""
    version: Literal[1]
    """Version of this kind."""
    recipe: Recipe | None = None
    """Several fields at once: `published`, the released fine-tuning as its code does it;
    `action-expert`, the action expert of a GWP-0.5 alone; `lora`, adapters. A field that says
    something else is refused. None: what the fields say.
    """
    stage: Literal["world", "embodied", "policy"]
    """What the run is for; it names the MLflow run and the lineage, the behaviour is in the
    other fields.
    """
    run: RunConfig
    """Name, place and length of the run."""
    # Without a slash it is the name or id of a run, which must not be made an absolute path.
    init: Annotated[str, PathField(names="[^/]*|models:/.*")] | None = None
    """Where weights start: the name of a run below `run.storage`, the id of an MLflow run, a
    policy of the registry (`models:/NAME@ALIAS`, `models:/NAME/VERSION`), or a folder/URI of a
    checkpoint; None: random weights.
    """
    model: ModelConfig | ReleasedConfig
    """Widths, or `released: gwp05`. Must equal those of `init`; `gwp weights convert` makes
    other checkpoints fit.
    """
    codec: VideoCodecConfig | None = None
    """Video codec; None: the one of `init`."""
    text: TextEncoderConfig | None = None
    """Text encoder; None: the one of `init`."""
    data: DataConfig
    """What is read and how a sample looks."""
    validation: ValidationConfig | None = None
    """What the run is judged by at its checkpoints; None: by nothing."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Training modes, noise and weights of the losses."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimiser and its schedule."""
    lora: LoraConfig | None = None
    """Adapters train in the place of the weights themselves; None: those train."""
    engine: DeepSpeedConfig = DeepSpeedConfig()
    """Batch, number format and sharding."""
    cluster: ClusterConfig = ClusterConfig()
    """Workers and what each of them needs."""

    @model_validator(mode="before")
    @classmethod
    def _of_recipe_and_family(cls, data: Any) -> Any:
        # What is no job at all is told by its fields.
        if not isinstance(data, dict) or (family := family_of(data.get("model"))) is None:
            return data
        return with_recipe(data, family, data.get("recipe"))

    @model_validator(mode="after")
    def _consistent(self) -> "TrainJob":
        # Both come with the weights, or are made by this run.
        if self.init is None and (self.codec is None or self.text is None):
            raise ValueError("without init the job must name its codec and text encoder")
        # Sources name robots, and `data.embodiments` says what they are.
        judged_by = self.validation.sources if self.validation else ()
        for where, sources in (("data", self.data.sources), ("validation", judged_by)):
            named = {s.embodiment for s in sources if s.embodiment}
            unknown = named - set(self.data.embodiments)
            if unknown:
                raise ValueError(
                    f"{where}.sources name embodiments that data.embodiments lacks: "
                    f"{', '.join(sorted(map(str, unknown)))}"
                )
        # Every worker takes part in every batch, of the canvas and of each bucket.
        smallest, workers = min(self.plan_rules.batch), self.cluster.max_workers
        if smallest < workers:
            raise ValueError(
                f"a batch of {smallest} samples has none for some of {workers} workers; lower "
                "cluster.workers, or raise engine.global_batch"
            )
        config = self.model_config_
        # Each robot reads one row of the projections.
        ids = [e.id for e in self.data.embodiments.values()]
        if any(i >= config.num_embodiments for i in ids):
            raise ValueError(
                f"embodiment ids {sorted(ids)} need model.num_embodiments above {max(ids)}, it "
                f"is {config.num_embodiments}"
            )
        self._names_what_trains()
        if (wrong := _unseen(config, self.objective)) is not None:
            raise ValueError(wrong)
        # It would run and never learn, which is found out late.
        if config.token_width > config.width:
            raise ValueError(
                f"a visual token holds {config.token_width} numbers but the model is "
                f"{config.width} wide: a velocity target wider than "
                "the network does not train; use fewer latent channels or more heads"
            )
        return self

    def _names_what_trains(self) -> None:
        chosen, lora = self.optimizer, self.lora
        if lora and (chosen.only or chosen.freeze):
            raise ValueError(
                "with lora its adapters and lora.whole train; leave optimizer.only and "
                "optimizer.freeze out"
            )
        frames = self.model_config_.actions == "latent-frame"
        if lora and frames and lora.whole == LoraConfig().whole:
            raise ValueError(
                "latent frames have no projections of states and actions, which lora.whole names by "
                "default; set it to [], or to [patch_embedding, proj_out]"
            )
        try:
            if chosen.only or chosen.freeze:
                trained_names(self.model_config_, chosen.only, chosen.freeze)
            if lora:
                parameters_named(self.model_config_, lora.on, "lora.on")
                parameters_named(self.model_config_, lora.whole, "lora.whole")
        except GwpError as error:
            raise ValueError(str(error)) from error

    # The underscore: `model_config` is pydantic's own.
    @property
    def model_config_(self) -> ModelConfig:
        """The widths, whether given or released."""
        if isinstance(self.model, ReleasedConfig):
            widths = ModelConfig.released(self.model.released)
            said = {"visibility": self.model.visibility, "actions": self.model.actions}
            return widths.model_copy(update=said)
        return self.model

    @property
    def trained(self) -> int:
        """Numbers that train: parameters, and those of adapters."""
        config, chosen = self.model_config_, self.optimizer
        if self.lora:
            return adapter_count(config, self.lora)
        return trained_count(config, chosen.only, chosen.freeze)

    @property
    def validator(self) -> ValidatorConfig | None:
        """The process that judges checkpoints beside the steps; None: the workers do, or nobody."""
        return self.validation.worker if self.validation else None

    def share(self, workers: int) -> int:
        """Samples of a global batch, of the canvas's shape, that one of so many workers has at
        most.
        """
        # Of buckets there may be more or fewer (`plan_rules`).
        return -(-self.engine.global_batch // workers)

    def passes(self, workers: int) -> int:
        """Micro-batches into which each of so many workers cuts its share of a global batch."""
        share = self.share(workers)
        return -(-share // min(self.engine.micro_batch or share, share))

    @property
    def plan_rules(self) -> Rules:
        """How the samples of an epoch are put into batches."""
        data = self.data
        # The canvas is bucket 0: its tokens are what no other batch may exceed.
        main = Bucket(frames=data.window.frames, height=data.canvas.height, width=data.canvas.width)
        # ValueError of a bucket that is too large: `_consistent` asks first, and tells it.
        sizes = batch_sizes((main, *data.buckets), self.engine.global_batch, data.batch_multiple)
        return Rules(sizes, data.together, data.batches == "mixed")
