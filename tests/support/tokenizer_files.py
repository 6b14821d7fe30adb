"""Small tokenizers of each family: tokenizer.json and the files beside it."""

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LINES = [
    "It was the best of times, it was the worst of times, it was the age of wisdom, "
    "it was the age of foolishness,",
    "  two spaces, a tab\tand\n\ntwo newlines; don't, won't .  , !",
    "Größe, naïve café, 漢字かな交じり文, עברית, e\u0301 and \U0001f642\u200d\U0001f4bb.",
    "def f(x: int) -> str:\n    return {'a': [x ** 2, 3.14]}[0]  # comment",
    "",
    " ",
    "1984 10,000.50 <tag> &amp; http://example.org/?q=1#top A_b-C",
] + [
    f"{a} {b} of {c}{mark}"
    for a in ("the", "A", "no")
    for b in ("river", "Stone", "birds")
    for c in ("wisdom", "times")
    for mark in ".,!"
]


def specials(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def byte_level(names: tuple[str, ...]) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials(*names),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(LINES, trainer)
    return inner


def gpt2() -> Tokenizer:
    inner = byte_level(("<|endoftext|>",))
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    return inner


def roberta() -> Tokenizer:
    inner = byte_level(("<s>", "<pad>", "</s>", "<unk>"))
    inner.add_special_tokens([AddedToken("<mask>", special=True, normalized=False, lstrip=True)])
    inner.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return inner


def bert() -> Tokenizer:
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    inner.train_from_iterator(LINES, trainer)
    inner.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return inner


def t5() -> Tokenizer:
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    inner.train_from_iterator(LINES, trainer)
    inner.add_special_tokens(specials(*(f"<extra_id_{number}>" for number in reversed(range(8)))))
    inner.post_processor = processors.TemplateProcessing(
        "$A </s>", "$A </s> $B </s>", [("</s>", 1)]
    )
    return inner


def llama() -> Tokenizer:
    """SentencePiece's BPE: spaces as "▁", bytes where a character is unknown."""
    letters = sorted(
        {
            character
            for line in LINES
            for character in line
            if character.isascii() and character.isprintable()
        }
    )
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *letters,
        "▁t",
        "he",
        "▁the",
        "▁o",
        "▁of",
    ]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "o"), ("▁o", "f")]
    model = models.BPE(
        {token: number for number, token in enumerate(dict.fromkeys(tokens))},
        merges,
        byte_fallback=True,
        unk_token="<unk>",
    )
    inner = Tokenizer(model)
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", left=1),
        ]
    )
    inner.add_special_tokens(specials("<unk>", "<s>", "</s>"))
    inner.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return inner


MADE = {"gpt2": gpt2, "roberta": roberta, "bart": roberta, "bert": bert, "t5": t5, "llama": llama}

# What transformers writes into config.json and tokenizer_config.json.
CONFIGS = {
    "gpt2": {"bos_token_id": 0, "eos_token_id": 0},
    "roberta": {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    "bart": {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "decoder_start_token_id": 2,
        "forced_bos_token_id": 0,
    },
    "bert": {"pad_token_id": 0},
    "t5": {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0},
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
}
ROBERTA = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": {"content": "<mask>", "lstrip": True, "normalized": False},
}
NAMES = {
    "gpt2": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "roberta": ROBERTA,
    "bart": ROBERTA,
    "bert": {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    "t5": {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None},
}


def write(directory: Path, kind: str, names: str | None = "tokenizer_config.json") -> Path:
    """The directory of a tokenizer; the roles of its tokens are in the file `names`."""
    directory.mkdir(parents=True, exist_ok=True)
    MADE[kind]().save(str(directory / "tokenizer.json"))
    put(directory, "config.json", {"model_type": kind, **CONFIGS[kind]})
    if names is not None:
        put(directory, names, NAMES[kind])
    return directory


def put(directory: Path, name: str, values: object) -> None:
    (directory / name).write_text(json.dumps(values), encoding="utf-8")
