"""The network's shape."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from jaxlm.config.fields import (
    Count,
    Positive,
    PositiveFloat,
    Share,
    ShareBelowOne,
    refuser,
    section,
)

Family = Literal["decoder", "encoder", "encoder_decoder"]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu_squared", "silu"]


@section("model")
class ModelConfig:
    """The network's shape. Everything here changes the parameters or the function that they compute."""

    family: Family = "decoder"
    vocabulary_size: Positive = (
        50257  # logical size; the table is padded to a multiple of 128 in memory
    )
    layers: Positive = 12  # these four hold for both stacks of an encoder-decoder ...
    heads: Positive = 12
    kv_heads: Positive | None = None  # None: as many as heads; 1: multi-query attention
    mlp_width: Positive | None = None  # None: 4 * width
    encoder_layers: Positive | None = None  # ... unless these say otherwise for its encoder
    encoder_heads: Positive | None = None
    encoder_kv_heads: Positive | None = None
    encoder_mlp_width: Positive | None = None
    width: Positive = 768
    head_width: Positive | None = None  # None: width / heads
    context_length: Positive = (
        1024  # positions that the model is built for; rows of a learned position table
    )

    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: PositiveFloat = 1e-5
    norm_placement: Literal["pre", "post", "both"] = (
        "pre"  # before the sublayer, after it and the residual, or before and right after it
    )
    norm_offset: bool = False  # norms multiply by 1 + scale (Gemma)
    first_norm: bool = True  # the norm before the first layer's attention (ModernBERT does without)
    residual: Literal["serial", "parallel", "normed"] = (
        "serial"  # parallel: attention and MLP read the same (GPT-NeoX); normed: the ...
    )
    # ... residual connection begins behind the norm (an option of BLOOM)
    embedding_norm: bool = False  # a norm right after the embeddings (BERT, BART, BLOOM)
    embedding_width: Positive | None = (
        None  # of the token table, with a projection from and to `width` (OPT 350M). None: width
    )
    embedding_scaling: bool = False  # token embeddings times sqrt(width) (the original Transformer)
    shared_embedding: bool = True  # encoder-decoders: one token table for both stacks
    token_types: Count = 0  # encoders: rows of a table of segment types (BERT 2, RoBERTa 1)

    positions: Literal["learned", "sinusoidal", "rotary", "alibi", "relative", "none"] = "learned"
    position_offset: Count = (
        0  # learned: rows before that of the first position (RoBERTa and BART 2)
    )
    relative_buckets: Positive = 32  # relative: T5's buckets of distances, one bias each per head
    relative_max_distance: Positive = 128  # relative: from there on all distances share a bucket
    rotary_theta: PositiveFloat = 10000.0
    rotary_theta_sliding: PositiveFloat | None = (
        None  # of layers with a sliding window (ModernBERT). None: rotary_theta
    )
    rotary_share: Share = (
        1.0  # of a head's channels, the first ones, that are rotated (GPT-NeoX 0.25)
    )
    rotary_scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    rotary_scaling_factor: PositiveFloat = 1.0
    rotary_low_frequency_factor: PositiveFloat = (
        1.0  # llama3, yarn: turns within the original length, up to which channels are divided ...
    )
    rotary_high_frequency_factor: PositiveFloat = 4.0  # ... and from which on they are kept
    rotary_original_length: Positive = 8192  # llama3, yarn: the context length before scaling
    rotary_attention_factor: PositiveFloat | None = (
        None  # yarn: of cosines and sines. None: 0.1 ln(factor) + 1
    )

    activation: Activation = "gelu_tanh"
    gated: bool = False  # act(gate(x)) * up(x): SwiGLU, GEGLU, ...

    attention_bias: bool = True  # on the query, key and value projections
    attention_output_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True  # LayerNorm only: RMSNorm has none
    head_bias: bool = False
    head_transform: bool = False  # a dense layer, an activation and a norm before the head (BERT)
    head_transform_bias: bool = True
    head_activation: Activation | None = None  # of the transform; None: activation
    head_scaling: bool = False  # features times width ** -0.5 before the head (T5 1.0)

    query_key_norm: bool = False  # RMSNorm over each head of q and k
    attention_scale: PositiveFloat | None = (
        None  # of the scores; None: head width ** -0.5. T5 has 1
    )
    attention_softcap: PositiveFloat | None = None  # scores become cap * tanh(scores / cap)
    logit_softcap: PositiveFloat | None = None
    sliding_window: Positive | None = (
        None  # a query sees the tokens less than that away: itself and window - 1 before it (and after it)
    )
    attention_pattern: tuple[
        Literal["full", "sliding"], ...
    ] = ()  # of the layers in turn, over and over; (): all as sliding_window says
    tied_head: bool = True  # the head is the token embedding, transposed

    dropout: ShareBelowOne = 0.0  # on the embeddings and on each sublayer's output
    attention_dropout: ShareBelowOne = (
        0.0  # on the attention weights; keeps cuDNN attention from being used
    )

    initializer: Literal["gpt2", "normal", "fan_in", "t5"] = (
        "gpt2"  # jaxlm/nn/initializers.py has the table
    )
    initializer_std: PositiveFloat = 0.02  # gpt2 and normal

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def width_per_head(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def hidden_width(self) -> int:
        return self.mlp_width or 4 * self.width

    @property
    def rotary_width(self) -> int:
        """Channels of a head that are rotated."""
        return int(self.width_per_head * self.rotary_share)

    @property
    def token_width(self) -> int:
        """Width of the token table."""
        return self.embedding_width or self.width

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer of a period of the stack; None sees everything."""
        pattern = self.attention_pattern or ("sliding",)
        return tuple(self.sliding_window if kind == "sliding" else None for kind in pattern)

    @property
    def encoder(self) -> "ModelConfig":
        """The encoder of an encoder-decoder: an encoder of its own sizes."""
        heads = self.encoder_heads or self.heads
        return replace(
            self,
            family="encoder",
            layers=self.encoder_layers or self.layers,
            heads=heads,
            kv_heads=self.encoder_kv_heads or (self.kv_heads if heads == self.heads else None),
            mlp_width=self.encoder_mlp_width or self.mlp_width,
            shared_embedding=True,
            encoder_layers=None,
            encoder_heads=None,
            encoder_kv_heads=None,
            encoder_mlp_width=None,
        )

    @property
    def stacks(self) -> dict[str, "ModelConfig"]:
        """The stacks of blocks, by what their fields' names begin with."""
        return {"": self} | ({"encoder_": self.encoder} if self.family == "encoder_decoder" else {})

    def __post_init__(self):
        refuse = refuser("model")
        self.check_stacks(refuse)
        if self.head_width is None and self.width % self.heads:
            refuse(
                "width",
                f"{self.width} is not a multiple of heads ({self.heads}); set head_width to choose it freely",
            )
        if self.heads % self.key_value_heads:
            refuse("kv_heads", f"{self.kv_heads} does not divide heads ({self.heads})")
        if self.positions == "rotary" and (self.rotary_width % 2 or not self.rotary_width):
            refuse(
                "head_width",
                f"rotary positions need an even number of channels, got {self.rotary_width} (rotary_share of the head width)",
            )
        if self.positions == "sinusoidal" and self.width % 2:
            refuse("width", f"sinusoidal positions need an even width, got {self.width}")
        if self.rotary_scaling != "none" and self.positions != "rotary":
            refuse(
                "rotary_scaling",
                f"{self.rotary_scaling!r} needs positions='rotary', got {self.positions!r}",
            )
        if self.rotary_high_frequency_factor <= self.rotary_low_frequency_factor:
            refuse("rotary_high_frequency_factor", "must be above rotary_low_frequency_factor")
        if self.positions == "relative" and (
            self.relative_buckets % 4 or self.relative_max_distance <= self.relative_buckets // 2
        ):
            reason = f"needs a multiple of 4 and relative_max_distance ({self.relative_max_distance}) above its half"
            refuse("relative_buckets", f"{self.relative_buckets}: {reason}")
        if self.position_offset and self.positions != "learned":
            refuse(
                "position_offset", f"is only used with positions='learned', got {self.positions!r}"
            )
        self.check_variants(refuse)

    def check_variants(self, refuse: Callable[[str, str], None]):
        """Settings that need another one."""
        if self.residual != "serial" and self.norm_placement != "pre":
            refuse(
                "residual",
                f"{self.residual!r} needs norm_placement='pre', got {self.norm_placement!r}",
            )
        if not self.first_norm and self.norm_placement != "pre":
            refuse("first_norm", f"false needs norm_placement='pre', got {self.norm_placement!r}")
        if "sliding" in self.attention_pattern and self.sliding_window is None:
            refuse("attention_pattern", "has 'sliding' layers, which need sliding_window")
        if self.rotary_theta_sliding is not None and (
            self.positions != "rotary" or "sliding" not in self.attention_pattern
        ):
            refuse(
                "rotary_theta_sliding",
                "needs positions='rotary' and an attention_pattern with 'sliding' layers",
            )

    def check_stacks(self, refuse: Callable[[str, str], None]):
        """Settings of one family alone."""
        if self.family != "encoder_decoder":
            for name in (
                "encoder_layers",
                "encoder_heads",
                "encoder_kv_heads",
                "encoder_mlp_width",
            ):
                if getattr(self, name) is not None:
                    refuse(name, f"is only used with family='encoder_decoder', got {self.family!r}")
            if not self.shared_embedding:
                refuse(
                    "shared_embedding", f"false needs family='encoder_decoder', got {self.family!r}"
                )
        else:
            heads = self.encoder_heads or self.heads
            if self.head_width is None and self.width % heads:
                refuse(
                    "encoder_heads",
                    f"{heads} does not divide width ({self.width}); set head_width to choose it freely",
                )
            if self.encoder_kv_heads is not None and heads % self.encoder_kv_heads:
                refuse(
                    "encoder_kv_heads",
                    f"{self.encoder_kv_heads} does not divide the encoder's heads ({heads})",
                )
        if self.token_types and self.family != "encoder":
            refuse("token_types", f"is only used with family='encoder', got {self.family!r}")
        if self.sliding_window and self.family == "encoder_decoder":
            refuse(
                "sliding_window",
                f"is only used with family='decoder' and 'encoder', got {self.family!r}",
            )
