"""The command that generates, fills masks and embeds, on small models of each family."""

import io
import json
import shutil
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.trees import random_params

from jaxlm import config, generate, interop, models, runtime
from jaxlm.data.tokenizer import byte_tokenizer
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.decoding import prompts as reading
from jaxlm.decoding.generation import DecodingConfig, TextGenerator
from jaxlm.decoding.sampling import SamplingConfig
from jaxlm.interop.tokenizer import TokenizerFrame
from jaxlm.interop.write_tokenizer import write_tokenizer
from jaxlm.load_model import LoadedModel
from jaxlm.types import Batch

TOKENIZER = byte_tokenizer(SpecialTokens("<end>", "<begin>", "<pad>", "<mask>", 3))
END, BEGIN, PAD, MASK, LAST, _, FIRST = range(256, 263)
SIZES = {
    "vocabulary_size": TOKENIZER.size,
    "layers": 1,
    "width": 32,
    "heads": 4,
    "context_length": 64,
}
MODELS = {
    "decoder": config.ModelConfig(**SIZES),
    "encoder": config.ModelConfig(
        **SIZES,
        family="encoder",
        norm_placement="post",
        embedding_norm=True,
        token_types=2,
        activation="gelu",
        head_bias=True,
        head_transform=True,
        norm_epsilon=1e-12,
        initializer="normal",
    ),
    "encoder_decoder": config.ModelConfig(
        **SIZES,
        family="encoder_decoder",
        norm="rmsnorm",
        norm_epsilon=1e-6,
        positions="relative",
        attention_scale=1.0,
        activation="relu",
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        tied_head=False,
    ),
}
SPECIAL = {
    "decoder": TokenizerFrame("<end>", eos_ids=(END,)),
    "encoder": TokenizerFrame(
        "<end>", "<begin>", "<pad>", "<mask>", before=(BEGIN,), after=(END,), pad_id=PAD
    ),
    "encoder_decoder": TokenizerFrame(
        "<end>",
        None,
        "<pad>",
        None,
        3,
        eos_ids=(END,),
        pad_id=PAD,
        decoder_start_id=PAD,
        after=(END,),
    ),
}


@cache
def loaded(family):
    model = models.build(MODELS[family])
    # With these weights texts are no loops of one token.
    return model, random_params(model, seed=1, std=0.5, scales_near_one=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory of each family, as `interop` writes it."""

    @cache
    def make(family):
        folder = tmp_path_factory.mktemp("models") / family
        special = SPECIAL[family]
        ids = {
            "eos_token_id": END,
            "pad_token_id": PAD,
            "decoder_start_token_id": special.decoder_start_id,
        }
        interop.save(
            folder,
            *loaded_plain(family),
            tokens={name: number for name, number in ids.items() if number is not None},
        )
        write_tokenizer(folder, TOKENIZER.inner.to_str(), special, 64)
        return str(folder)

    return make


def loaded_plain(family):
    model, params = loaded(family)
    return model.config, params


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Runs the command: (exit code, stdout, stderr, the JSON that it wrote or None)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")

    def run(*argv, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        written = tmp_path / "results.json"
        written.unlink(missing_ok=True)
        code = runtime.command(generate.main, [*map(str, argv), "--json", str(written)])
        out, err = capsys.readouterr()
        return (
            code,
            out,
            err,
            json.loads(written.read_text())["results"] if written.exists() else None,
        )

    return run


# --- writing ---


@cache
def generator(family="decoder", **run_config):
    model, params = loaded(family)
    return TextGenerator(
        model,
        models.unstacked(params),
        TOKENIZER,
        SPECIAL[family],
        DecodingConfig(**{"max_new_tokens": 30} | run_config),
    )


def texts(prompts, **run_config):
    return list(generator(**run_config)(tuple(prompts)))


PROMPTS = ("Once upon a time", "x", "It was the best")


def test_a_batch_of_prompts_is_written_in_their_order():
    found = texts(PROMPTS)
    assert [text.prompt for text in found] == [0, 1, 2] and [
        text.prompt_tokens for text in found
    ] == [16, 1, 15]
    model, params = loaded("decoder")
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = np.concatenate([TOKENIZER.encode(prompt), text.ids])
        # Read again at once, each token is the likeliest after those before it.
        likeliest = np.asarray(model.apply(params, Batch(tokens=ids[None]))).argmax(-1)[0]
        assert likeliest[len(TOKENIZER.encode(prompt)) - 1 : -1].tolist() == text.ids.tolist()
        assert text.finish == ("end" if text.ids[-1] == END else "length")
        assert text.text == text.output == TOKENIZER.decode(text.ids)


@pytest.mark.parametrize("size", [1, 2])
def test_texts_do_not_depend_on_the_batch(size):
    choice = SamplingConfig(temperature=1.2, top_k=40)
    together = [text.ids.tolist() for text in texts(PROMPTS, sampling=choice, samples=2, seed=5)]
    apart = [
        text.ids.tolist()
        for text in texts(PROMPTS, sampling=choice, samples=2, seed=5, batch_size=size)
    ]
    assert together == apart and together[0] != together[1]


def test_a_stop_string_ends_a_text():
    whole = texts(PROMPTS)
    stop = whole[0].text[9:12]
    for text, before in zip(texts(PROMPTS, stop_strings=(stop,)), whole, strict=True):
        place = before.text.find(stop)
        assert text.text == (before.text if place < 0 else before.text[:place])
        assert text.finish == ("stop" if place >= 0 else before.finish)
        assert TOKENIZER.decode(text.ids).startswith(text.text) and len(text.ids) <= len(before.ids)


def test_a_text_streams_in_whole_pieces():
    pieces = []
    (text,) = generator()(PROMPTS[:1], pieces.append)
    assert "".join(pieces) == text.text and len(pieces) > 1
    assert text.text == texts(PROMPTS)[0].text


def test_a_text_ends_with_the_last_position():
    prompts = ["a" * 60, "a" * 63, "ab"]
    found = texts(prompts)
    assert [len(text.ids) for text in found[:2]] == [4, 1]
    assert [text.finish for text in found[:2]] == ["context", "context"]
    with pytest.raises(
        config.UserError,
        match=r"prompt 2: 64 tokens and 1 new, .* end at 64 \(model.context_length\)",
    ):
        texts(["a", "a" * 64])


def test_an_empty_prompt_begins_a_document():
    (text,) = texts([""])
    assert text.prompt_tokens == 1 and len(text.ids)


def test_what_is_written_for_gaps_is_put_in_their_places():
    made = generator("encoder_decoder")
    source = np.array([*b"one ", FIRST, *b" two ", FIRST - 1, END])
    written = np.array([FIRST, *b"1", FIRST - 1, *b"2", LAST, *b"3"])
    assert made.fill_gaps(source, written) == "one 1 two 2"
    assert made.fill_gaps(source, written[:2]) == "one 1 two <extra_id_1>"
    assert made.fill_gaps(np.array([*b"one", END]), written) is None
    (text,) = made(["one <extra_id_0> two"])
    assert text.prompt_tokens == 10 and text.text.startswith("one ") and text.text.endswith(" two")
    (text,) = made(["one two"])
    assert text.prompt_tokens == 8 and text.text == TOKENIZER.decode(text.ids)


def test_only_names_that_a_family_reads_are_special_in_prompts():
    names = {"<mask>": MASK}
    assert reading.encode_with_special(TOKENIZER, "a<mask>b<end>", names).tolist() == [
        97,
        MASK,
        98,
        *b"<end>",
    ]
    assert reading.encode_with_special(TOKENIZER, "<mask>", names).tolist() == [MASK]
    framed = {
        family: reading.encode_prompt(MODELS[family], TOKENIZER, SPECIAL[family], "<mask>").tolist()
        for family in MODELS
    }
    plain = list(b"<mask>")
    assert framed == {
        "decoder": plain,
        "encoder": [BEGIN, MASK, END],
        "encoder_decoder": [*plain, END],
    }


# --- the command ---


def test_writing_by_the_command(call, directory, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"prompt": "x"}\n{"text": "It was the best", "n": 1}\n')
    code, out, err, results = call(
        directory("decoder"),
        "--prompt",
        "-",
        "--prompts",
        "more.jsonl",
        "--max-new-tokens",
        30,
        stdin=PROMPTS[0],
    )
    assert (code, err) == (0, "")
    expected = texts(PROMPTS)
    assert [result["text"] for result in results] == [text.text for text in expected]
    assert [result["tokens"] for result in results] == [text.ids.tolist() for text in expected]
    assert [result["finish"] for result in results] == [text.finish for text in expected]
    shown = "".join(
        f"--- prompt {n} ---\n{prompt}{text.text}\n"
        for n, (prompt, text) in enumerate(zip(PROMPTS, expected, strict=True), 1)
    )
    assert out == shown


def test_a_terminal_shows_the_text_once(call, directory, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, _, _ = call(directory("decoder"), "--prompt", PROMPTS[0], "--max-new-tokens", 30)
    assert code == 0 and out == f"{PROMPTS[0]}{texts(PROMPTS)[0].text}\n"


def test_masks_by_the_command(call, directory):
    texts = ["a <mask> b<mask>", "<mask>"]
    code, out, _, results = call(
        directory("encoder"), "--prompt", texts[0], "--prompt", texts[1], "--top", 3
    )
    model, params = loaded("encoder")
    assert code == 0
    for ids, result in zip(
        ([BEGIN, *b"a ", MASK, *b" b", MASK, END], [BEGIN, MASK, END]), results, strict=True
    ):
        shares = np.asarray(
            jax.nn.softmax(model.apply(params, Batch(tokens=np.array([ids], np.int32))))
        )[0]
        for place, candidates in zip(
            np.flatnonzero(np.array(ids) == MASK), result["masks"], strict=True
        ):
            assert [candidate["token"] for candidate in candidates] == np.argsort(-shares[place])[
                :3
            ].tolist()
            np.testing.assert_allclose(
                [c["probability"] for c in candidates], np.sort(shares[place])[:-4:-1], rtol=1e-4
            )
    assert out.count("<mask> 1: ") == 2 and out.count("<mask> 2: ") == 1


@pytest.mark.parametrize(
    ("family", "pool"), [("encoder", "mean"), ("encoder", "first"), ("decoder", "last")]
)
def test_vectors_by_the_command(call, directory, family, pool, tmp_path):
    texts = ["a", "Once upon a time", "It was"]
    lines = tmp_path / "texts"
    lines.write_text("\n".join(texts))
    argv = [directory(family), "--prompts", lines, "--embed", "--pool", pool, "--batch-size", 2]
    code, out, _, _ = call(*argv, "--out", "vectors.npy")
    assert (code, out) == (0, "")
    found = np.load(tmp_path / "vectors.npy")
    model, params = loaded(family)
    for text, vector in zip(texts, found, strict=True):
        ids = reading.encode_prompt(MODELS[family], TOKENIZER, SPECIAL[family], text)
        features = np.asarray(model.features(params, Batch(tokens=ids[None])))[0]
        expected = {"mean": features.mean(axis=0), "first": features[0], "last": features[-1]}[pool]
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
    if pool == "mean":
        code, out, _, _ = call(*argv)
        assert [json.loads(line)["text"] for line in out.splitlines()] == texts
        np.testing.assert_allclose(
            [json.loads(line)["vector"] for line in out.splitlines()], found, rtol=1e-6
        )


PROMPT_LINES = ["one\x0c\x1c\x85\u2028still\rone", "", "\ufefftwo "]
FILES = {  # content -> prompts, and what stderr says
    "p.txt": (
        "\ufeffone\x0c\x1c\x85\u2028still\rone\r\n\n\ufefftwo \n",
        PROMPT_LINES,
        "p.txt:2: a blank line is an",
    ),
    "p.JSONL": (
        '\ufeff{"prompt": "a\u2028b"}\r\n\n{"text": "c"}',
        ["a\u2028b", "c"],
        "p.JSONL:2: a blank line is left",
    ),
    "p.json": ('{"prompt": "a\\u2028b"}\n', ["a\u2028b"], ""),
}


@pytest.mark.parametrize(("name", "case"), FILES.items(), ids=FILES)
def test_prompts_files_are_cut_at_line_ends_only(name, case, monkeypatch, tmp_path, capsys):
    content, expected, note = case
    (tmp_path / name).write_bytes(content.encode())
    monkeypatch.chdir(tmp_path)
    args = generate.build_generate_parser().parse_args(["model", "--prompts", name])
    assert generate.read_prompts(args) == expected
    assert note in capsys.readouterr().err


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_prompt_of_stdin_loses_its_last_line_end(end, monkeypatch):
    content = io.BytesIO(f"one\n\n{end}".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    args = generate.build_generate_parser().parse_args(["model", "--prompt", "-"])
    assert generate.read_prompts(args) == ["one\n\n" if end else "one\n"]


def test_what_is_noteworthy_goes_to_stderr(call, directory):
    code, _, err, results = call(directory("decoder"), "--prompt", "a" * 62)
    assert (code, results[0]["finish"]) == (0, "context")
    assert err == "prompt 1: the text ends at the model's last position (model.context_length=64)\n"


def test_rules_of_the_files_are_followed_or_named(call, directory, tmp_path):
    """In generation_config.json, or in the config.json of an old folder without one."""
    free = texts(PROMPTS[:1])[0].ids.tolist()
    rules = {"bad_words_ids": [[free[0]]], "no_repeat_ngram_size": 1, "min_length": 3}
    for name, others in (("generation_config.json", {"num_beams": 4}), ("config.json", {})):
        folder = tmp_path / name
        shutil.copytree(directory("decoder"), folder)
        values = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(values | rules | others))
        code, _, err, results = call(folder, "--prompt", PROMPTS[0], "--max-new-tokens", 9)
        tokens = results[0]["tokens"]
        assert code == 0 and tokens != free[:9]
        assert free[0] not in tokens and len({*tokens, *PROMPTS[0].encode()}) == len(tokens) + len(
            {*PROMPTS[0].encode()}
        )
        assert f"note: {name} asks for min_length=3, which jaxlm.generate does not do\n" in err
        assert err.count("\n") == 1 + len(others)
        if others:
            assert "note: generation_config.json asks for num_beams=4; pass these" in err


MISTAKES = {  # arguments behind the model's, by family -> what the line says
    "no prompt": ("decoder", [], "--prompt TEXT, or --prompts FILE, is needed"),
    "no file": ("decoder", ["--prompts", "none.txt"], "--prompts: none.txt: No such file"),
    "no prompts in it": ("decoder", ["--prompts", "empty"], "empty: holds no prompts"),
    "no JSON": ("decoder", ["--prompts", "bad.jsonl"], "bad.jsonl:2: not JSON"),
    "no text in it": (
        "decoder",
        ["--prompts", "other.jsonl"],
        'other.jsonl:1: has no "prompt" or "text"',
    ),
    "not UTF-8": ("decoder", ["--prompts", "latin"], "latin: not UTF-8"),
    "half a character": (
        "decoder",
        ["--prompts", "half.jsonl"],
        "half.jsonl:2: holds half a surrogate pair",
    ),
    "bytes that are no text": ("decoder", ["--prompt", "a\udcff"], "--prompt: holds bytes"),
    "stdin twice": ("decoder", ["--prompt", "-", "--prompts", "-"], "stdin can be read only once"),
    "a folder of prompts": ("decoder", ["--prompts", "."], "--prompts: .: Is a directory"),
    "a long name": ("decoder", ["--prompts", "a" * 999], "File name too long"),
    "no value": ("decoder", ["--prompt=--"], "argument --prompt: '--' is no value"),
    "a length penalty without bound": (
        "decoder",
        ["--prompt", "a", "--beams", "2", "--length-penalty", "400"],
        "--length-penalty: must be a number at least -30 and at most 30, got '400'",
    ),
    "too many tokens": (
        "decoder",
        ["--prompt", "a", "--max-new-tokens", "9" * 30],
        "--max-new-tokens: must be an integer at least 1 and at most 1048576",
    ),
    "a folder to write": (
        "encoder",
        ["--prompt", "a", "--embed", "--out", "."],
        "--out: '.' is no file name",
    ),
    "no file to write": (
        "encoder",
        ["--prompt", "a", "--embed", "--out", "-"],
        "--out: '-' is no file name",
    ),
    "one file for two": (
        "encoder",
        ["--prompt", "a", "--embed", "--out", "results.json"],
        "--json and --out",
    ),
    "no number": (
        "decoder",
        ["--prompt", "a", "--top-k", "many"],
        "--top-k: must be an integer at least 0, got 'many'",
    ),
    "out of bounds": (
        "decoder",
        ["--prompt", "a", "--top-p", "1.5"],
        "--top-p: must be a number at least 0 and at most 1, got '1.5'",
    ),
    "not finite": (
        "decoder",
        ["--prompt", "a", "--temperature", "nan"],
        "--temperature: must be a number at least 0, got 'nan'",
    ),
    "greedy samples": (
        "decoder",
        ["--prompt", "a", "--samples", "2", "--temperature", "0"],
        "--samples needs a --temperature above 0",
    ),
    "sampled beams": (
        "decoder",
        ["--prompt", "a", "--beams", "2", "--top-k", "5"],
        "--top-k is for sampling",
    ),
    "penalty without beams": (
        "decoder",
        ["--prompt", "a", "--length-penalty", "2"],
        "--length-penalty needs --beams",
    ),
    "empty stop string": ("decoder", ["--prompt", "a", "--stop", ""], "--stop: an empty text"),
    "least above most": (
        "decoder",
        ["--prompt", "a", "--min-new-tokens", "9", "--max-new-tokens", "8"],
        "--min-new-tokens 9 is above",
    ),
    "no folder": (
        "encoder",
        ["--prompt", "a", "--embed", "--out", "none/x.npy"],
        "--out: none: no such folder",
    ),
    "step of no run": ("decoder", ["--prompt", "a", "--step", "5"], "only a run has steps"),
    "sampling masks": (
        "encoder",
        ["--prompt", "a", "--temperature", "1"],
        "--temperature is not used with",
    ),
    "no mask": ("encoder", ["--prompt", "<mask>", "--prompt", "a"], "prompt 2: has no <mask>"),
    "too long": (
        "encoder",
        ["--prompt", "<mask>" + "a" * 62],
        "prompt 1: 65 tokens, but the model's positions end at 64",
    ),
    "candidates of a decoder": (
        "decoder",
        ["--prompt", "a", "--top", "3"],
        "--top is not used with",
    ),
    "first of a decoder": (
        "decoder",
        ["--prompt", "a", "--embed", "--pool", "first"],
        "--pool first: a decoder's first token",
    ),
    "vectors of both": (
        "encoder_decoder",
        ["--prompt", "a", "--embed"],
        "--embed takes an encoder or a decoder",
    ),
}


@pytest.mark.parametrize(("family", "argv", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(call, directory, tmp_path, family, argv, message):
    files = {
        "empty": b"\n \n",
        "bad.jsonl": b'{"text": "a"}\n{\n',
        "half.jsonl": b'{"text": "a"}\n{"text": "\\ud800"}\n',
        "other.jsonl": b'{"txt": "a"}\n',
        "latin": b"caf\xe9",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    code, out, err, _ = call(directory(family), *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and message in err


def test_what_is_no_model_is_one_line(call, tmp_path):
    for name in ("none", "."):
        code, out, err, _ = call(tmp_path / name, "--prompt", "a")
        assert (code, out, err.count("\n")) == (2, "", 1) and str(tmp_path) in err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as end:
        generate.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown and "greedy" in shown


# --- weights that are not finite ---


@pytest.mark.parametrize(
    "use", ["greedy", "infinite", "sampled", "stop", "beams", "source", "mask", "embed"]
)
def test_scores_that_are_not_finite_end_with_exit_4(use, monkeypatch, capsys, tmp_path):
    value = np.inf if use == "infinite" else np.nan
    family = {"source": "encoder_decoder", "mask": "encoder", "embed": "encoder"}.get(
        use, "decoder"
    )
    model, params = loaded(family)

    def break_scale(path, leaf):
        is_scale = "scale" in jax.tree_util.keystr(path)
        return np.where(np.arange(leaf.shape[-1]) == 3, value, leaf) if is_scale else leaf

    broken = jax.tree_util.tree_map_with_path(break_scale, params)
    broken = jax.tree.map(jnp.array, broken)  # copies: `generate` uses them up
    result = LoadedModel(tmp_path, model, broken, TOKENIZER, SPECIAL[family], None, None)
    monkeypatch.setattr("jaxlm.load_model.load_model", lambda *_, **__: result)
    monkeypatch.setattr(generate, "check_model_directory", lambda _: None)
    arguments = {
        "greedy": [],
        "infinite": [],
        "sampled": ["--samples", "2"],
        "stop": ["--stop", "z"],
        "beams": ["--beams", "2"],
        "source": [],
        "mask": [],
        "embed": ["--embed", "--out", str(tmp_path / "v.npy")],
    }[use]
    written = tmp_path / "o.json"
    prompt = "<mask>" if use == "mask" else "tree"
    code = runtime.command(
        generate.main, ["model", "--prompt", prompt, *arguments, "--json", str(written)]
    )
    out, err = capsys.readouterr()
    assert (code, out) == (4, "") and err.startswith("error: the model's scores are not finite")
    assert not list(tmp_path.iterdir())
