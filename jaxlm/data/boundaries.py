"""Find the places at which a long text may be cut without a change of its token ids.

A place is sure if every step of the tokenizer is known to end something there: the normalizer
changes nothing across it, the pre-tokenizer ends a word, or the model has no token that could reach
over it. Steps that are not listed here are not known, and such a tokenizer has no boundaries.

Between two letters or digits, a single space is such a place: for GPT-2 and its relatives, for
WordPiece, and for SentencePiece, which writes the space as "▁" at the start of the next word.
"""

import re
from typing import Any, NamedTuple

ALNUM = r"[^\W_]"
# The commas, full stops and colons of Chinese and Japanese text, which has no spaces.
WIDE_PUNCTUATION = "\u3001\u3002\uff0c\uff01\uff1f\uff1b\uff1a"
# Their letters. Numbers such as U+00B2 are left out: some pre-tokenizers take them for marks.
WIDE_LETTER = "[\u3041-\u3096\u30a1-\u30fa\u3400-\u4db5\u4e00-\u9fa5\uac00-\ud7a3]"

# Normalizers that map characters, or letters with their marks, one by one.
LOCAL_NORMALIZERS = (
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "StripAccents",
    "Nmt",
    "Precompiled",
    "BertNormalizer",
)
SEVERAL_SPACES = " {2,}"
OUTER_SPACES = r"\A +| +\z"  # a piece has none, since a space between two is left out

# Regular expressions of pre-tokenizers in which no match goes on from a letter or digit to white
# space or to WIDE_PUNCTUATION: GPT-2; Qwen 2; GPT-4 and Llama 3; GPT-4o; BLOOM.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
MARK = r"[^\r\n\p{L}\p{N}]?"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
REST, REST_WITH_SLASH = (rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n{end}]*|{SPACES}" for end in ("", "/"))
GPT4 = rf"{CONTRACTIONS}|{MARK}\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
GPT4O = (
    rf"{MARK}{UPPER}*{LOWER}+{CONTRACTIONS}?|{MARK}{UPPER}+{LOWER}*{CONTRACTIONS}?|"
    rf"\p{{N}}{{1,3}}|{REST_WITH_SLASH}"
)
WORD_PATTERNS = (
    GPT2,
    rf"{CONTRACTIONS}|{MARK}\p{{L}}+|\p{{N}}|{REST}",
    GPT4,
    GPT4O,
    " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
)
WHITE_SPACE = r" ?\S+|\s+(?!\S)|\s+"  # the same for white space alone
# Those that split words further.
DIGIT_PATTERNS = (r"\d", r"\d{1,3}", r"[0-9]", r"\p{N}", r"\p{N}{1,3}", r"[0-9][0-9][0-9]")
BOUND_PATTERN = re.compile(r"\[\\s\\S\]\{1,(\d+)\}")  # `bound_pattern` writes it


class Unknown(Exception):
    """A step of a tokenizer of which nothing is known."""


class Boundary(NamedTuple):
    """The places at which a text may be cut."""

    pattern: re.Pattern[str]  # a match is the text between two pieces, mostly empty
    near: re.Pattern[str] | None = None  # not near these words, which are tokens of their own
    reach: int = 0  # characters: the length of the longest of them
    step: int | None = None  # instead: after each multiple of so many characters


class Spaces(NamedTuple):
    """The space between two words, as the steps up to some point leave it."""

    space: str = " "  # how it is written
    prefix: bool = False  # whether a text without one gets one in front
    splits: bool = False  # whether a word ends before it
    breaks: bool = False  # whether a word also ends before a newline and before WIDE_PUNCTUATION


def bound_pattern(characters: int) -> str:
    """Return the regular expression that cuts words into parts of so many characters."""
    return rf"[\s\S]{{1,{characters}}}"


def find_boundary(tokenizer: dict[str, Any], separators: str, names: list[str]) -> Boundary | None:
    """Return the boundary of a tokenizer.json, or None if no place is sure.

    `separators` are the characters that its normalizer takes for a space, `names` the special
    tokens that are plain text in documents.
    """
    added = [token for token in tokenizer["added_tokens"] if not token["special"]]
    words = [token["content"] for token in added]
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added):
        return None
    # A token that is looked for in the text as it is may have spaces: none is near a cut.
    seen = [token["content"] for token in added if token["normalized"]]
    if any(re.search(rf"[\s{WIDE_PUNCTUATION}]", word) for word in [*seen, *names]):
        return None

    step = find_step(tokenizer)
    if step is not None and not words:
        return Boundary(re.compile(""), step=step)

    try:
        spaces = follow_normalizer(tokenizer["normalizer"], Spaces())
        adds_prefix = spaces.prefix
        spaces = follow_pre_tokenizer(tokenizer["pre_tokenizer"], spaces)
    except Unknown:
        return None
    if not spaces.splits and not keeps_words_apart(tokenizer["model"], spaces.space):
        return None

    near = re.compile("|".join(map(re.escape, words)), re.IGNORECASE) if words else None
    if adds_prefix:
        # The tokenizer puts a space before any text, so a piece begins after its own.
        patterns = [rf"(?<={ALNUM})[{separators}](?={ALNUM})"]
    else:
        patterns = [rf"(?<={ALNUM})(?=[{separators}]{ALNUM})"]
    if spaces.breaks and not spaces.prefix:
        patterns.append(f"(?<={WIDE_LETTER})(?=[{WIDE_PUNCTUATION}])")
        if "\n" not in separators:
            patterns.append(rf"(?<={ALNUM}\n)(?={ALNUM})")
    return Boundary(re.compile("|".join(patterns)), near, max(map(len, words), default=0))


def find_step(tokenizer: dict[str, Any]) -> int | None:
    """Return after how many characters a text is always cut, if nothing is before that."""
    steps = (tokenizer["pre_tokenizer"] or {}).get("pretokenizers")
    if not steps or tokenizer["normalizer"] is not None or steps[0]["type"] != "Split":
        return None
    bound = BOUND_PATTERN.fullmatch(steps[0]["pattern"].get("Regex", ""))
    return int(bound[1]) if bound and steps[0]["behavior"] == "Isolated" else None


# Normalizers


def follow_normalizer(step: dict[str, Any] | None, spaces: Spaces) -> Spaces:
    """Return what a space between two words has become. Raises Unknown."""
    if step is None or step["type"] in LOCAL_NORMALIZERS:
        return spaces

    match step["type"]:
        case "Sequence":
            for inner in step["normalizers"]:
                spaces = follow_normalizer(inner, spaces)
            return spaces
        case "Replace":
            return follow_replacement(step["pattern"], step["content"], spaces)
        case "Prepend" if step["prepend"] in ("▁", spaces.space) and not spaces.prefix:
            return spaces._replace(prefix=True)
        case "Strip" if not step["strip_left"]:
            return spaces
        case "ByteLevel" if spaces.space == " ":
            return spaces._replace(space="Ġ")
    raise Unknown


def follow_replacement(pattern: dict[str, str], content: str, spaces: Spaces) -> Spaces:
    """Return what a space has become after all matches of a pattern are replaced."""
    if pattern.get("Regex") in (SEVERAL_SPACES, OUTER_SPACES):
        return spaces

    text = pattern.get("String", " ")
    # What stands for the marks that the tokenizer itself writes is no part of a word.
    if text == "▁" and spaces.space == " " and "▁" not in content and " " not in content:
        return spaces
    if text == " " and "String" in pattern and spaces.space == " " and content == "▁":
        return spaces._replace(space=content)
    # Marks that are no part of a word, such as quotes, may become anything.
    if any(character.isalnum() or character.isspace() or character == "▁" for character in text):
        raise Unknown
    return spaces


# Pre-tokenizers


def follow_pre_tokenizer(step: dict[str, Any] | None, spaces: Spaces) -> Spaces:
    """Return what a space between two words has become, and whether words end there.

    Raises Unknown.
    """
    if step is None:
        return spaces

    has_space = spaces.space == " "
    match step["type"]:
        case "Sequence":
            for inner in step["pretokenizers"]:
                spaces = follow_pre_tokenizer(inner, spaces)
            return spaces
        case "ByteLevel" if not step["use_regex"] and not step["add_prefix_space"]:
            return spaces
        case "ByteLevel" if has_space:
            return Spaces(
                prefix=spaces.prefix or step["add_prefix_space"],
                splits=spaces.splits or step["use_regex"],
                breaks=spaces.breaks or step["use_regex"],
            )
        case "Metaspace" if spaces.space in (" ", step["replacement"]):
            return spaces._replace(
                space=step["replacement"],
                prefix=spaces.prefix or step["prepend_scheme"] != "never",
                splits=spaces.splits or step["split"],
            )
        case "Whitespace" | "BertPreTokenizer" if has_space:
            return spaces._replace(splits=True, breaks=True)
        case "WhitespaceSplit" if has_space:
            return spaces._replace(splits=True)
        case "CharDelimiterSplit" if has_space and step["delimiter"] == " ":
            return spaces._replace(splits=True)
        case "Digits" | "Punctuation":
            return spaces
        case "Split":
            return follow_split(step, spaces)
    raise Unknown


def follow_split(step: dict[str, Any], spaces: Spaces) -> Spaces:
    """Return whether words end at a space after a split by a pattern."""
    pattern, behavior, inverted = step["pattern"], step["behavior"], step["invert"]
    regex = pattern.get("Regex")
    keeps_matches = (behavior, inverted) in (("Isolated", False), ("Removed", True))
    if regex in DIGIT_PATTERNS and behavior == "Isolated" and not inverted:
        return spaces
    if BOUND_PATTERN.fullmatch(regex or "") and behavior == "Isolated" and spaces.splits:
        return spaces  # counted from the start of each word
    if regex == WHITE_SPACE and spaces.space == " " and keeps_matches:
        return spaces._replace(splits=True)
    if regex in WORD_PATTERNS and spaces.space == " " and keeps_matches:
        return spaces._replace(splits=True, breaks=True)

    if pattern.get("String") == " " and not inverted:
        if spaces.space != " ":  # nothing is left to split
            return spaces
        if behavior in ("Isolated", "Removed", "MergedWithNext"):
            return spaces._replace(splits=True)
    raise Unknown


# Models


def keeps_words_apart(model: dict[str, Any], space: str) -> bool:
    """Return whether a model that reads a whole text as one word never joins two words.

    BPE joins neighbours whose union is a token. So nothing reaches over the start of a space if no
    token has one behind another character. Other models weigh whole texts.
    """
    if model["type"] != "BPE" or space not in model["vocab"]:
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    inside = re.compile(f"[^{re.escape(space)}]{re.escape(space)}")
    return not any(map(inside.search, model["vocab"]))
