"""The section `model`: the shape of the network."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

from jaxlm.config.classifier import ClassifierConfig
from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import (
    Bounds,
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

# Rows of a table, which are counted in int32 with what is added to them.
Length = Annotated[int, Bounds(low=1, high=2**30)]

ROUNDING = 0.01  # of a size that is a share of another: 0.33333 of 768 is 256

# The token that a classifier of texts reads.
FIRST_OR_LAST = {"encoder": "first", "decoder": "last", "encoder_decoder": "last"}

ENCODER_SIZES = ("encoder_layers", "encoder_heads", "encoder_kv_heads", "encoder_mlp_width")


@section("model")
class ModelConfig:
    """The shape of the network.

    Every field changes the parameters or the function that they compute.
    """

    family: Family = "decoder"
    # Logical size; in memory the table is padded to a multiple of 128 rows, counted in int32.
    vocabulary_size: Length = 50257

    # Sizes. In an encoder-decoder the first four hold for both stacks, unless an encoder_ field
    # overrides them for the encoder.
    layers: Positive = 12
    heads: Positive = 12
    kv_heads: Positive | None = None  # None: as many as heads; 1: multi-query attention
    mlp_width: Positive | None = None  # None: 4 * width
    encoder_layers: Positive | None = None
    encoder_heads: Positive | None = None
    encoder_kv_heads: Positive | None = None
    encoder_mlp_width: Positive | None = None
    width: Positive = 768
    head_width: Positive | None = None  # None: width / heads
    context_length: Length = 1024  # tokens; rows of a table of learned positions

    # Norms and residual connections
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: PositiveFloat = 1e-5
    # pre: before the sublayer; post: after the sublayer and the residual connection;
    # both: before the sublayer and right after it
    norm_placement: Literal["pre", "post", "both"] = "pre"
    norm_offset: bool = False  # norms multiply by 1 + scale (Gemma)
    first_norm: bool = True  # the norm before the attention of layer 0 (ModernBERT: false)
    # parallel: attention and MLP read the same input (GPT-NeoX);
    # normed: the residual connection starts after the norm (an option of BLOOM)
    residual: Literal["serial", "parallel", "normed"] = "serial"

    # Embeddings
    embedding_norm: bool = False  # a norm right after the embeddings (BERT, BART, BLOOM)
    # Width of the token table, with a projection from and to `width` (OPT 350M). None: width
    embedding_width: Positive | None = None
    embedding_scaling: bool = False  # token embeddings times sqrt(width) (the original Transformer)
    shared_embedding: bool = True  # encoder-decoders: one token table for both stacks
    token_types: Count = 0  # encoders: rows of a table of segment types (BERT 2, RoBERTa 1)

    # Positions
    positions: Literal["learned", "sinusoidal", "rotary", "alibi", "relative", "none"] = "learned"
    # learned: rows of the table before that of the first token (RoBERTa and BART: 2)
    position_offset: Annotated[int, Bounds(low=0, high=2**20)] = 0
    relative_buckets: Positive = 32  # relative: T5's buckets of distances, one bias each per head
    relative_max_distance: Positive = 128  # tokens; relative: larger distances share a bucket
    rotary_theta: PositiveFloat = 10000.0
    # rotary: theta of the layers with a sliding window (ModernBERT). None: rotary_theta
    rotary_theta_sliding: PositiveFloat | None = None
    rotary_share: Share = 1.0  # of the channels of a head, from the first on (GPT-NeoX 0.25)
    rotary_scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    rotary_scaling_factor: PositiveFloat = 1.0
    # llama3, yarn: channels with fewer turns within the original length than the low factor are
    # divided by rotary_scaling_factor; those with more turns than the high factor are kept.
    rotary_low_frequency_factor: PositiveFloat = 1.0
    rotary_high_frequency_factor: PositiveFloat = 4.0
    rotary_original_length: Positive = 8192  # tokens; llama3, yarn: the context before scaling
    # yarn: factor of the cosines and sines. None: 0.1 ln(rotary_scaling_factor) + 1
    rotary_attention_factor: PositiveFloat | None = None

    # MLP
    activation: Activation = "gelu_tanh"
    gated: bool = False  # act(gate(x)) * up(x): SwiGLU, GEGLU, ...

    # Biases and head
    attention_bias: bool = True  # on the query, key and value projections
    attention_output_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True  # LayerNorm only: RMSNorm has none
    head_bias: bool = False
    head_transform: bool = False  # a dense layer, an activation and a norm before the head (BERT)
    head_transform_bias: bool = True
    head_activation: Activation | None = None  # of the head's transform. None: activation
    head_scaling: bool = False  # features times width ** -0.5 before the head (T5 1.0)

    # Attention
    query_key_norm: bool = False  # RMSNorm over each head of q and k
    attention_scale: PositiveFloat | None = None  # of the scores. None: head width ** -0.5; T5: 1
    attention_softcap: PositiveFloat | None = None  # scores become cap * tanh(scores / cap)
    logit_softcap: PositiveFloat | None = None  # the same for the logits of the head
    # Tokens: a query sees itself and the window - 1 tokens before it (encoders: and after it).
    sliding_window: Positive | None = None
    # Repeated over the layers. (): every layer has the sliding window, if there is one
    attention_pattern: tuple[Literal["full", "sliding"], ...] = ()

    # Tying, dropout and initial values
    tied_head: bool = True  # the head is the token embedding, transposed
    dropout: ShareBelowOne = 0.0  # on the embeddings and on the output of each sublayer
    attention_dropout: ShareBelowOne = 0.0  # on the attention weights; rules out cuDNN attention
    # The table of initializers is in jaxlm/nn/initializers.py.
    initializer: Literal["gpt2", "normal", "fan_in", "t5"] = "gpt2"
    initializer_std: PositiveFloat = 0.02  # gpt2 and normal
    zero_head: bool = False  # an untied head starts at 0 (arXiv 2203.03466, appendix D.2)
    # mup: a learning rate that is tuned at mup_base_width holds at every width (arXiv 2203.03466).
    # All other widths and the number of heads grow with the width; of mup_wide_heads the heads
    # keep their number and get wider. docs/scaling.md has the recipe
    parametrization: Literal["standard", "mup", "mup_wide_heads"] = "standard"
    mup_base_width: Positive | None = None  # where the model is that of "standard"

    # encoders: ELECTRA (arXiv 2003.10555), whose generator has this share of the width, the heads
    # and the MLP (small and large 1/4, base 1/3). 0: its generator is not there. None: no ELECTRA
    generator_share: Share | None = None
    classifier: ClassifierConfig = ClassifierConfig()

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def width_per_head(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def hidden_width(self) -> int:
        """Return the width of the MLP's hidden layer."""
        return self.mlp_width or 4 * self.width

    @property
    def rotary_width(self) -> int:
        """Return how many channels of a head are rotated."""
        return int(self.width_per_head * self.rotary_share)

    @property
    def width_ratio(self) -> float:
        """Return how many times wider the model is than muP's base; 1 without muP."""
        return self.width / (self.mup_base_width or self.width)

    @property
    def head_width_ratio(self) -> float:
        """Return how many times wider a head is than that of muP's base."""
        return self.width_ratio if self.parametrization == "mup_wide_heads" else 1.0

    @property
    def token_width(self) -> int:
        """Return the width of the token table."""
        return self.embedding_width or self.width

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Return the attention window of each layer of one period of the stack.

        None means that a layer sees everything.
        """
        pattern = self.attention_pattern or ("sliding",)
        return tuple(self.sliding_window if layer == "sliding" else None for layer in pattern)

    @property
    def encoder(self) -> "ModelConfig":
        """Return the config of an encoder-decoder's encoder, with the sizes of its own."""
        heads = self.encoder_heads or self.heads
        inherited_kv_heads = self.kv_heads if heads == self.heads else None

        return replace(
            self,
            family="encoder",
            layers=self.encoder_layers or self.layers,
            heads=heads,
            kv_heads=self.encoder_kv_heads or inherited_kv_heads,
            mlp_width=self.encoder_mlp_width or self.mlp_width,
            shared_embedding=True,
            encoder_layers=None,
            encoder_heads=None,
            encoder_kv_heads=None,
            encoder_mlp_width=None,
        )

    @property
    def generator(self) -> "ModelConfig | None":
        """Return the config of ELECTRA's generator, which reads the token table of the model."""
        share = self.generator_share
        if not share or self.is_classifier:
            return None
        return replace(
            self,
            width=round(share * self.width),
            mup_base_width=self.base_of(round(share * self.width)),
            heads=round(share * self.heads),
            kv_heads=self.kv_heads and round(share * self.kv_heads),
            mlp_width=round(share * self.hidden_width),
            embedding_width=self.token_width,
            generator_share=None,
        )

    def base_of(self, width: int) -> int | None:
        """Return muP's base of a part of the model that has this width; None without muP."""
        return self.mup_base_width and max(1, round(width / self.width_ratio))

    @property
    def is_classifier(self) -> bool:
        """Return whether the model gives labels in place of tokens."""
        return self.classifier.kind != "none"

    @property
    def outputs(self) -> int:
        """Return how many scores a position has: one of each token, or of each label."""
        return len(self.classifier.labels) or self.vocabulary_size

    @property
    def label_head(self) -> ClassifierConfig:
        """Return the config of a classifier's head, with what None stands for."""
        head = self.classifier
        is_decoder, is_token = self.family == "decoder", head.kind == "token"
        transform = "tanh"
        if self.head_transform and self.norm_placement == "pre":  # as ModernBERT
            transform = "head"
        elif is_token or is_decoder:
            transform = "none"
        elif self.generator_share is not None:  # as ELECTRA
            transform = "gelu"
        elif self.family == "encoder" and not self.token_types:  # as DistilBERT
            transform = "relu"

        return replace(
            head,
            pooling=head.pooling or (None if is_token else FIRST_OR_LAST[self.family]),
            transform=head.transform or transform,
            bias=head.bias if head.bias is not None else is_token or not is_decoder,
            dropout=self.dropout if head.dropout is None else head.dropout,
        )

    @property
    def stacks(self) -> dict[str, "ModelConfig"]:
        """Return the config of each stack of blocks, by the prefix of its fields' names."""
        return {"": self} | ({"encoder_": self.encoder} if self.family == "encoder_decoder" else {})

    def __post_init__(self):
        refuse = refuser("model")
        self.check_family(refuse)

        if self.head_width is None and self.width % self.heads:
            reason = f"{self.width} is not a multiple of heads ({self.heads})"
            refuse("width", f"{reason}; set head_width to choose it freely")
        if self.heads % self.key_value_heads:
            refuse("kv_heads", f"{self.kv_heads} does not divide heads ({self.heads})")

        self.check_positions(refuse)
        self.check_layers(refuse)
        self.check_parametrization(refuse)
        if self.zero_head and self.tied_head:
            refuse("zero_head", "needs tied_head=false: a tied head is the token embedding")
        if self.generator_share is not None:
            self.check_generator(refuse)
        if self.label_head.transform == "head" and not self.head_transform:
            reason = "'head' needs model.head_transform=true: it is that layer"
            raise ConfigError("model.classifier.transform", reason)

    def check_family(self, refuse: Callable[[str, str], None]) -> None:
        """Refuse the fields of another family, and encoder sizes that do not fit each other."""
        if self.family == "encoder_decoder":
            heads = self.encoder_heads or self.heads
            if self.head_width is None and self.width % heads:
                reason = f"{heads} does not divide width ({self.width})"
                refuse("encoder_heads", f"{reason}; set head_width to choose it freely")
            if self.encoder_kv_heads is not None and heads % self.encoder_kv_heads:
                reason = f"{self.encoder_kv_heads} does not divide the encoder's heads ({heads})"
                refuse("encoder_kv_heads", reason)
            if self.sliding_window:
                reason = "is only used with family='decoder' and 'encoder', got 'encoder_decoder'"
                refuse("sliding_window", reason)
        else:
            for name in ENCODER_SIZES:
                if getattr(self, name) is not None:
                    refuse(name, f"is only used with family='encoder_decoder', got {self.family!r}")
            if not self.shared_embedding:
                reason = f"false needs family='encoder_decoder', got {self.family!r}"
                refuse("shared_embedding", reason)

        if self.token_types and self.family != "encoder":
            refuse("token_types", f"is only used with family='encoder', got {self.family!r}")

    def check_positions(self, refuse: Callable[[str, str], None]) -> None:
        """Refuse what does not go with `positions`."""
        positions = self.positions
        if positions == "rotary" and (self.rotary_width % 2 or not self.rotary_width):
            reason = f"rotary positions need an even number of channels, got {self.rotary_width}"
            refuse("head_width", f"{reason} (rotary_share of the head width)")
        if positions == "sinusoidal" and self.width % 2:
            refuse("width", f"sinusoidal positions need an even width, got {self.width}")

        if self.rotary_scaling != "none" and positions != "rotary":
            reason = f"{self.rotary_scaling!r} needs positions='rotary', got {positions!r}"
            refuse("rotary_scaling", reason)
        thetas = {
            "rotary_theta": self.rotary_theta,
            "rotary_theta_sliding": self.rotary_theta_sliding,
        }
        for name, theta in thetas.items():
            if self.rotary_scaling == "yarn" and theta is not None and theta <= 1:
                refuse(name, f"must be above 1 with rotary_scaling='yarn', got {theta}")
        if self.rotary_high_frequency_factor <= self.rotary_low_frequency_factor:
            refuse("rotary_high_frequency_factor", "must be above rotary_low_frequency_factor")

        # Half of the buckets are for each direction, and half of those for exact distances.
        buckets, farthest = self.relative_buckets, self.relative_max_distance
        if positions == "relative" and (buckets % 4 or farthest <= buckets // 2):
            needs = f"needs a multiple of 4 and relative_max_distance ({farthest}) above its half"
            refuse("relative_buckets", f"{buckets}: {needs}")

        if self.position_offset and positions != "learned":
            refuse("position_offset", f"is only used with positions='learned', got {positions!r}")

    def check_layers(self, refuse: Callable[[str, str], None]) -> None:
        """Refuse variants of a layer that need another field."""
        placement, has_sliding = self.norm_placement, "sliding" in self.attention_pattern
        if self.residual != "serial" and placement != "pre":
            refuse("residual", f"{self.residual!r} needs norm_placement='pre', got {placement!r}")
        if not self.first_norm and placement != "pre":
            refuse("first_norm", f"false needs norm_placement='pre', got {placement!r}")

        if has_sliding and self.sliding_window is None:
            refuse("attention_pattern", "has 'sliding' layers, which need sliding_window")
        if self.rotary_theta_sliding is not None and (
            self.positions != "rotary" or not has_sliding
        ):
            reason = "needs positions='rotary' and an attention_pattern with 'sliding' layers"
            refuse("rotary_theta_sliding", reason)

    def check_parametrization(self, refuse: Callable[[str, str], None]) -> None:
        """Refuse muP without a base width, and a base width without muP."""
        is_mup, base = self.parametrization != "standard", self.mup_base_width
        if is_mup and base is None:
            reason = f"parametrization={self.parametrization!r} needs it"
            refuse("mup_base_width", f"{reason}: the width at which the learning rate is tuned")
        if not is_mup and base is not None:
            refuse("mup_base_width", "is only used with parametrization='mup', got 'standard'")

    def check_generator(self, refuse: Callable[[str, str], None]) -> None:
        """Refuse a generator of other models than encoders, and one of broken sizes."""
        if self.family != "encoder":
            refuse("generator_share", f"is only used with family='encoder', got {self.family!r}")
        if not self.head_transform:
            refuse("head_transform", "false: the head of a generator (generator_share) has one")

        sizes = {"width": self.width, "heads": self.heads, "kv_heads": self.key_value_heads}
        for name, size in (sizes | {"mlp_width": self.hidden_width}).items():
            part = self.generator_share * size if self.generator_share else size
            if round(part) < 1 or abs(part - round(part)) > ROUNDING:
                reason = f"{self.generator_share:.6g} of {name} ({size}) is {part:.6g}"
                refuse("generator_share", f"{reason}, which is no whole number")
