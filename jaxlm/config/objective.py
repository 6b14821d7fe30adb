"""The section `objective`: what the model learns to predict."""

from collections.abc import Callable
from typing import Literal

from jaxlm.config.fields import Positive, PositiveFloat, Share, refuser, section
from jaxlm.config.model import Family

ObjectiveKind = Literal[
    "causal",
    "prefix",
    "fill_in_the_middle",
    "masked",
    "replaced_tokens",
    "span",
    "infilling",
    "pairs",
    "mixture_of_denoisers",
    "mixture",
    "instruction",
    "classify",
    "preference",
]

Denoiser = Literal["R", "S", "X"]

# The families that each objective trains; a mixture trains that of its parts.
TRAINED_BY: dict[str, tuple[Family, ...]] = {
    "causal": ("decoder",),
    "prefix": ("decoder",),
    "fill_in_the_middle": ("decoder",),
    "masked": ("encoder",),
    "replaced_tokens": ("encoder",),
    "span": ("encoder_decoder",),
    "infilling": ("encoder_decoder",),
    "pairs": ("encoder_decoder",),
    "mixture_of_denoisers": ("encoder_decoder",),
    "instruction": ("decoder", "encoder_decoder"),
    "classify": ("encoder", "decoder", "encoder_decoder"),
    "preference": ("decoder",),
}

# Objectives whose records have several parts -> the format of their sources.
SOURCE_FORMATS = {
    "pairs": "pairs",
    "instruction": "messages",
    "classify": "labelled",
    "preference": "preferences",
}

# UL2's denoisers: token, share of noise, mean span (arXiv 2205.05131, table 1). The S-denoiser
# hides one span, which is the end of the text: spans so long are one in any sample.
ONE_SPAN = 2.0**30
DENOISERS: tuple[tuple[Denoiser, float, float], ...] = (
    ("R", 0.15, 3.0),
    ("R", 0.15, 8.0),
    ("S", 0.25, ONE_SPAN),
    ("X", 0.5, 3.0),
    ("X", 0.5, 8.0),
    ("X", 0.15, 64.0),
    ("X", 0.5, 64.0),
)

# Special tokens that each objective needs beside the end of text.
NEEDS: dict[str, tuple[str, ...]] = {
    "fill_in_the_middle": ("fim",),
    "masked": ("pad", "mask"),
    "replaced_tokens": ("pad", "mask"),
    "span": ("pad", "sentinels"),
    "infilling": ("pad", "mask"),
    "pairs": ("pad",),
    "instruction": ("pad",),
    "classify": ("pad",),
    "preference": ("pad",),
}


# The kinds that read a field. All others refuse another value than the default.
READ_BY = {
    "too_long": ("instruction", "classify", "preference"),
    "class_weights": ("classify",),
    "preference_loss": ("preference",),
    "beta": ("preference",),
}


@section("objective")
class ObjectiveConfig:
    """The tokens that are predicted, and the tokens that they are predicted from.

    causal      decoders: the next token
    prefix      decoders: the next token after a prefix of random length, whose tokens see each
                other in both directions (T5's prefix LM)
    fill_in_the_middle
                decoders: the next token, where the middle of some documents stands behind their
                prefix and suffix
    masked      encoders: tokens that were hidden (BERT)
    replaced_tokens
                encoders with a generator (model.generator_share): which tokens are not those of the
                text, where the generator has filled the tokens that were hidden (ELECTRA)
    span        encoder-decoders: spans that were cut out (T5)
    infilling   encoder-decoders: the original text; spans of it were hidden and its sentences
                shuffled in the source (BART)
    pairs       encoder-decoders: a target from its source, from sources of format "pairs"
    mixture_of_denoisers
                encoder-decoders: spans that were cut out in one of seven ways, which the first
                token of the source tells (UL2)
    mixture     one of several objectives of a family in each sample: `parts`, by their weights
    instruction
                decoders, encoder-decoders: the assistant's turns of a conversation, from sources of
                format "messages"
    classify    all families: labels, from sources of format "labelled"
    preference  decoders: the better one of two answers (DPO), from sources of format "preferences"
    """

    kind: ObjectiveKind = "causal"
    # Share of the tokens that are hidden: of masked, replaced_tokens, span and infilling.
    # None: 0.15, infilling 0.3
    noise_share: Share | None = None
    # masked: shares of the chosen tokens that become the mask token and any other token; the rest
    # stay as they are.
    mask_share: Share = 0.8
    random_share: Share = 0.1
    whole_words: bool = False  # masked, replaced_tokens: hide all tokens of a word or none
    mean_span: PositiveFloat = 3.0  # tokens; span: mean length; infilling: mean of the Poisson law
    shuffle_sentences: bool = True  # infilling
    target_length: Positive | None = None  # tokens; pairs: at most. None: data.sequence_length
    # First input of the decoder. None: pad (T5); infilling: end_of_text (BART)
    decoder_start: Literal["pad", "end_of_text"] | None = None

    fim_rate: Share = 0.5  # fill_in_the_middle: share of the documents that are rearranged
    spm_rate: Share = 0.5  # fill_in_the_middle: of these, share with the suffix before the prefix
    # span, infilling: the source begins with the token of this denoiser. None: no such token
    denoiser: Denoiser | None = None
    # instruction, classify, preference: what happens to examples that are longer than a sample.
    # cut: their end is left out, of an instruction's prompt the start; drop: they are left out
    too_long: Literal["cut", "drop"] = "cut"
    # classify: weight of each label, in the order of model.classifier.labels. (): all the same
    class_weights: tuple[PositiveFloat, ...] = ()
    # preference: dpo (arXiv 2305.18290), ipo (2310.12036), or dpo by the mean of the tokens'
    # log-probabilities
    preference_loss: Literal["dpo", "ipo", "dpo_mean"] = "dpo"
    beta: PositiveFloat = 0.1  # preference: strength of the pull to the reference
    parts: "tuple[ObjectiveConfig, ...]" = ()  # mixture: the objectives
    weight: PositiveFloat = 1.0  # of one of the parts: share of the samples, relative to the others

    @property
    def mixed(self) -> "tuple[ObjectiveConfig, ...]":
        """Return the objectives that samples have: the parts of a mixture, or this one alone."""
        if self.kind != "mixture_of_denoisers":
            return self.parts or (self,)
        return tuple(
            ObjectiveConfig(
                kind="span",
                noise_share=noise,
                mean_span=mean_span,
                denoiser=denoiser,
                decoder_start=self.decoder_start,
            )
            for denoiser, noise, mean_span in DENOISERS
        )

    @property
    def families(self) -> tuple[Family, ...]:
        """Return the families that the objective can train."""
        return TRAINED_BY[self.mixed[0].kind]

    @property
    def noise(self) -> float:
        """Return the share of the tokens that are hidden."""
        return self.noise_share or (0.3 if self.kind == "infilling" else 0.15)

    @property
    def start(self) -> str:
        """Return the special token that is the decoder's first input."""
        if self.parts:
            return self.parts[0].start
        return self.decoder_start or ("end_of_text" if self.kind == "infilling" else "pad")

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the special tokens that the tokenizer must have beside the end of text."""
        needs = [need for part in self.mixed for need in NEEDS.get(part.kind, ())]
        if any(part.denoiser for part in self.mixed):
            needs.append("denoisers")
        return tuple(dict.fromkeys(needs))

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
        for name, kinds in READ_BY.items():
            if getattr(self, name) != field_default(name) and self.kind not in kinds:
                names = " and ".join(map(repr, kinds))
                refuse(name, f"is only used with kind={names}, got {self.kind!r}")
        if self.denoiser is not None and self.kind not in ("span", "infilling"):
            refuse("denoiser", f"is for kind='span' and 'infilling', got {self.kind!r}")
        check_parts(self, refuse)


def field_default(name: str) -> object:
    """Return the default of a field of the section."""
    return ObjectiveConfig.__dataclass_fields__[name].default


def check_parts(config: ObjectiveConfig, refuse: Callable[[str, str], None]) -> None:
    """Refuse a mixture without parts, parts without a mixture, and parts that don't go together."""
    if (config.kind == "mixture") != bool(config.parts):
        problem = "needs objectives in parts" if not config.parts else "has no parts"
        refuse("parts", f"kind={config.kind!r} {problem}")
    if not config.parts:
        return

    for part in config.parts:
        if part.kind in SOURCE_FORMATS or part.kind in (
            "replaced_tokens",
            "mixture_of_denoisers",
            "mixture",
        ):
            refuse("parts", f"{part.kind!r} can't be part of a mixture")
    for name, values in (
        ("trains model.family", [TRAINED_BY[part.kind][0] for part in config.parts]),
        ("has decoder_start", [part.start for part in config.parts]),
    ):
        if len({*values}) > 1:
            kinds = [
                f"{part.kind!r} {name}={value!r}"
                for part, value in zip(config.parts, values, strict=True)
            ]
            refuse("parts", f"{', '.join(dict.fromkeys(kinds))}: all must be the same")
