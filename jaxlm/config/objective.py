"""The section `objective`: what the model learns to predict."""

from typing import Literal

from jaxlm.config.fields import Positive, PositiveFloat, Share, refuser, section
from jaxlm.config.model import Family

ObjectiveKind = Literal["causal", "prefix", "masked", "span", "infilling", "pairs"]

# The family that each objective trains.
TRAINED_BY: dict[str, Family] = {
    "causal": "decoder",
    "prefix": "decoder",
    "masked": "encoder",
    "span": "encoder_decoder",
    "infilling": "encoder_decoder",
    "pairs": "encoder_decoder",
}


@section("objective")
class ObjectiveConfig:
    """The tokens that are predicted, and the tokens that they are predicted from.

    causal      decoders: the next token
    prefix      decoders: the next token after a prefix of random length, whose tokens see each
                other in both directions (T5's prefix LM)
    masked      encoders: tokens that were hidden (BERT)
    span        encoder-decoders: spans that were cut out (T5)
    infilling   encoder-decoders: the original text; spans of it were hidden and its sentences
                shuffled in the source (BART)
    pairs       encoder-decoders: a target from its source, from sources of format "pairs"
    """

    kind: ObjectiveKind = "causal"
    # masked, span, infilling: share of the tokens that are hidden. None: 0.15, infilling 0.3
    noise_share: Share | None = None
    # masked: shares of the chosen tokens that become the mask token and any other token; the rest
    # stay as they are.
    mask_share: Share = 0.8
    random_share: Share = 0.1
    whole_words: bool = False  # masked: hide all tokens of a word or none
    mean_span: PositiveFloat = 3.0  # tokens; span: mean length; infilling: mean of the Poisson law
    shuffle_sentences: bool = True  # infilling
    target_length: Positive | None = None  # tokens; pairs: at most. None: data.sequence_length
    # First input of the decoder. None: pad (T5); infilling: end_of_text (BART)
    decoder_start: Literal["pad", "end_of_text"] | None = None

    @property
    def noise(self) -> float:
        """Return the share of the tokens that are hidden."""
        return self.noise_share or (0.3 if self.kind == "infilling" else 0.15)

    @property
    def start(self) -> str:
        """Return the special token that is the decoder's first input."""
        return self.decoder_start or ("end_of_text" if self.kind == "infilling" else "pad")

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the special tokens that the tokenizer must have beside the end of text."""
        return {
            "masked": ("pad", "mask"),
            "span": ("pad", "sentinels"),
            "infilling": ("pad", "mask"),
            "pairs": ("pad",),
        }.get(self.kind, ())

    def __post_init__(self):
        refuse = refuser("objective")
        if self.noise_share is not None and not 0 < self.noise_share < 1:
            refuse("noise_share", f"must be between 0 and 1, got {self.noise_share}")
        if self.mask_share + self.random_share > 1:
            reason = f"{self.random_share} and mask_share ({self.mask_share}) are more than 1"
            refuse("random_share", reason)

        if self.kind == "span" and self.mean_span < 1:
            refuse("mean_span", f"a span has at least one token, got {self.mean_span}")
        if self.target_length is not None and self.kind != "pairs":
            refuse("target_length", f"is only used with kind='pairs', got {self.kind!r}")
