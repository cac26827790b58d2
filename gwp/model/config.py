"""Shape of a world-action transformer, and the two released ones.

Groups of tokens: S state, R reference, A action, F future. An *expert* is a set of weights; a
family is a mapping from group to expert. GWP-0 ("dense") has one expert, GWP-0.5 ("mixture") a
wide visual and a narrow action expert. *Visibility* is the order of segments of groups: queries
of a segment see every key up to the segment's end.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Group = Literal["S", "R", "A", "F"]
Family = Literal["gwp0", "gwp05"]
GROUPS: tuple[Group, ...] = ("S", "R", "A", "F")
Visibility = Literal["action-centred", "joint", "video-first"]
ActionForm = Literal["tokens", "latent-frame"]
Segments = tuple[tuple[Group, ...], ...]

VISIBILITIES: dict[Visibility, Segments] = {
    # GigaWorld-Policy: actions never see the future, which acting leaves out.
    "action-centred": (("S", "R"), ("A",), ("F",)),
    # Motus: actions and future see each other.
    "joint": (("S", "R"), ("A", "F")),
    # LingBot-VA, mimic-video: the future first, then the actions that lead to it.
    "video-first": (("S", "R"), ("F",), ("A",)),
}


def visibility_named(value: Any) -> Visibility:
    """The visibility of this name or list of segments. ValueError tells those that there are."""
    for name, segments in VISIBILITIES.items():
        if value == name or _same_segments(value, segments):
            return name
    known = [f"{name} ({_written(segments)})" for name, segments in VISIBILITIES.items()]
    raise ValueError(f"visibility {value!r} is unknown; write one of {', '.join(known)}")


def _written(segments: Segments) -> str:
    inner = ", ".join(f"[{', '.join(segment)}]" for segment in segments)
    return f"[{inner}]"


def _same_segments(value: Any, segments: Segments) -> bool:
    # Within a segment all see each other, so its order says nothing.
    if not isinstance(value, list | tuple) or len(value) != len(segments):
        return False
    return all(
        isinstance(given, list | tuple) and sorted(map(str, given)) == sorted(segment)
        for given, segment in zip(value, segments, strict=True)
    )


VisibilityField = Annotated[Visibility, BeforeValidator(visibility_named)]
"""A field of a configuration: by name, or as a list of segments."""


def check_actions(actions: ActionForm, family: Family, visibility: Visibility) -> None:
    """ValueError unless a model of this family and visibility may have its actions in this form."""
    if actions == "latent-frame" and (family, visibility) != ("gwp0", "joint"):
        raise ValueError(
            "actions: latent-frame has one expert for everything and denoises all of it together; "
            f"set family gwp0 and visibility joint (here: {family}, {visibility})"
        )


# The spelling is the published one; checkpoints carry it.
CLASS_NAMES: dict[str, Family] = {
    "CasualWorldActionTransformer": "gwp0",
    "CasualWorldActionTransformer_MoT": "gwp05",
}
_FAMILY_CLASS = {family: name for name, family in CLASS_NAMES.items()}


class ModelConfig(BaseModel):
    """Widths of one model. Field names follow the published `config.json` where it has them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    family: Family = "gwp05"
    """`gwp0`: one expert for all tokens. `gwp05`: visual expert for R and F, action expert for
    S and A.
    """
    num_layers: int = Field(gt=0)
    """Transformer blocks."""
    num_attention_heads: int = Field(gt=0)
    """Heads of the joint self-attention; both experts project to the same heads."""
    attention_head_dim: int = Field(gt=0)
    """Width of one head; at least 6 and even, so that the three rotary axes have room."""
    ffn_dim: int = Field(gt=0)
    """Feed-forward width of the visual (or only) expert."""
    action_expert_dim: int | None = None
    """Width of the action expert; required for `gwp05`, absent for `gwp0`."""
    action_ffn_dim: int | None = None
    """Feed-forward width of the action expert; required for `gwp05`, absent for `gwp0`."""
    in_channels: int = Field(gt=0)
    """Latent channels of the video codec."""
    action_channels: int = Field(gt=0)
    """Model width of state and action vectors; narrower robots are zero-padded to it."""
    num_embodiments: int = Field(default=1, gt=0)
    """Rows of the embodiment-specific projections."""
    text_dim: int = Field(gt=0)
    """Width of the text embedding rows."""
    freq_dim: int = Field(default=256, gt=0)
    """Width of the sinusoidal noise-level embedding."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent patch (frames, rows, columns) that makes one visual token."""
    rope_max_seq_len: int = Field(default=1024, gt=0)
    """Longest extent of each rotary axis, positions."""
    eps: float = Field(default=1e-6, gt=0)
    """Epsilon of every normalisation."""
    visibility: VisibilityField = "action-centred"
    """Which groups of tokens see which, by name or as a list of segments, each of which sees
    itself and those before it. `action-centred`, `[[S, R], [A], [F]]`: acting needs no future.
    `joint`, `[[S, R], [A, F]]`: actions and future see each other, and acting denoises both.
    `video-first`, `[[S, R], [F], [A]]`: acting denoises the future, then the actions that lead to it.
    """
    actions: ActionForm = "tokens"
    """What states and actions are to the transformer. `tokens`: one a vector, by projections of
    their own. `latent-frame`: further latent frames, which their values, repeated, fill; they have
    the embedding and the head of the video (needs family `gwp0` and visibility `joint`).
    """

    # What has the default is dumped, and hashed, as before there was another.
    @model_serializer(mode="wrap")
    def _without_default(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        if self.actions == "tokens":
            fields.pop("actions", None)
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        # Rows and columns take 2 * (head_dim // 6) each: below 6 they would get nothing.
        if self.attention_head_dim % 2 or self.attention_head_dim < 6:
            raise ValueError(
                f"attention_head_dim {self.attention_head_dim} must be even and at least 6"
            )
        expert = (self.action_expert_dim, self.action_ffn_dim)
        if self.family == "gwp05" and None in expert:
            raise ValueError("family gwp05 needs action_expert_dim and action_ffn_dim")
        if self.family == "gwp0" and expert != (None, None):
            raise ValueError(
                "family gwp0 has one expert; remove action_expert_dim and action_ffn_dim"
            )
        check_actions(self.actions, self.family, self.visibility)
        # The reference is one latent frame: a deeper patch could not be filled.
        if self.patch_size[0] != 1:
            raise ValueError("patch_size[0] must be 1: a visual token belongs to one latent frame")
        return self

    @property
    def segments(self) -> Segments:
        """Groups that see each other; those of a segment see all segments before it, too."""
        return VISIBILITIES[self.visibility]

    @property
    def order(self) -> tuple[Group, ...]:
        """The groups as they stand in a pass: canonical order, segment by segment."""
        return tuple(group for segment in self.segments for group in segment)

    def segment_of(self, group: Group) -> int:
        """Place of a group's segment among `segments`."""
        return next(i for i, segment in enumerate(self.segments) if group in segment)

    @property
    def acts_with_future(self) -> bool:
        """Whether actions see the future, so that acting has to denoise it too."""
        return self.visibility != "action-centred"

    @property
    def width(self) -> int:
        """Width of the visual (or only) expert."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def experts(self) -> dict[str, tuple[int, int]]:
        """Expert name -> (width, feed-forward width)."""
        if self.action_expert_dim is None or self.action_ffn_dim is None:
            return {"shared": (self.width, self.ffn_dim)}
        # In this order modules are made: it decides what weights a seed gives.
        return {
            "action": (self.action_expert_dim, self.action_ffn_dim),
            "visual": (self.width, self.ffn_dim),
        }

    @property
    def expert_of(self) -> dict[Group, str]:
        """Group -> the expert whose weights its tokens use."""
        if self.family == "gwp0":
            return dict.fromkeys(GROUPS, "shared")
        # What a robot says and does goes the narrow way, what cameras see the wide one.
        return {"S": "action", "R": "visual", "A": "action", "F": "visual"}

    @property
    def token_width(self) -> int:
        """Numbers in one visual token's target. Wider than the network, a velocity target does
        not train.
        """
        return self.in_channels * self.patch_size[1] * self.patch_size[2]

    @classmethod
    def released(cls, family: Family) -> "ModelConfig":
        """The published shapes: GWP-0 (July, 5.0 B parameters) and GWP-0.5 (6.0 B)."""
        mixture = {"action_expert_dim": 1024, "action_ffn_dim": 4096} if family == "gwp05" else {}
        return cls(
            family=family,
            # The trunk of Wan 2.2 (5 B), from which the visual side descends.
            num_layers=30,
            num_attention_heads=24,
            attention_head_dim=128,
            ffn_dim=14336,
            in_channels=48,
            action_channels=16,
            num_embodiments=2,
            text_dim=4096,
            **mixture,
        )

    def to_published(self) -> dict[str, Any]:
        """The `config.json` of the published checkpoint form."""
        # Diffusers' keys, so that other loaders of these checkpoints read ours.
        config: dict[str, Any] = {
            "_class_name": _FAMILY_CLASS[self.family],
            "patch_size": list(self.patch_size),
            "num_attention_heads": self.num_attention_heads,
            "attention_head_dim": self.attention_head_dim,
            "in_channels": self.in_channels,
            "out_channels": self.in_channels,
            "text_dim": self.text_dim,
            "freq_dim": self.freq_dim,
            "ffn_dim": self.ffn_dim,
            "num_layers": self.num_layers,
            # What never varies here: it says how our layers are built.
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "eps": self.eps,
            "image_dim": None,
            "added_kv_proj_dim": None,
            "rope_max_seq_len": self.rope_max_seq_len,
            "pos_embed_seq_len": None,
            "in_action_channels": self.action_channels,
            "out_action_channels": self.action_channels,
            "num_embodiments": self.num_embodiments,
        }
        if self.family == "gwp05":
            config |= {
                "action_expert_dim": self.action_expert_dim,
                "action_ffn_dim": self.action_ffn_dim,
            }
        # The published models have one and do not name it.
        if self.visibility != "action-centred":
            config["visibility"] = self.visibility
        if self.actions != "tokens":
            config["actions"] = self.actions
        return config
