"""The network's shape."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from jaxlm.config.fields import Count, Positive, PositiveFloat, ShareBelowOne, refuser, section

Family = Literal["decoder", "encoder", "encoder_decoder"]


@section("model")
class Model:
    """The network's shape. Everything here changes the parameters or the function that they compute."""

    family: Family = "decoder"
    vocabulary_size: Positive = 50257  # logical size; the table is padded to a multiple of 128 in memory
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
    context_length: Positive = 1024  # positions that the model is built for; rows of a learned position table

    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: PositiveFloat = 1e-5
    norm_placement: Literal["pre", "post"] = "pre"  # before or after the sublayer
    embedding_norm: bool = False  # a norm right after the embeddings (BERT, BART, BLOOM)
    embedding_scaling: bool = False  # token embeddings times sqrt(width) (the original Transformer)
    shared_embedding: bool = True  # encoder-decoders: one token table for both stacks
    token_types: Count = 0  # encoders: rows of a table of segment types (BERT 2, RoBERTa 1)

    positions: Literal["learned", "sinusoidal", "rotary", "alibi", "relative", "none"] = "learned"
    position_offset: Count = 0  # learned: rows before that of the first position (RoBERTa and BART 2)
    relative_buckets: Positive = 32  # relative: T5's buckets of distances, one bias each per head
    relative_max_distance: Positive = 128  # relative: from there on all distances share a bucket
    rotary_theta: PositiveFloat = 10000.0
    rotary_scaling: Literal["none", "linear", "llama3"] = "none"
    rotary_scaling_factor: PositiveFloat = 1.0
    rotary_low_frequency_factor: PositiveFloat = 1.0  # llama3 scaling
    rotary_high_frequency_factor: PositiveFloat = 4.0  # llama3 scaling
    rotary_original_length: Positive = 8192  # llama3 scaling: the context length before scaling

    activation: Literal["gelu", "gelu_tanh", "relu", "relu_squared", "silu"] = "gelu_tanh"
    gated: bool = False  # act(gate(x)) * up(x): SwiGLU, GEGLU, ...

    attention_bias: bool = True  # on the query, key and value projections
    attention_output_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True  # LayerNorm only: RMSNorm has none
    head_bias: bool = False
    head_transform: bool = False  # a dense layer, the activation and a norm before the head (BERT)
    head_scaling: bool = False  # features times width ** -0.5 before the head (T5 1.0)

    query_key_norm: bool = False  # RMSNorm over each head of q and k
    attention_scale: PositiveFloat | None = None  # of the scores; None: head width ** -0.5. T5 has 1
    attention_softcap: PositiveFloat | None = None  # scores become cap * tanh(scores / cap)
    logit_softcap: PositiveFloat | None = None
    sliding_window: Positive | None = None  # a query sees itself and the window - 1 tokens before it
    tied_head: bool = True  # the head is the token embedding, transposed

    dropout: ShareBelowOne = 0.0  # on the embeddings and on each sublayer's output
    attention_dropout: ShareBelowOne = 0.0  # on the attention weights; keeps cuDNN attention from being used

    initializer: Literal["gpt2", "normal", "fan_in", "t5"] = "gpt2"  # jaxlm/nn/initializers.py has the table
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
    def encoder(self) -> "Model":
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
    def stacks(self) -> dict[str, "Model"]:
        """The stacks of blocks, by what their fields' names begin with."""
        return {"": self} | ({"encoder_": self.encoder} if self.family == "encoder_decoder" else {})

    def __post_init__(self):
        refuse = refuser("model")
        self.check_stacks(refuse)
        if self.head_width is None and self.width % self.heads:
            refuse("width", f"{self.width} is not a multiple of heads ({self.heads}); set head_width to choose it freely")
        if self.heads % self.key_value_heads:
            refuse("kv_heads", f"{self.kv_heads} does not divide heads ({self.heads})")
        if self.positions == "rotary" and self.width_per_head % 2:
            refuse("head_width", f"rotary positions need an even head width, got {self.width_per_head}")
        if self.positions == "sinusoidal" and self.width % 2:
            refuse("width", f"sinusoidal positions need an even width, got {self.width}")
        if self.rotary_scaling != "none" and self.positions != "rotary":
            refuse("rotary_scaling", f"{self.rotary_scaling!r} needs positions='rotary', got {self.positions!r}")
        if self.rotary_high_frequency_factor <= self.rotary_low_frequency_factor:
            refuse("rotary_high_frequency_factor", "must be above rotary_low_frequency_factor")
        if self.positions == "relative" and (self.relative_buckets % 4 or self.relative_max_distance <= self.relative_buckets // 2):
            reason = f"needs a multiple of 4 and relative_max_distance ({self.relative_max_distance}) above its half"
            refuse("relative_buckets", f"{self.relative_buckets}: {reason}")
        if self.position_offset and self.positions != "learned":
            refuse("position_offset", f"is only used with positions='learned', got {self.positions!r}")

    def check_stacks(self, refuse: Callable[[str, str], None]):
        """Settings of one family alone."""
        if self.family != "encoder_decoder":
            for name in ("encoder_layers", "encoder_heads", "encoder_kv_heads", "encoder_mlp_width"):
                if getattr(self, name) is not None:
                    refuse(name, f"is only used with family='encoder_decoder', got {self.family!r}")
            if not self.shared_embedding:
                refuse("shared_embedding", f"false needs family='encoder_decoder', got {self.family!r}")
        else:
            heads = self.encoder_heads or self.heads
            if self.head_width is None and self.width % heads:
                refuse("encoder_heads", f"{heads} does not divide width ({self.width}); set head_width to choose it freely")
            if self.encoder_kv_heads is not None and heads % self.encoder_kv_heads:
                refuse("encoder_kv_heads", f"{self.encoder_kv_heads} does not divide the encoder's heads ({heads})")
        if self.token_types and self.family != "encoder":
            refuse("token_types", f"is only used with family='encoder', got {self.family!r}")
        if self.sliding_window and self.family != "decoder":
            refuse("sliding_window", f"is only used with family='decoder', got {self.family!r}")
