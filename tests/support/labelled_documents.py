"""Documents with the verdict that each rule has to give, worked out by hand from the papers.

Most are made around a threshold: one that just keeps it, one that just breaks it.
"""

import base64
import itertools
import random
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
C4, QUALITY, REPETITION = "c4", "gopher_quality", "gopher_repetition"
LANGUAGE = "language"


class Labelled(NamedTuple):
    """A document, and for some of the rules the reason for which it is dropped, or ""."""

    kind: str
    text: str
    verdicts: dict[str, str]
    kept_text: str | None = None  # that C4 leaves


def words(count: int, length: int = 5, start: int = 0) -> list[str]:
    """Return different words of equal length that are no stop words."""
    letters = itertools.product("bcdfgh", repeat=length)
    return ["".join(word) for word in itertools.islice(letters, start, start + count)]


def with_stop_words(plain: list[str]) -> str:
    """Return a text of the words, of which the first two are stop words."""
    return " ".join(["the", "that", *plain[2:]])


# Gopher, quality


def average_length(count: int, characters: int) -> str:
    """Return a text of `count` words with so many characters, and two stop words."""
    rest = characters - len("the" + "that")
    low, longer = divmod(rest, count - 2)
    lengths = [low + 1] * longer + [low] * (count - 2 - longer)
    return " ".join(["the", "that", *("b" * length for length in lengths)])


def lines_of(count: int, per_line: int, marked: int, start: str = "", end: str = "") -> str:
    """Return lines of words, so many of which have a mark at their start or end."""
    plain = words(count * per_line)
    lines = [plain[number * per_line : (number + 1) * per_line] for number in range(count)]
    lines[-1] = ["the", "that", *lines[-1][2:]]
    return "\n".join(
        f"{start}{' '.join(line)}{end}" if number < marked else " ".join(line)
        for number, line in enumerate(lines)
    )


def quality_documents() -> list[Labelled]:
    cases: list[tuple[str, str]] = []
    for count, reason in ((49, "word_count"), (50, ""), (51, ""), (99_999, ""), (100_000, "")):
        cases.append((with_stop_words(words(count, 7)), reason))
    cases.append((with_stop_words(words(100_001, 7)), "word_count"))

    for characters, is_kept in ((299, 0), (300, 1), (301, 1), (999, 1), (1000, 1), (1001, 0)):
        cases.append((average_length(100, characters), "" if is_kept else "mean_word_length"))
    for mark in ("#", "...", "…"):
        for count, reason in ((10, ""), (11, "symbol_ratio")):
            marked = [w + mark if n < count else w for n, w in enumerate(words(98, 4))]
            cases.append((" ".join([*marked, "the", "that"]), reason))

    for bullet in ("•", "-", "* "):
        for count, bullets, reason in (
            (10, 9, ""),
            (10, 10, "bullet_lines"),
            (20, 18, ""),
            (20, 19, "bullet_lines"),
        ):
            cases.append((lines_of(count, 12, bullets, start=bullet), reason))
    for ellipsis in ("...", "…"):
        for count, marked, reason in ((10, 3, ""), (10, 4, "ellipsis_lines"), (20, 6, "")):
            cases.append((lines_of(count, 12, marked, end=ellipsis), reason))

    for count, alphabetic, reason in (
        (100, 80, ""),
        (100, 79, "alphabetic_words"),
        (50, 40, ""),
        (50, 39, "alphabetic_words"),
    ):
        text = with_stop_words(words(alphabetic)) + " 1,234" * (count - alphabetic)
        cases.append((text, reason))

    for stop_words, reason in (
        ("", "stop_words"),
        ("the", "stop_words"),
        ("the the The", "stop_words"),
        ("theory often", "stop_words"),
        ("the of", ""),
        ("To, (be)", ""),
        ("with that", ""),
        ("and have", ""),
    ):
        cases.append((" ".join([*words(60), stop_words]), reason))
    return [
        Labelled("quality", text, {QUALITY: reason and f"gopher_{reason}"})
        for text, reason in cases
    ]


# Gopher, repetition


def repeated(total: int, length: int, times: int, top: bool) -> str:
    """Return a text of `total` words of equal length in which n-grams are repeated.

    top: one n-gram stands there `times` times. Otherwise `times` different ones each stand there
    twice. Words between them are different, so that no longer n-gram is repeated.
    """
    fresh = iter(words(total + 50, start=1000))
    parts = words(length * times)
    ngrams = [parts[:length]] * times
    if not top:
        ngrams = [parts[n * length : (n + 1) * length] for n in range(times)] * 2

    text = []
    for ngram in ngrams:
        text += [*ngram, next(fresh)]
    return " ".join([*text, *itertools.islice(fresh, total - len(text))])


def repetition_documents() -> list[Labelled]:
    cases: list[tuple[str, str]] = []
    # Short lines that come again, between long ones: few characters. In another order each time,
    # so that no pairs of words come again.
    for lines, duplicates, reason in (
        (10, 3, ""),
        (10, 4, "lines"),
        (20, 6, ""),
        (20, 7, "lines"),
    ):
        short, long = words(duplicates, 1), words(lines - 2 * duplicates, 30)
        again = [*short[::2], *short[1::2]][::-1]
        cases.append(("\n".join([*short, *long, *again]), reason))
    # Lines of one word of equal length.
    for lines, duplicates, reason in (
        (10, 2, ""),
        (10, 3, "line_characters"),
        (20, 4, ""),
        (20, 5, "line_characters"),
    ):
        different = words(lines - duplicates)
        cases.append(("\n".join([*different, *different[:duplicates][::-1]]), reason))

    # 10 paragraphs, of which `duplicates` come again; the others have 5 long lines.
    for duplicates, reason in ((3, ""), (4, "paragraphs")):
        short, long = words(duplicates, 1), words(5 * (10 - 2 * duplicates), 30)
        paragraphs = ["\n".join(long[n : n + 5]) for n in range(0, len(long), 5)]
        cases.append(("\n\n".join([*short, *paragraphs, *short[::-1]]), reason))
    # Line breaks are characters of a paragraph, not of a line. 10 lines of 1 character come again:
    # 10 of 34 lines, 10 of 50 characters of lines, and 19 of 2 * 19 + 42 of paragraphs ...
    block = "\n".join("abcdefghij")
    others = [*words(12, 2), *words(2, 3)]
    paragraphs = [block, "\n".join(others[:7]), "\n".join(others[7:]), block]
    cases.append(("\n\n".join(paragraphs), "paragraph_characters"))
    # ... and 19 of 2 * 19 + 58 of paragraphs, but 10 of 50 characters of words.
    others = "klmnopqrstuvwxyABCDEFGHIJKLMNO"
    paragraphs = [block, "\n".join(others[:15]), "\n".join(others[15:]), block]
    cases.append(("\n\n".join(paragraphs), "duplicate_5_gram"))

    # Spaces before a line are characters of a paragraph too: 6 of 30 come again, and 7 of 32.
    for spaces, reason in ((3, ""), (4, "paragraph_characters")):
        block, others = f"a\n{' ' * spaces}b", words(4, 4)
        paragraphs = [block, "\n".join(others[:2]), "\n".join(others[2:]), block]
        cases.append(("\n\n".join(paragraphs), reason))

    for total in (100, 200):
        for length, kept in ((2, 10), (3, 6), (4, 4)):
            times = kept * total // 100
            cases.append((repeated(total, length, times, top=True), ""))
            cases.append((repeated(total, length, times + 1, top=True), f"top_{length}_gram"))

    # (n-gram, words of the text, repeated n-grams): the share is at the threshold, or between it
    # and that of the n-gram before.
    for length, kept, dropped in (
        (5, (100, 3), (100, 4)),
        (6, (300, 7), (200, 5)),
        (7, (700, 13), (100, 2)),
        (8, (200, 3), (64, 1)),
        (9, (900, 11), (75, 1)),
        (10, (100, 1), (1000, 11)),
    ):
        cases.append((repeated(kept[0], length, kept[1], top=False), ""))
        text = repeated(dropped[0], length, dropped[1], top=False)
        cases.append((text, f"duplicate_{length}_gram"))

    cases += [("word", ""), ("two words", ""), ("a b c d e f", "")]
    cases += [("ha " * 20, "top_2_gram"), ("a b c d e a b c d", "top_2_gram")]
    return [
        Labelled("repetition", text, {REPETITION: reason and f"repetition_{reason}"})
        for text, reason in cases
    ]


# C4

FIVE = (
    "The river rises in the hills.",
    "It is cold even in summer!",
    "Who would swim there?",
    'The miller said, "Only fools."',
    "Nobody has asked him since.",
)


def c4_documents() -> list[Labelled]:
    page = "\n".join(FIVE)
    few = "c4_too_few_sentences"
    cases: list[tuple[str, str, str | None]] = [
        (page, "", page),
        (" ".join(FIVE), "", " ".join(FIVE)),
        ("\n".join(FIVE[:4]), few, None),
        (" ".join(FIVE[:4]), few, None),
        (" ".join(FIVE[:4]) + " And so on", few, None),  # the line ends without a mark
        ("\n".join(line.rstrip('.!?"') for line in FIVE), few, None),
        ("\n\n".join(f"  {line}\t" for line in FIVE), "", page),
        (page.replace("\n", "\r\n"), "", page),
        (page.replace(".", "..."), "", page.replace(".", "...")),  # a period is the last
        (page.replace('"', "”"), "", page.replace('"', "”")),
        # Titles and small letters behind a mark end no sentence.
        ("\n".join(FIVE[:3]) + '\n"Stop!" cried Dr. J. Hill, who saw it.', few, None),
        ("\n".join(FIVE[:3]) + '\n"Stop!" Dr. Hill saw it.', "", None),
        ("Home\nAbout us\nContact\nLog in\nSign up", few, None),
    ]
    # Lines that go, and leave the page with five sentences or four.
    for line in (
        "Two words.",
        "Ends without a mark",
        "Ends with a comma,",
        "Please enable JavaScript to go on.",
        "This page needs Javascript.",
        "Read our terms of use first.",
        "Our Privacy Policy has changed.",
        "See the cookie policy of this shop.",
        "This site uses cookies.",
        "We ask for your use of cookies.",
        "Do you want to use cookies?",
    ):
        cases.append((f"{line}\n{page}", "", page))
        cases.append(("\n".join([*FIVE[:4], line]), few, None))
    cases.append((f"{page}\nThree words stay.", "", f"{page}\nThree words stay."))

    for marker in ("[1]", "[23]", "[edit]", "[citation needed]"):
        cases.append((page.replace("hills", f"hills{marker}"), "", page))
    cases.append((page.replace(".", ".[4]"), "", page))
    cases.append(
        (page.replace("hills", "hills [a note]"), "", page.replace("hills", "hills [a note]"))
    )

    for phrase in ("lorem ipsum", "Lorem Ipsum dolor", "LOREM IPSUM"):
        cases.append((f"{page}\n{phrase}", "c4_lorem_ipsum", None))
    for code in ("if (a) { b(); }", "{", "a {{ b }}"):
        cases.append((f"{page}\n{code}", "c4_curly_bracket", None))
    cases.append((f"{page}\n}} (the end)", "", page))
    return [Labelled("page", text, {C4: reason}, kept) for text, reason, kept in cases]


# What stands on the web

PROSE = (
    "My grandfather kept bees behind the barn, in seven white boxes that he had built himself. "
    "Every spring he opened them with bare hands and told us that fear has a smell. "
    "We believed him, of course, and stood well back with our sleeves pulled down. "
    "In August the honey ran slowly out of the old machine and into jars with hand-written labels. "
    "He sold most of it at the church fair. "
    "The rest was for us, and it lasted until the snow.",
    "A lathe turns the work against the tool, while a mill turns the tool against the work. "
    "That single difference decides which shapes each of them can make. "
    "Shafts, bowls and threads are cut on a lathe because they are round about one axis. "
    "Slots and pockets need a mill. "
    "Does a workshop need both? "
    "Most small ones begin with the lathe and add the other when orders for flat parts arrive.",
    "The ferry left an hour late, and nobody seemed to mind. "
    "Two men played cards on a suitcase while a girl fed crumbs to the gulls. "
    "When the island came out of the mist, first as a line and then as a wall of green, everyone "
    "went to the rail and was quiet. "
    '"You will like it here," said the captain. '
    "I had only come to read a meter, but I have stayed for eleven years! "
    "Some towns are like that.",
)


def natural_documents() -> list[Labelled]:
    random_source = random.Random(7)
    documents = []
    kept = {C4: "", QUALITY: "", REPETITION: ""}
    for order in itertools.permutations(PROSE):
        documents.append(Labelled("prose", "\n\n".join(order), kept))
    for paragraph in PROSE:
        documents.append(Labelled("prose", paragraph, kept))
        # Twice the same: one of two lines and paragraphs is a duplicate.
        label = {C4: "", QUALITY: "", REPETITION: "repetition_lines"}
        documents.append(Labelled("copied prose", f"{paragraph}\n\n{paragraph}", label))
        # In one line: all words of the second half are duplicates, and no n-gram stands out.
        label = {C4: "", QUALITY: "", REPETITION: "repetition_duplicate_5_gram"}
        documents.append(Labelled("copied prose", f"{paragraph} {paragraph}", label))

    entries = ["Home", "News", "Sports", "Weather", "About us", "Contact", "Log in", "Help"]
    few, no_sentence = "gopher_word_count", "c4_too_few_sentences"
    for count in (4, 6, 8):
        label = {C4: no_sentence, QUALITY: few, REPETITION: ""}
        documents.append(Labelled("menu", "\n".join(entries[:count]), label))
    # 8 different lines, and 32 duplicates of them.
    for separator in ("\n", "\n\n", "\n- "):
        label = {C4: no_sentence, REPETITION: "repetition_lines"}
        documents.append(Labelled("menu", separator + separator.join(entries * 5), label))
    goods = [f"{material} {thing}" for material in ("Oak", "Steel", "Glass") for thing in words(20)]
    label = {C4: no_sentence, QUALITY: "gopher_stop_words", REPETITION: ""}
    documents.append(Labelled("menu", "\n".join(sorted(goods, key=lambda g: g[::-1])), label))
    label = {C4: no_sentence, QUALITY: "gopher_bullet_lines"}
    documents.append(Labelled("menu", "\n".join(f"• {entry}" for entry in goods), label))

    for slogan, repeats in (("Buy cheap watches now!", 30), ("Hot singles near you!", 15)):
        label = {C4: "", QUALITY: "gopher_stop_words", REPETITION: "repetition_top_2_gram"}
        documents.append(Labelled("spam", " ".join([slogan] * repeats), label))
        label = {C4: "", QUALITY: "gopher_stop_words", REPETITION: "repetition_lines"}
        documents.append(Labelled("spam", "\n".join([slogan] * repeats), label))
    tags = " ".join(f"#{word}" for word in words(60))
    label = {C4: no_sentence, QUALITY: "gopher_symbol_ratio", REPETITION: ""}
    documents.append(Labelled("spam", tags, label))

    # A price list: a word, a number and a bar in each of the rows.
    for rows in (30, 60):
        prices = [f"{word} | {number}.50" for number, word in enumerate(words(rows, 9))]
        label = {C4: no_sentence, QUALITY: "gopher_alphabetic_words", REPETITION: ""}
        documents.append(Labelled("table", "\n".join(prices), label))
        numbers = [f"{number} {number * 7} {number * 31}" for number in range(100, 100 + rows)]
        label = {C4: no_sentence, QUALITY: "gopher_alphabetic_words", REPETITION: ""}
        documents.append(Labelled("table", "\n".join(numbers), label))
    documents.append(
        Labelled("table", "1 2 3\n" * 30, {QUALITY: "gopher_mean_word_length", C4: no_sentence})
    )

    for lines in (60, 100):
        data = base64.encodebytes(random_source.randbytes(57 * lines)).decode()
        label = {C4: no_sentence, QUALITY: "gopher_mean_word_length", REPETITION: ""}
        documents.append(Labelled("base64", data, label))
        one = data.replace("\n", "")
        documents.append(Labelled("base64", one, {C4: no_sentence, QUALITY: few, REPETITION: ""}))

    # Modules whose strings have fields, and one without: "+" and a number are 2 of its 6 words.
    for name in ("files", "config/fields", "progress", "monitor", "data/identity", "data/sources"):
        code = (ROOT / "jaxlm" / f"{name}.py").read_text()
        documents.append(Labelled("code", code, {C4: "c4_curly_bracket"}))
    code = "\n".join(f"def {word}(x):\n    return x + {n}" for n, word in enumerate(words(30)))
    documents.append(Labelled("code", code, {C4: no_sentence, QUALITY: "gopher_alphabetic_words"}))
    return documents


# Languages

LANGUAGES = {
    "de": "Der Müller öffnet früh am Morgen die Schleuse, und das Wasser dreht langsam das Rad.",
    "fr": "Le meunier ouvre la vanne tôt le matin, et l'eau fait tourner lentement la roue.",
    "es": "El molinero abre la compuerta por la mañana y el agua hace girar despacio la rueda.",
    "it": "Il mugnaio apre la chiusa al mattino presto e l'acqua fa girare lentamente la ruota.",
    "pt": "O moleiro abre a comporta de manhã cedo e a água faz girar a roda devagar, não é?",
    "nl": "De molenaar opent vroeg in de ochtend de sluis, en het water draait langzaam het rad.",
    "sv": "Mjölnaren öppnar slussen tidigt på morgonen och vattnet vrider långsamt på hjulet.",
    "pl": "Młynarz otwiera śluzę wcześnie rano, a woda powoli obraca koło młyńskie.",
    "cs": "Mlynář otevírá stavidlo brzy ráno a voda pomalu otáčí mlýnským kolem.",
    "fi": "Mylläri avaa sulun aikaisin aamulla, ja vesi pyörittää hitaasti ratasta.",
    "tr": "Değirmenci sabah erkenden kapağı açar ve su çarkı yavaş yavaş döndürür.",  # noqa: RUF001
    "hu": "A molnár kora reggel kinyitja a zsilipet, és a víz lassan forgatja a kereket.",
    "ru": "Мельник рано утром открывает шлюз, и вода медленно вращает колесо.",
    "el": "Ο μυλωνάς ανοίγει νωρίς το φράγμα και το νερό γυρίζει τον τροχό.",  # noqa: RUF001
    "ja": "粉屋は朝早く水門を開け、水がゆっくりと水車を回します。",
    "zh": "磨坊主清晨打开水闸，水慢慢地转动水轮。",  # noqa: RUF001
    "ko": "방앗간 주인은 아침 일찍 수문을 열고 물은 천천히 물레방아를 돌린다.",
    "ar": "يفتح الطحان بوابة الماء في الصباح الباكر ويدير الماء العجلة ببطء.",
}


ENGLISH = "The miller opens the sluice early, and the water slowly turns the wheel."


def language_documents() -> list[Labelled]:
    """Documents labelled for a source in English."""
    texts = [*LANGUAGES.values(), *(f"{text}\n" * 200 for text in LANGUAGES.values())]
    foreign = [Labelled("foreign", text, {LANGUAGE: "language"}) for text in texts]
    # Some foreign words make no foreign text.
    mixed = f"{' '.join(PROSE)}\n{LANGUAGES['fr']}"
    return [
        *foreign,
        *(Labelled("English", text, {LANGUAGE: ""}) for text in (ENGLISH, *PROSE, mixed)),
    ]


def all_documents() -> list[Labelled]:
    return [
        *quality_documents(),
        *repetition_documents(),
        *c4_documents(),
        *natural_documents(),
        *language_documents(),
    ]
