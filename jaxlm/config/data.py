"""The sections `tokenizer` and `data`: where the text comes from and how it becomes samples."""

import math
from typing import Annotated, Literal

from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import (
    Bounds,
    Count,
    FilePath,
    NonEmpty,
    NonNegativeDouble,
    Positive,
    PositiveDouble,
    Share,
    SourcePath,
    list_names,
    refuser,
    section,
    suggestion,
)

# The kinds of tokenizers that are trained -> their pre-tokenizations, the default first. WordPiece
# drops the white space between words; the others keep it.
SPLIT_BY: dict[str, tuple[str, ...]] = {
    "bpe": ("gpt2", "gpt4", "whitespace", "none"),
    "wordpiece": ("bert", "whitespace"),
    "unigram": ("whitespace", "gpt2", "gpt4", "none"),
}

# Formats of examples -> the names of their fields, of which docs/examples.md says more.
KEY_NAMES: dict[str, tuple[str, ...]] = {
    "labelled": ("text", "pair", "label", "tokens"),
    "messages": (
        "messages",
        "role",
        "content",
        "system",
        "conversations",
        "from",
        "value",
        "instruction",
        "input",
        "output",
        "prompt",
        "response",
    ),
    "preferences": ("prompt", "chosen", "rejected", "role", "content"),
}
# Formats whose texts have ids of their own, or labels or turns by their places.
FIXED_TEXT = ("tokens", "messages", "labelled")


@section("tokenizer")
class TokenizerConfig:
    """The tokenizer.

    bytes       the 256 bytes and the end of text
    bpe         byte-level BPE, trained on the training split
    wordpiece   WordPiece as in BERT, trained on the training split; white space is lost
    unigram     Unigram with bytes for rare characters, trained on the training split (T5, Llama)
    file        a tokenizer.json, or the files of GPT-2, BERT, SentencePiece or tiktoken
    """

    kind: Literal["bytes", "bpe", "wordpiece", "unigram", "file"] = "bpe"
    path: FilePath | None = None  # file: it, or the folder that holds it
    vocabulary_size: Positive | None = None  # trained kinds. None: model.vocabulary_size
    # Trained kinds: what ends a word, over which no token reaches. gpt2: GPT-2's pattern; gpt4:
    # cl100k's, with at most three digits; bert: BERT's; whitespace: that alone; none: nothing.
    # None: bpe gpt2, wordpiece bert, unigram whitespace
    pre_tokenization: Literal["gpt2", "gpt4", "bert", "whitespace", "none"] | None = None
    # Trained kinds: the characters of a word, at most; longer ones are cut. None: no bound
    longest_piece: Positive | None = 256
    end_of_text: NonEmpty = "<|endoftext|>"  # the token that ends every document
    # masked, infilling: samples begin with it and end with end_of_text (BERT, RoBERTa, BART)
    begin_of_text: NonEmpty | None = None
    pad: NonEmpty = "<pad>"  # where the objective needs it
    mask: NonEmpty = "<mask>"  # where the objective needs it
    sentinels: Annotated[int, Bounds(low=1, high=1_000_000)] = (
        100  # span: how many tokens <extra_id_0>, <extra_id_1>, ...
    )
    # fill_in_the_middle: the tokens before prefix, middle and suffix
    fim_tokens: tuple[NonEmpty, NonEmpty, NonEmpty] = (
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
    )
    # mixture_of_denoisers: the tokens of its R-, S- and X-denoisers
    denoiser_tokens: tuple[NonEmpty, NonEmpty, NonEmpty] = ("[R]", "[S]", "[X]")
    training_megabytes: PositiveDouble = 256.0  # trained kinds: MB of text to read, at most
    # instruction, preference: the name of a template (chatml, alpaca, plain, llama3) or a file with
    # one in Jinja. None: that of the base
    chat_template: NonEmpty | None = None

    @property
    def is_trained(self) -> bool:
        """Whether the tokenizer is trained on the training split."""
        return self.kind in SPLIT_BY

    @property
    def splits_by(self) -> str:
        """The pre-tokenization of a kind that is trained."""
        return self.pre_tokenization or SPLIT_BY[self.kind][0]

    def special_count(self, needs: tuple[str, ...]) -> int:
        """Count the special tokens, beside the end of text, of a tokenizer that is made here.

        `needs` are the kinds of special tokens that the objective needs.
        """
        counts = {
            "sentinels": self.sentinels,
            "fim": len(self.fim_tokens),
            "denoisers": len(self.denoiser_tokens),
        }
        count = sum(counts.get(need, 1) for need in needs)
        return count + (self.begin_of_text is not None)

    def __post_init__(self):
        refuse = refuser("tokenizer")
        if self.kind == "file" and self.path is None:
            refuse("path", "tokenizer.kind='file' needs the path of a tokenizer.json")
        if self.kind != "file" and self.path is not None:
            refuse("path", f"is only read with tokenizer.kind='file', got kind={self.kind!r}")

        if self.mask in (self.end_of_text, self.begin_of_text, self.pad):
            refuse("mask", f"{self.mask!r} is another special token too")
        others = {self.end_of_text, self.begin_of_text, self.pad, self.mask}
        for key in ("fim_tokens", "denoiser_tokens"):
            names = getattr(self, key)
            if len(others.union(names)) < len(others) + len(names):
                refuse(key, f"{', '.join(names)}: one of them is another special token too")
            others |= {*names}

        for name in ("vocabulary_size", "pre_tokenization"):
            if getattr(self, name) is not None and not self.is_trained:
                kinds = ", ".join(map(repr, SPLIT_BY))
                reason = f"is only used with tokenizer.kind={kinds}, got kind={self.kind!r}"
                refuse(name, reason)

        fitting = SPLIT_BY.get(self.kind, ())
        if self.pre_tokenization is not None and self.pre_tokenization not in fitting:
            reason = f"{self.pre_tokenization!r} does not go with tokenizer.kind={self.kind!r}"
            refuse("pre_tokenization", f"{reason} (it takes {', '.join(map(repr, fitting))})")


@section("data.sources")
class SourceConfig:
    """One corpus."""

    name: NonEmpty
    path: SourcePath | None = None  # a file, a folder or a glob, or the URL of one
    # auto: by content, and by name where that can't tell. Files may be compressed by gzip,
    # Zstandard, xz or bzip2, but for Parquet and Arrow. pairs: a text and its target in each record
    # of any format; messages, labelled, preferences: so are conversations, texts with labels, and
    # prompts with two answers. tokens: ids of tokenizer.path, as nanoGPT, llm.c, Megatron or OLMo
    # write them
    format: Literal[
        "auto",
        "text",
        "jsonl",
        "csv",
        "tsv",
        "parquet",
        "arrow",
        "warc",
        "wikipedia",
        "pairs",
        "python_stdlib",
        "tokens",
        "messages",
        "labelled",
        "preferences",
    ] = "auto"
    text_key: str = "text"  # the key, or column, of the document
    text_keys: tuple[NonEmpty, ...] = ()  # instead: several, whose texts are joined
    text_join: str = "\n\n"  # what stands between these
    source_key: str = "source"  # pairs: the key of the encoder's text
    target_key: str = "target"  # pairs: the key of the decoder's text
    # messages, labelled, preferences: (name, key in the file) where they differ, such as
    # (("label", "sentiment"),). docs/examples.md lists the names
    keys: tuple[tuple[NonEmpty, NonEmpty], ...] = ()
    documents: Positive | None = None  # read the first ones only. None: all
    # keep the documents in one of these, by ISO 639-1 code ("en", "de"). (): all
    languages: tuple[NonEmpty, ...] = ()
    # Share of the samples, relative to the other sources. 0: none before data.mixture_schedule
    weight: NonNegativeDouble = 1.0
    tokens: Annotated[int, Bounds(low=1, high=2**62)] | None = None  # instead: of the whole run
    max_epochs: PositiveDouble | None = None  # at most; the other sources get the rest

    def __post_init__(self):
        if (self.path is None) != (self.format == "python_stdlib"):
            problem = "needs a path" if self.path is None else "takes no path"
            reason = f"source {self.name!r} {problem} (format {self.format!r})"
            raise ConfigError("data.sources.path", reason)
        without_keys = ("text", "pairs", "python_stdlib", "tokens", *KEY_NAMES)
        if self.text_keys and self.format in without_keys:
            reason = f"source {self.name!r} has no such keys (format {self.format!r})"
            raise ConfigError("data.sources.text_keys", reason)
        for name, _ in self.keys:
            known = KEY_NAMES.get(self.format, ())
            if name not in known:
                names = f"it has {list_names(list(known))}" if known else "it has none"
                reason = f"source {self.name!r}, format {self.format!r}, has no {name!r}: {names}"
                raise ConfigError("data.sources.keys", f"{reason}{suggestion(name, known)}")


@section("data.validation")
class ValidationConfig:
    """The text that is held out from training.

    hash     a share of the documents, by the hash of their text
    tail     the last share of each source
    source   files of their own
    """

    method: Literal["hash", "tail", "source"] = "hash"
    share: Share = 0.05  # hash: of the documents; tail: of each source's bytes
    path: SourcePath | None = None  # source: a file, a folder or a glob, or the URL of one

    def __post_init__(self):
        if (self.method == "source") != (self.path is not None):
            problem = "does not read a path"
            if self.path is None:
                problem = "needs the path of the validation files"
            reason = f"data.validation.method={self.method!r} {problem}"
            raise ConfigError("data.validation.path", reason)

        if self.method != "source" and not 0 < self.share < 1:
            raise ConfigError("data.validation.share", f"must be between 0 and 1, got {self.share}")


@section("data.curation")
class CurationConfig:
    """Documents of the sources that are left out, for the reasons that are switched on.

    They are judged in the order of the sources, and of copies the first is kept. Validation files
    (`data.validation.path`) are not judged.
    """

    exact_duplicates: bool = False  # texts that are equal
    # Texts that are at least so similar: the share of 5-word shingles that both have. 5% of the
    # words changed leave 0.63. None: off
    near_duplicates: Annotated[float, Bounds(low=0.0, high=1.0, above=True)] | None = None
    # Mend text that was decoded wrongly ("cafÃ©"), by ftfy
    repair_unicode: bool = False
    normalization: Literal["NFC", "NFKC"] | None = None  # form of Unicode. None: as it is
    # Rules of published corpora for English text, in this order (docs/data.md)
    rules: tuple[Literal["c4", "gopher_quality", "gopher_repetition"], ...] = ()
    # A file, folder or glob. Documents that share 13 successive words with it are dropped
    evaluation_text: FilePath | None = None
    classifier: FilePath | None = None  # of `python -m jaxlm.prepare classifier`
    classifier_threshold: Share = 0.5  # documents with a lower score are dropped
    remove_addresses: bool = False  # e-mail addresses and public IP addresses

    def __post_init__(self):
        if len(set(self.rules)) < len(self.rules):
            raise ConfigError("data.curation.rules", f"names a rule twice: {', '.join(self.rules)}")


@section("data")
class DataConfig:
    """The sources of the text, and the samples that are cut from it."""

    sources: tuple[SourceConfig, ...] = (
        SourceConfig(name="python_stdlib", format="python_stdlib"),
    )
    sequence_length: Positive = 1024  # tokens per sample; of an encoder-decoder's source
    # windows: of running text, cut anywhere; packed: whole documents side by side, which don't see
    # each other; documents: one in each sample
    sequences: Literal["windows", "packed", "documents"] = "windows"
    # Tokens. Samples are shuffled within blocks of so much text, which follow one another as the
    # text does: training begins while the store is built. None: over the whole source
    shuffle_block: Positive | None = None
    # fail: a record or file that can't be read ends the preparation; skip: it is left out, counted
    on_error: Literal["fail", "skip"] = "fail"
    curation: CurationConfig = CurationConfig()
    # T: weights are the tokens of the sources to the power of 1/T. None: those of the sources
    mixture_temperature: PositiveDouble | None = None
    # Weights are the examples of the sources, each counted up to so many (FLAN, arXiv 2109.01652);
    # with a temperature T to the power of 1/T. None: those of the sources
    mixture_cap: Positive | None = None
    # (step, weights): one weight for each source, from that step on
    mixture_schedule: tuple[tuple[Count, tuple[NonNegativeDouble, ...]], ...] = ()
    store: FilePath = "stores"  # folder of the tokenized corpora, shared by runs
    validation: ValidationConfig = ValidationConfig()
    prefetch_batches: Annotated[int, Bounds(low=1, high=10_000)] = (
        4  # batches that are prepared ahead
    )
    prefetch_threads: Annotated[int, Bounds(low=1, high=1024)] = 1

    def __post_init__(self):
        names = [source.name for source in self.sources]
        if not names:
            raise ConfigError("data.sources", "needs at least one source")
        if len(set(names)) < len(names):
            raise ConfigError("data.sources", f"two sources have the same name: {', '.join(names)}")

        if not math.isfinite(sum(source.weight for source in self.sources)):
            weights = ", ".join(f"{source.weight:g}" for source in self.sources)
            raise ConfigError("data.sources", f"the sum of the weights is too large: {weights}")
        self.check_fixed_text()
        self.check_mixture_schedule()
        self.check_mixture()

    @property
    def mixes_by_size(self) -> bool:
        """Return whether the weights follow from the number of tokens of the sources."""
        limits = [limit for source in self.sources for limit in (source.tokens, source.max_epochs)]
        rules = (self.mixture_temperature, self.mixture_cap)
        return any(value is not None for value in (*rules, *limits))

    @property
    def weights(self) -> tuple[float, ...]:
        """Return the weight of each source, as the sources have it."""
        return tuple(source.weight for source in self.sources)

    @property
    def first_weights(self) -> tuple[float, ...]:
        """Return the weights with which a run begins, if they don't follow from sizes."""
        starts_at_zero = bool(self.mixture_schedule) and self.mixture_schedule[0][0] == 0
        return self.mixture_schedule[0][1] if starts_at_zero else self.weights

    def check_fixed_text(self) -> None:
        """Refuse rules that change texts whose ids, or whose places of labels, are known."""
        fixed = [source for source in self.sources if source.format in FIXED_TEXT]
        curation = self.curation
        changes = {
            "repair_unicode": curation.repair_unicode,
            "normalization": curation.normalization is not None,
            "rules": "c4" in curation.rules,
            "remove_addresses": curation.remove_addresses,
        }
        for key, is_used in changes.items():
            if fixed and is_used:
                source = f"source {fixed[0].name!r} has format {fixed[0].format!r}"
                reason = f"{source}, whose text can't be changed"
                what = "'c4' removes lines" if key == "rules" else "it changes the text"
                raise ConfigError(f"data.curation.{key}", f"{what}, and {reason}")

    def check_mixture_schedule(self) -> None:
        """Refuse stages that are out of order or don't fit the sources."""
        refuse = refuser("data")
        steps = [step for step, _ in self.mixture_schedule]
        if steps != sorted(set(steps)):
            refuse("mixture_schedule", "steps must increase")

        for step, weights in self.mixture_schedule:
            if len(weights) != len(self.sources):
                count = f"{len(weights)} weights for {len(self.sources)} sources"
                refuse("mixture_schedule", f"step {step} has {count}")
            if not 0 < sum(weights) < math.inf:
                reason = f"the sum of the weights must be above 0 and finite, got {sum(weights):g}"
                refuse("mixture_schedule", f"step {step}: {reason}")

    def check_mixture(self) -> None:
        """Refuse fields of the mixture that contradict each other."""
        starts_at_zero = bool(self.mixture_schedule) and self.mixture_schedule[0][0] == 0
        for number, source in enumerate(self.sources):
            key = f"data.sources.{number}"
            scheduled = [weights[number] for _, weights in self.mixture_schedule]
            if source.weight == 0 and not any(scheduled):
                raise ConfigError(f"{key}.weight", f"must be above 0, got {source.weight}")
            if source.tokens is not None and source.max_epochs is not None:
                reason = f"{key}.tokens says already how much is read; leave out one of the two"
                raise ConfigError(f"{key}.max_epochs", reason)
            if source.tokens is not None and source.weight != 1:
                reason = f"{key}.tokens says already how much is read; leave out one of the two"
                raise ConfigError(f"{key}.weight", reason)
            for rule in ("mixture_temperature", "mixture_cap"):
                if getattr(self, rule) is not None and source.weight != 1:
                    reason = f"data.{rule} sets the weights; leave out one of the two"
                    raise ConfigError(f"{key}.weight", reason)

        if not starts_at_zero and not any(self.weights):
            raise ConfigError("data.sources", "one source needs a weight above 0")
        # The schedule of a saved config.json begins at step 0 with the weights that were found.
        if self.mixes_by_size and self.mixture_schedule and not starts_at_zero:
            reason = "takes the weights of the sources alone: leave out tokens, max_epochs, "
            reason += "mixture_temperature and mixture_cap, or begin the schedule at step 0"
            raise ConfigError("data.mixture_schedule", reason)
