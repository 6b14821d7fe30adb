"""Tokenizers, read and written: roles, ids and every token of a text are as in `transformers`."""

import json
import tarfile

import pytest
from support import tokenizer_files
from support.tokenizer_files import LINES, put
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxlm import config
from jaxlm.config import UserError
from jaxlm.config.objective import TRAINED_BY
from jaxlm.data.tokenizer import byte_tokenizer, load_tokenizer
from jaxlm.data.trained_tokenizers import train_bpe
from jaxlm.data.vocabulary import special_tokens
from jaxlm.decoding.prompts import encode_prompt
from jaxlm.interop import generation_config, tokenizer
from jaxlm.interop.archive import write_archive
from jaxlm.interop.hf_config import read_hf_config
from jaxlm.interop.tokenizer import TokenizerFrame
from jaxlm.interop.write_tokenizer import write_tokenizer
from jaxlm.load_model import load_run_tokenizer, read_run_tokenizer

ROBERTA = TokenizerFrame(
    "</s>", "<s>", "<pad>", "<mask>", 0, (2,), 0, 1, None, None, None, (0,), (2,)
)
EXPECTED = {
    "gpt2": TokenizerFrame("<|endoftext|>", eos_ids=(0,), bos_id=0),
    "roberta": ROBERTA,
    "bart": ROBERTA._replace(decoder_start_id=2, forced_bos_id=0, forced_eos_id=2),
    "bert": TokenizerFrame(
        "[SEP]", "[CLS]", "[PAD]", "[MASK]", 0, (3,), 2, 0, before=(2,), after=(3,)
    ),
    "t5": TokenizerFrame("</s>", None, "<pad>", None, 8, (1,), None, 0, 0, after=(1,)),
    "llama": TokenizerFrame("</s>", "<s>", eos_ids=(2,), bos_id=1, before=(1,)),
}
OBJECTIVES = {
    "gpt2": "causal",
    "llama": "causal",
    "roberta": "masked",
    "bert": "masked",
    "bart": "infilling",
    "t5": "span",
}


@pytest.mark.parametrize("names", ["tokenizer_config.json", "special_tokens_map.json", None])
@pytest.mark.parametrize("kind", EXPECTED)
def test_roles_come_from_either_file_or_the_class(kind, names, tmp_path):
    directory = tokenizer_files.write(tmp_path, kind, names)
    made, special = tokenizer.read_tokenizer(directory)
    assert special == EXPECTED[kind]
    assert (made.kind, made.path, made.end_of_text) == (
        "file",
        str(directory / "tokenizer.json"),
        special.end_of_text,
    )
    assert made.begin_of_text == special.begin_of_text
    # With these settings the tokenizer has all that its objective needs.
    needs = config.ObjectiveConfig(kind=OBJECTIVES[kind]).needs
    loaded = load_tokenizer(directory / "tokenizer.json", special_tokens(made, needs))
    assert loaded.end_of_text == special.eos_ids[0]
    assert len(loaded.vocabulary.sentinels) == special.sentinels


def test_tokenizer_config_holds_before_the_older_file(tmp_path):
    directory = tokenizer_files.write(tmp_path, "roberta")
    put(
        directory,
        "special_tokens_map.json",
        {"eos_token": "<unk>", "sep_token": "<unk>", "pad_token": {"content": "<unk>"}},
    )
    assert tokenizer.read_tokenizer(directory)[1] == EXPECTED["roberta"]


def test_generation_config_holds_before_config(tmp_path):
    directory = tokenizer_files.write(tmp_path, "llama")
    put(
        directory,
        "generation_config.json",
        {"eos_token_id": [5, 2], "bos_token_id": 1, "pad_token_id": 0, "forced_eos_token_id": [2]},
    )
    special = tokenizer.read_tokenizer(directory)[1]
    assert (special.eos_ids, special.pad_id, special.forced_eos_id) == ((2, 5), 0, 2)


def test_ids_of_the_class_that_no_token_has_are_left_out(tmp_path):
    """`transformers` writes GPT-2's 50256 beside any tokenizer; the end of text still counts."""
    directory = tokenizer_files.write(tmp_path, "gpt2")
    put(
        directory,
        "config.json",
        {"model_type": "gpt2", "bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": -1},
    )
    special = tokenizer.read_tokenizer(directory)[1]
    assert (special.eos_ids, special.bos_id, special.pad_id) == ((0,), 0, None)


def test_an_end_without_a_name_is_found_by_its_id(tmp_path):
    directory = tokenizer_files.write(tmp_path, "llama", None)
    put(directory, "config.json", {"model_type": "other", "eos_token_id": 2})
    assert tokenizer.read_tokenizer(directory)[1].end_of_text == "</s>"


MISTAKES = {
    "no tokenizer.json": ("tokenizer.json", None, "tokenizer.json: there is no such file"),
    "broken": ("tokenizer.json", b'{"a": 1}', "tokenizer.json: is not a tokenizer.json"),
    "not text": ("tokenizer.json", b"\xff\xfe", "tokenizer.json: is not a tokenizer.json"),
    "not JSON": ("tokenizer_config.json", b"{", "tokenizer_config.json: is not JSON"),
    "a list": ("special_tokens_map.json", b"[]", "special_tokens_map.json: must be a JSON object"),
    "a number": (
        "tokenizer_config.json",
        b'{"eos_token": 3}',
        "tokenizer_config.json: eos_token: must be a token's text",
    ),
    "unknown token": (
        "tokenizer_config.json",
        b'{"eos_token": "<end>"}',
        "tokenizer.json: has no token '<end>'",
    ),
    "id in words": (
        "generation_config.json",
        b'{"eos_token_id": "2"}',
        "generation_config.json: eos_token_id: must be the id",
    ),
    "no config": ("config.json", None, "config.json: there is no such file"),
    "remote code": (
        "config.json",
        b'{"auto_map": {"AutoModel": "x.Y"}}',
        "config.json: auto_map: ",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_file_and_key(case, tmp_path):
    name, content, message = MISTAKES[case]
    directory = tokenizer_files.write(tmp_path, "llama")
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content)
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as caught:
        tokenizer.read_tokenizer(directory)
    assert str(directory) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "files"),
    [
        ("qwen2", ["vocab.json", "merges.txt"]),
        ("gpt2", ["vocab.json"]),
        ("gpt2", ["vocab.txt"]),
        ("mbart", ["sentencepiece.bpe.model"]),
        ("marian", ["vocab.json", "source.spm"]),
    ],
)
def test_files_that_stand_for_no_tokenizer_json_are_refused_with_a_way_out(
    model_type, files, tmp_path
):
    put(tmp_path, "config.json", {"model_type": model_type})
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        UserError,
        match=f"{' and '.join(files)} alone can't be read for '{model_type}'; .*save_pretrained",
    ):
        tokenizer.read_tokenizer(tmp_path)


def test_nothing_says_what_ends_a_text(tmp_path):
    directory = tokenizer_files.write(tmp_path, "llama", None)
    put(directory, "config.json", {"model_type": "other"})
    with pytest.raises(UserError, match=r"tokenizer_config\.json: eos_token: no file says"):
        tokenizer.read_tokenizer(directory)


def run_tokenizer(kind: str, objective: str, begin: str | None):
    """The settings and the tokenizer of a run that made its own."""
    made, goal = (
        config.TokenizerConfig(kind=kind, begin_of_text=begin, sentinels=8),
        config.ObjectiveConfig(kind=objective),
    )
    special = special_tokens(made, goal.needs)
    return (
        made,
        goal,
        byte_tokenizer(special) if kind == "bytes" else train_bpe(LINES, 400, special),
    )


OWN = [
    (kind, objective, begin)
    for kind in ("bytes", "bpe")
    for objective, begin in (
        ("causal", None),
        ("masked", "<s>"),
        ("masked", None),
        ("span", None),
        ("infilling", "<s>"),
        ("pairs", None),
    )
]


@pytest.mark.parametrize("kind, objective, begin", OWN)
def test_special_tokens_of_a_run(kind, objective, begin):
    """The tokens around a text are those of the objective's samples."""
    tokenizer_config, goal, made = run_tokenizer(kind, objective, begin)
    special = tokenizer.run_tokenizer_frame(tokenizer_config, goal, made.inner)
    ids = {role: made.inner.token_to_id(name) for role, name in made.special.named.items()}
    assert special[:5] == tuple(made.special)[:5]
    assert special.eos_ids == (ids["end_of_text"],)
    assert special.bos_id == (
        ids[("begin_of_text")] if begin else ids["end_of_text"] if objective == "causal" else None
    )
    starts = {"span": "pad", "pairs": "pad", "infilling": "end_of_text"}
    assert special.decoder_start_id == ids.get(starts.get(objective, ""))
    ends = {"span", "pairs"} if begin is None else {"masked", "infilling"}
    assert special.after == ((ids["end_of_text"],) if objective in ends else ())
    assert special.before == ((ids["begin_of_text"],) if begin else ())


def read_back(directory, text: str, special: TokenizerFrame, model_type: str):
    """Return what `transformers` loads from an exported tokenizer."""
    transformers = pytest.importorskip("transformers")
    put(directory, "config.json", {"model_type": model_type, "vocab_size": 400})
    write_tokenizer(directory, text, special, 64)
    return transformers.AutoTokenizer.from_pretrained(directory)


def check_same(theirs, ours, inner: Tokenizer, special: TokenizerFrame) -> None:
    """Compare ids and texts of transformers' tokenizer, a run's and its tokenizer.json."""
    for line in LINES:
        ids = ours.encode(line).tolist()
        assert (
            theirs(line, add_special_tokens=False)["input_ids"]
            == ids
            == inner.encode(line, add_special_tokens=False).ids
        )
        assert theirs.decode(ids) == inner.decode(ids, skip_special_tokens=False)
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
        framed = theirs(line)["input_ids"]
        assert framed == [*special.before, *ids, *special.after]
        assert theirs.decode(framed, skip_special_tokens=True) == ours.decode(ids)
    assert len(theirs) == ours.size
    roles = {"eos_token": special.end_of_text, "pad_token": special.pad, "mask_token": special.mask}
    assert {role: getattr(theirs, role) for role in roles} == roles
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (
        special.eos_ids[0],
        special.bos_id,
        special.pad_id,
    )
    assert theirs.model_max_length == 64
    assert "token_type_ids" not in theirs("a")  # GPT-2 would add their embeddings
    for number in range(special.sentinels):
        sentinel = f"<extra_id_{number}>"
        assert theirs(sentinel, add_special_tokens=False)["input_ids"] == [
            inner.token_to_id(sentinel)
        ]


MODEL_TYPES = {
    "causal": "gpt2",
    "masked": "roberta",
    "span": "t5",
    "infilling": "bart",
    "pairs": "t5",
    "fill_in_the_middle": "gpt2",
    "mixture_of_denoisers": "t5",
}


@pytest.mark.parametrize("kind, objective, begin", OWN)
def test_a_tokenizer_made_here_in_transformers(kind, objective, begin, tmp_path):
    tokenizer_config, goal, ours = run_tokenizer(kind, objective, begin)
    ours.save(tmp_path / "run.json")
    inner = Tokenizer.from_file(str(tmp_path / "run.json"))
    special = tokenizer.run_tokenizer_frame(tokenizer_config, goal, inner)
    theirs = read_back(
        tmp_path, (tmp_path / "run.json").read_text(), special, MODEL_TYPES[objective]
    )
    check_same(theirs, ours, inner, special)
    # Read again it is the same, but for the ids that config.json would say.
    read = tokenizer.read_tokenizer(tmp_path)[1]
    assert read._replace(decoder_start_id=None, forced_eos_id=None, eos_ids=()) == special._replace(
        decoder_start_id=None, eos_ids=()
    )
    assert special.eos_ids[0] == read.eos_ids[0]


def of_class(kind: str):
    """A tokenizer of the class that `transformers` has for the architecture."""
    transformers = pytest.importorskip("transformers")
    model = json.loads(tokenizer_files.MADE[kind]().to_str())["model"]
    merges = [tuple(pair) for pair in model.get("merges", ())]
    if kind == "bert":
        return transformers.BertTokenizer(vocab=model["vocab"])
    if kind == "t5":
        return transformers.T5Tokenizer(
            vocab=[tuple(piece) for piece in model["vocab"]], extra_ids=8
        )
    if kind == "llama":
        return transformers.LlamaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True)
    if kind == "gpt2":
        return transformers.GPT2Tokenizer(vocab=model["vocab"], merges=merges)
    with_mask = model["vocab"] | {"<mask>": len(model["vocab"])}
    return transformers.RobertaTokenizer(vocab=with_mask, merges=merges)


@pytest.mark.parametrize("kind", EXPECTED)
def test_from_transformers_and_back(kind, tmp_path):
    first, directory = of_class(kind), tokenizer_files.write(tmp_path / "theirs", kind, None)
    first.save_pretrained(directory)
    tokenizer_config, special = tokenizer.read_tokenizer(directory)
    assert special == EXPECTED[kind]
    goal = config.ObjectiveConfig(kind=OBJECTIVES[kind])
    ours = load_tokenizer(
        directory / "tokenizer.json", special_tokens(tokenizer_config, goal.needs)
    )
    ours.save(tmp_path / "tokenizer.json")
    inner = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    run = tokenizer.run_tokenizer_frame(tokenizer_config, goal, inner)
    assert run == special._replace(
        forced_bos_id=None, forced_eos_id=None
    )  # those are not the tokenizer's
    out = tmp_path / "out"
    out.mkdir()
    again = read_back(out, (tmp_path / "tokenizer.json").read_text(), run, kind)
    check_same(again, ours, inner, run)
    masked = [f"the {first.mask_token} of{first.mask_token} times"] if first.mask_token else []
    for text in [*LINES, *masked]:
        assert first(text)["input_ids"] == again(text)["input_ids"]
    assert first(LINES[0], LINES[1])["input_ids"] == again(LINES[0], LINES[1])["input_ids"]


def test_a_mask_stands_for_its_space_too(tmp_path):
    """In training the tokens that are hidden begin with the space before their word."""
    tokenizer_config, goal, ours = run_tokenizer("bpe", "masked", "<s>")
    special = tokenizer.run_tokenizer_frame(tokenizer_config, goal, ours.inner)
    theirs = read_back(tmp_path, ours.inner.to_str(), special, "roberta")
    mask = theirs.mask_token_id
    before, after = ours.encode("the best").tolist(), ours.encode(" times").tolist()
    assert theirs("the best <mask> times", add_special_tokens=False)["input_ids"] == [
        *before,
        mask,
        *after,
    ]
    assert not ours.inner.get_added_tokens_decoder()[mask].lstrip


def words() -> Tokenizer:
    """WordLevel behind Whitespace, as no model of `transformers` has it."""
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "tree": 1, "of": 2, "the": 3}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return inner


def file_tokenizer(name: str) -> Tokenizer:
    """Return a tokenizer of another project, with the tokens of all objectives."""
    inner = words() if name == "words" else tokenizer_files.MADE[name]()
    names = ["</s>", "<pad>", "<s>", "<mask>", "<extra_id_1>", "<extra_id_0>"]
    names += [*config.TokenizerConfig().fim_tokens, *config.TokenizerConfig().denoiser_tokens]
    known = inner.get_vocab(with_added_tokens=True)
    inner.add_special_tokens(tokenizer_files.specials(*(n for n in names if n not in known)))
    return inner


PROMPTS = {
    "masked": [
        "tree <mask> of the",
        "tree<mask> of <mask>",
        "<mask>tree  <mask>  of",
        "the <mask><mask> tree",
        " <mask>",
    ],
    "span": [
        "tree <extra_id_0> of the",
        "<extra_id_0>tree <extra_id_1>",
        "of  <extra_id_0>  the<extra_id_1> tree",
        "tree <extra_id_0><extra_id_1> of",
    ],
}
PROMPTS["infilling"] = PROMPTS["masked"]
PROMPTS["fill_in_the_middle"] = ["<|fim_prefix|>of the<|fim_suffix|> tree<|fim_middle|>"]
PROMPTS["mixture_of_denoisers"] = [f"[R] {PROMPTS['span'][0]}", "[S]tree of"]


@pytest.mark.parametrize("objective", PROMPTS)
@pytest.mark.parametrize("kind", ["bytes", "bpe", "words", *tokenizer_files.MADE])
def test_prompts_of_a_run_and_of_its_export_are_the_same(kind, objective, tmp_path):
    """As `generate RUN`, `generate OUT` and AutoTokenizer read mask and sentinels."""
    transformers = pytest.importorskip("transformers")
    goal = config.ObjectiveConfig(kind=objective)
    family = TRAINED_BY[objective][0]
    made = config.TokenizerConfig(end_of_text="</s>", begin_of_text="<s>", sentinels=2)
    needs = special_tokens(made, goal.needs)
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    if kind == "bytes":
        ours = byte_tokenizer(needs)
    elif kind == "bpe":
        ours = train_bpe(["tree of the river"] * 9, 300, needs)
    else:
        file_tokenizer(kind).save(str(tmp_path / "tokenizer.json"))
        ours = load_tokenizer(tmp_path / "tokenizer.json", needs)
    ours.save(run / "tokenizer.json")
    run_config = config.Config(
        model=config.ModelConfig(family=family), objective=goal, tokenizer=made
    )
    loaded, frame = read_run_tokenizer(run, run_config)

    out.mkdir()
    put(out, "config.json", {"model_type": MODEL_TYPES[objective], "vocab_size": loaded.size})
    write_tokenizer(out, (run / "tokenizer.json").read_text(), frame, 64)
    exported_config, exported_frame = tokenizer.read_tokenizer(out)
    exported = load_run_tokenizer(exported_config, exported_frame)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    for text in PROMPTS[objective]:
        ids = encode_prompt(run_config.model, loaded, frame, text).tolist()
        assert encode_prompt(run_config.model, exported, exported_frame, text).tolist() == ids
        after = [] if family != "decoder" else list(frame.after)  # what a decoder continues is open
        assert theirs(text)["input_ids"] == ids + after, text
    if kind == "bpe" and objective in (
        "masked",
        "span",
        "infilling",
    ):  # a hidden word has the space before it
        ids = encode_prompt(run_config.model, loaded, frame, PROMPTS[objective][0]).tolist()
        assert ours.encode(" ")[0] not in ids


def test_pairs_of_texts_end_both(tmp_path):
    tokenizer_config, goal, ours = run_tokenizer("bytes", "masked", "<s>")
    special = tokenizer.run_tokenizer_frame(tokenizer_config, goal, ours.inner)
    theirs = read_back(tmp_path, ours.inner.to_str(), special, "roberta")
    assert theirs("a", "b")["input_ids"] == [
        *special.before,
        97,
        *special.after,
        98,
        *special.after,
    ]


def test_token_types_are_inputs_of_models_that_have_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    directory = tokenizer_files.write(tmp_path, "bert")
    special = tokenizer.read_tokenizer(directory)[1]
    write_tokenizer(
        directory, (directory / "tokenizer.json").read_text(), special, 64, token_types=True
    )
    read = transformers.AutoTokenizer.from_pretrained(directory)
    assert set(read("a", "b")) == {"input_ids", "token_type_ids", "attention_mask"}
    assert read("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]


def read_generation(directory, values, **about):
    put(directory, "config.json", {"model_type": "llama", **about})
    if values is not None:
        put(directory, "generation_config.json", values)
    return generation_config.read_generation_config(directory, read_hf_config(directory))


def test_what_generation_does_not_follow_is_said(tmp_path):
    values = {
        "num_beams": 4,
        "temperature": 0.6,
        "top_p": 1.0,
        "do_sample": False,
        "top_k": 50,
        "use_cache": False,
        "max_length": 20,
    }
    found = read_generation(
        tmp_path,
        values | {"min_length": 3, "forced_decoder_ids": [1], "sequence_bias": None},
    )
    assert found.suggested == {"num_beams": 4, "temperature": 0.6}
    assert found.unsupported == {"min_length": 3, "forced_decoder_ids": [1]}
    assert [line.count("=") for line in found.warnings] == [2, 2]
    assert "min_length=3, forced_decoder_ids=[1]" in found.warnings[1]


RULES = {
    "bad_words_ids": [[5], [6, 7]],
    "suppress_tokens": [8, -1],
    "begin_suppress_tokens": [9],
    "no_repeat_ngram_size": 3,
}


def test_rules_are_those_of_the_generation_config_or_else_of_an_old_config(tmp_path):
    rules = generation_config.TokenRules(((5,), (6, 7)), (8,), (9,), 3)
    found = read_generation(tmp_path, RULES, no_repeat_ngram_size=2)
    assert (found.rules, found.warnings) == (rules, [])
    assert read_generation(tmp_path, {"eos_token_id": 1}, **RULES).rules == ((), (), (), 0)

    (tmp_path / "generation_config.json").unlink()
    old = read_generation(tmp_path, None, **RULES, num_beams=6, min_length=2, num_layers=2)
    assert old.rules == rules
    assert old.warnings[0].startswith("config.json asks for num_beams=6; ")
    assert old.warnings[1].startswith("config.json asks for min_length=2, which ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bad_words_ids", 5),
        ("bad_words_ids", [5]),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", [["a"]]),
        ("bad_words_ids", [[-1]]),
        ("suppress_tokens", ["a"]),
        ("begin_suppress_tokens", [True]),
        ("no_repeat_ngram_size", -1),
        ("no_repeat_ngram_size", "two"),
    ],
)
def test_rules_that_can_not_be_followed_name_file_and_key(tmp_path, key, value):
    with pytest.raises(UserError, match=rf"generation_config\.json: {key}: must"):
        read_generation(tmp_path, {key: value})


def test_without_a_generation_config_the_ids_are_those_of_config(tmp_path):
    found = read_generation(tmp_path, None, eos_token_id=[1, 2], pad_token_id=0, bos_token_id=-1)
    assert (found.eos_ids, found.pad_id, found.bos_id, found.warnings) == ((1, 2), 0, None, [])


def test_a_generation_config_that_is_written_is_read_the_same(tmp_path):
    generation_config.write_generation_config(
        tmp_path,
        {
            "eos_token_id": 3,
            "bos_token_id": None,
            "decoder_start_token_id": 0,
            "forced_eos_token_id": 3,
        },
        64,
    )
    assert json.loads((tmp_path / "generation_config.json").read_text())["max_length"] == 64
    found = read_generation(tmp_path, None)
    assert found == generation_config.GenerationConfig((3,), None, None, 0, None, 3, {}, {})
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.decoder_start_token_id, theirs.max_length) == (3, 0, 64)


def fill(directory):
    directory.mkdir()
    for name, content in {
        "config.json": b"{}",
        "model.safetensors": bytes(range(256)) * 999,
        "README.md": b"card",
    }.items():
        (directory / name).write_bytes(content)
    (directory / ".hidden").write_bytes(b"")
    for folder in ("generator", ".git"):
        (directory / folder).mkdir()
        (directory / folder / "config.json").write_bytes(b"{}")
    return directory


def test_an_archive_has_the_files_of_the_directory_and_is_the_same_each_time(tmp_path):
    first, second = (fill(tmp_path / name) for name in ("first", "second"))
    (second / "model.tar.gz").write_bytes(b"an older one")
    (second / "config.json").chmod(0o600)
    packed = write_archive(first).read_bytes()
    assert packed == write_archive(second).read_bytes() == write_archive(first).read_bytes()
    with tarfile.open(first / "model.tar.gz") as opened:
        members = opened.getmembers()
        assert [member.name for member in members] == [
            "README.md",
            "config.json",
            "generator/config.json",
            "model.safetensors",
        ]
        assert {(m.mode, m.mtime, m.uid, m.gid, m.uname, m.gname, m.type) for m in members} == {
            (0o644, 0, 0, 0, "root", "root", tarfile.REGTYPE)
        }
        for member in members:
            content = opened.extractfile(member)
            assert content is not None and content.read() == (first / member.name).read_bytes()


def test_an_archive_that_fails_leaves_nothing(tmp_path, monkeypatch):
    directory = fill(tmp_path / "out")
    monkeypatch.setattr(
        tarfile.TarFile,
        "addfile",
        lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(UserError, match=r"model.tar.gz: can't be written: No space left on device"):
        write_archive(directory)
    assert not [path for path in directory.iterdir() if "tar" in path.name]
