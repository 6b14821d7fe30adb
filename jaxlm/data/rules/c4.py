"""Clean a page by the rules of C4: lines go first, then the page if too little is left.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (arXiv 1910.10683), section 2.2. Its list of bad words is not shipped and not used, and
its repeated spans of three sentences are left to `near_duplicates`.

The rules of a page hold for the whole page, as the paper says; the program that made C4 looks for
them in the lines that are left. An ellipsis is a terminal mark, as any period. Later versions of
the paper (2023) have 5 words and 3 sentences.
"""

import re

LINE_WORDS = 3  # at least
SENTENCES = 5  # at least
TERMINAL = tuple(".!?\"'”’»")  # noqa: RUF001
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
CITATION = re.compile(r"\[(?:\d+|edit|citation needed)\]", re.IGNORECASE)

# A sentence ends at its marks, with closing quotes and brackets, where the line ends or no small
# letter follows. The period of a title or an initial ends none. Possessive, so that the time is
# linear in the length of the line.
OPENING, CLOSING = r"[\"'“‘«(\[]", r"[\"'”’»)\]]"  # noqa: RUF001
SENTENCE_END = re.compile(rf"(?<![.!?])[.!?]++{CLOSING}*+(?=$|\s++{OPENING}*+[^\sa-z])")
TITLES = "Mr|Mrs|Ms|Dr|Prof|St|Rev|Gen|Col|Capt|Lt|Sgt|No|Fig|vs|e.g|i.e".replace(".", r"\.")
NO_END = re.compile(rf"(?:.*(?:\s|{OPENING}))?(?:(?:[A-Z]\.)*[A-Z]|{TITLES})")
LONGEST_TITLE = 5  # characters, with the one before

C4_REASONS = ("c4_lorem_ipsum", "c4_curly_bracket", "c4_too_few_sentences")


def judge_page(text: str) -> str:
    """Return the rule of whole pages that a text breaks before its lines are cleaned, or ""."""
    if "lorem ipsum" in text.lower():
        return "c4_lorem_ipsum"
    return "c4_curly_bracket" if "{" in text else ""


def clean_lines(text: str) -> tuple[str, int]:
    """Return the lines of a text that are kept, and how many sentences these have."""
    lines, sentences = [], 0
    for line in text.splitlines():
        plain = CITATION.sub("", line).strip() if "[" in line else line.strip()
        if is_kept(plain):
            lines.append(plain)
            sentences += count_sentences(plain)
    return "\n".join(lines), sentences


def is_kept(line: str) -> bool:
    """Return whether a stripped line is kept."""
    if not line.endswith(TERMINAL) or len(line.split(maxsplit=LINE_WORDS)) < LINE_WORDS:
        return False
    lower = line.lower()
    return "javascript" not in lower and not any(policy in lower for policy in POLICIES)


def count_sentences(line: str) -> int:
    """Return how many sentences a line has that ends with a terminal mark; at least one."""
    ends = 0
    for match in SENTENCE_END.finditer(line):
        start, end = match.span()
        before = line[max(start - LONGEST_TITLE, 0) : start]
        is_title = end < len(line) and match.group() == "." and NO_END.fullmatch(before)
        ends += not is_title
    return max(ends, 1)
