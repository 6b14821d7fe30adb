"""Models of jaxlm in lm-evaluation-harness, against its own model for transformers."""

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from support import tiny, tiny_run

from jaxlm import evaluate, harness, load_model, runtime
from jaxlm.config import DivergedError, ModelConfig, PrecisionConfig, UserError
from jaxlm.data.tokenizer import byte_tokenizer
from jaxlm.data.trained_tokenizers import train_bpe
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.evaluation import harness_model
from jaxlm.evaluation.harness_model import decoding_config
from jaxlm.interop.tokenizer import TokenizerFrame

CHOICES = [  # question, answers, the right one
    ("The bird sat on the", ["stone", "the", "river"], 0),
    ("It was the best of ", ["times", "worst", "clouds of"], 0),  # the space goes to the answers
    (
        "A long context " * 6 + "ends",
        ["here", "there and everywhere"],
        1,
    ),  # more than the model reads
]
TEXTS = [
    "It was the best of times, it was the worst of times.",
    "short",
    "a text that goes on and on " * 6,
]

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {kind}
{rest}
"""

CHOOSING = """doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc"""

READING = """doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - metric: bits_per_byte"""

WRITING = """doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs:
  until: ["z"]
  max_gen_toks: 6
metric_list:
  - metric: exact_match"""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder with a tiny random GPT-2 and a tokenizer of bytes."""
    pytest.importorskip("lm_eval")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=257, n_positions=48, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2
    )
    folder = tmp_path_factory.mktemp("gpt2")
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=256, eos_token_id=256)
    ).save_pretrained(folder)
    byte_tokenizer(SpecialTokens("<|endoftext|>")).save(folder / "tokenizer.json")
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module")
def stocked(tmp_path_factory):
    """A folder with a short run in runs/tiny, and in tasks/ tasks of three kinds."""
    stocked = tmp_path_factory.mktemp("stocked")
    folder = stocked / "tasks"
    folder.mkdir()
    rows = [
        {"question": question, "choices": choices, "answer": answer}
        for question, choices, answer in CHOICES
    ]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps({"page": text}) + "\n" for text in TEXTS)
    )
    for name, file, kind, rest in (
        ("choosing", "choices", "multiple_choice", CHOOSING),
        ("reading", "texts", "loglikelihood_rolling", READING),
        ("writing", "choices", "generate_until", WRITING),
    ):
        (folder / f"{name}.yaml").write_text(
            TASK.format(name=f"local_{name}", file=folder / f"{file}.jsonl", kind=kind, rest=rest)
        )
    tiny_run.write_recipe(stocked)
    with contextlib.chdir(stocked):
        assert tiny_run.run("training.steps=4") == 0
    return stocked


@pytest.fixture
def folder(stocked, monkeypatch):
    """The working directory. Nothing is looked for in the network."""
    pytest.importorskip("lm_eval")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(stocked / "cache"))
    monkeypatch.chdir(stocked)
    return stocked


def asked(*arguments):
    """Requests as lm_eval makes them."""
    return [SimpleNamespace(args=argument) for argument in arguments]


def answers(model):
    """A model's answers to requests of the three kinds."""
    pairs = [(question, " " + choice) for question, choices, _ in CHOICES for choice in choices] + [
        ("", "no context")
    ]
    wanted = {"until": ["z"], "max_gen_toks": 6}
    return (
        model.loglikelihood(asked(*pairs), disable_tqdm=True),
        model.loglikelihood_rolling(asked(*((text,) for text in TEXTS)), disable_tqdm=True),
        model.generate_until(
            asked(*((question, wanted) for question, _, _ in CHOICES)), disable_tqdm=True
        ),
    )


def test_answers_are_those_of_the_harness_own_model(gpt2):
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    theirs = answers(
        huggingface.HFLM(pretrained=str(gpt2), device="cpu", batch_size=2, dtype="float32")
    )
    ours = answers(harness.JaxLM(path=str(gpt2), batch_size=2))
    # float32 in both: sums in another order.
    assert [nats for nats, _ in ours[0]] == pytest.approx([nats for nats, _ in theirs[0]], rel=1e-5)
    assert [greedy for _, greedy in ours[0]] == [greedy for _, greedy in theirs[0]]
    assert ours[1] == pytest.approx(theirs[1], rel=1e-5)
    assert ours[2] == theirs[2]


@pytest.mark.slow
def test_tasks_from_disk_with_a_run(folder, capsys):
    before = list(sys.argv)
    arguments = [
        "--tasks",
        "local_choosing,local_reading,local_writing",
        "--include_path",
        "tasks",
        "--batch_size",
        "4",
    ]
    assert (
        runtime.command(
            harness.main,
            ["run", "--model_args", "path=runs/tiny", *arguments, "--output_path", "out"],
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "jaxlm ({'path': 'runs/tiny'})" in out and sys.argv == before
    (file,) = (folder / "out").rglob("results*.json")
    results = json.loads(file.read_text())["results"]
    assert results.keys() == {"local_choosing", "local_reading", "local_writing"}
    assert 0 < results["local_reading"]["bits_per_byte,none"] < 9


def test_a_run_reads_texts_behind_the_end_of_text(folder):
    """The loss of the texts is the one that jaxlm.evaluate gives for documents of their own."""
    (folder / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text[:32]}) + "\n" for text in TEXTS)
    )
    arguments = ["runs/tiny", "--data", "texts.jsonl", "--per-document", "--json", "figures.json"]
    assert runtime.command(evaluate.main, arguments) == 0
    found = json.loads((folder / "figures.json").read_text())["total"]
    model = harness.JaxLM(path="runs/tiny", batch_size=2)
    nats = -sum(model.loglikelihood_rolling(asked(*((text[:32],) for text in TEXTS))))
    assert nats == pytest.approx(found["loss"] * found["targets"], rel=1e-5)
    assert model.tok_encode("ab") == [97, 98] and model.prefix_token_id == 256
    with pytest.raises(UserError, match="32 new tokens, but 32 are all"):
        model.generate_until(asked(("a", {"max_gen_toks": 32})))


# --- texts and pairs, without the harness ---


def decoder(monkeypatch, tokenizer, frame, positions="rotary", max_length=None):
    """A small random decoder as the harness sees it, as of a Hugging Face directory."""
    model_config = ModelConfig(
        vocabulary_size=tokenizer.size,
        layers=1,
        width=32,
        heads=4,
        context_length=48,
        positions=positions,
        initializer_std=0.3,
    )
    model, shardings = load_model.place_model(model_config, PrecisionConfig(compute="float32"), 1)
    params = jax.jit(model.init, out_shardings=shardings)(jax.random.key(0))
    loaded = load_model.LoadedModel(Path("hf"), model, params, tokenizer, frame, None, None)
    monkeypatch.setattr(harness_model, "load_model", lambda path, **_: loaded)
    monkeypatch.setattr("jaxlm.load_model.load_model", lambda path, **_: loaded)
    harness_decoder = harness_model.HarnessModel()
    harness_decoder.load("hf", batch_size=2, max_length=max_length)
    harness_decoder.cache_hook = SimpleNamespace(add_partial=lambda *_: None)
    return harness_decoder


FRAMES = {
    "llama": TokenizerFrame("</s>", "<s>", eos_ids=(256,), bos_id=257, before=(257,)),
    "gpt2": TokenizerFrame("</s>", eos_ids=(256,), bos_id=256),
}


@pytest.mark.parametrize("name", FRAMES)
def test_texts_are_scored_behind_one_begin_of_text(name, monkeypatch, tmp_path):
    model = decoder(monkeypatch, byte_tokenizer(SpecialTokens("</s>", "<s>")), FRAMES[name])
    lines = ["It was the best of times.", "short", "times and times"]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    figures = tmp_path / "figures.json"
    (tmp_path / "config.json").touch()  # the command looks for it, and the model is there already
    arguments = [str(tmp_path), "--data", str(file), "--per-document", "--json", str(figures)]
    assert runtime.command(evaluate.main, arguments) == 0
    expected = json.loads(figures.read_text())["total"]

    nats = model.loglikelihood_rolling(asked(*((text,) for text in [*lines, ""])))
    assert -sum(nats) == pytest.approx(expected["loss"] * expected["targets"], rel=1e-5)
    assert nats[-1] == 0 and expected["targets"] == len("".join(lines))


def test_a_token_across_the_join_leaves_the_continuation_whole(monkeypatch):
    special = SpecialTokens("<|endoftext|>")
    tokenizer = train_bpe(["Answer " * 2000, "a b c Ans wer"], 300, special)
    frame = TokenizerFrame("<|endoftext|>", eos_ids=(tokenizer.end_of_text,))
    model = decoder(monkeypatch, tokenizer, frame)

    def ids(text):
        return tokenizer.encode(text).tolist()

    assert len(ids("Answer")) == 1
    for context in ("Ans", "a Ans", "Answer Ans"):
        for continuation in ("wer", "wer a b c a b c"):  # whole, or with tokens behind the join
            assert model.encode_pair(context, continuation) == (ids(context), ids(continuation))
    # Where no token goes across, both are cut from one text, spaces going to the continuation.
    assert model.encode_pair("a ", "Answer") == (ids("a"), ids(" Answer"))
    assert model.encode_pair("", "Answer") == ([tokenizer.end_of_text], ids("Answer"))
    assert model.encode_pair(" ", "Ans") == (ids(" "), ids("Ans"))
    pairs = [("Ans", "wer"), ("a Ans", "wer"), ("a", " Answer"), (" ", "x")]
    for nats, _ in model.loglikelihood(asked(*pairs)):
        assert -100 < nats < 0


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("x", ""), r"the pair \('x', ''\): its continuation has no tokens"),
        (("", ""), r"the pair \('', ''\): its continuation has no tokens"),
        (("x", "b" * 60), r"the pair \('x', 'b+'\): its continuation has 60 tokens, but only 48"),
        (("", "b" * 49), r"has 49 tokens, but only 48"),
    ],
)
def test_a_pair_that_can_not_be_scored_is_quoted(pair, message, monkeypatch):
    model = decoder(monkeypatch, byte_tokenizer(SpecialTokens("</s>")), FRAMES["gpt2"])
    with pytest.raises(UserError, match=message):
        model.loglikelihood(asked(pair))


def test_what_is_not_finite_ends_with_exit_4(monkeypatch):
    model = decoder(monkeypatch, byte_tokenizer(SpecialTokens("</s>")), FRAMES["gpt2"])
    model.scorer.params = jax.tree.map(lambda x: x * float("nan"), model.scorer.params)
    with pytest.raises(DivergedError, match="scores are not finite"):
        model.loglikelihood(asked(("a", "b")))


ARGUMENTS = {
    "step": ["x", "-1", "", "2.5", "9" * 5000],
    "devices": ["0", "x", ""],
    "max_length": ["0", "nan", "100"],
    "compute": ["int8", ""],
    "batch_size": ["", "0", "1.5", "9" * 5000],
}


@pytest.mark.parametrize(("key", "values"), ARGUMENTS.items(), ids=ARGUMENTS)
def test_arguments_that_make_no_sense_are_refused(key, values, monkeypatch):
    tokenizer = byte_tokenizer(SpecialTokens("</s>"))
    decoder(monkeypatch, tokenizer, FRAMES["gpt2"], positions="learned")
    for value in values:
        with pytest.raises(UserError, match=key):
            harness_model.HarnessModel().load(**{"path": "hf", "batch_size": 1} | {key: value})


def test_other_families_and_wrong_arguments_are_refused(monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(
        harness_model,
        "load_model",
        lambda path, **_: SimpleNamespace(
            model=SimpleNamespace(config=tiny.ENCODER.model), require_tokens=lambda: None
        ),
    )
    with pytest.raises(
        UserError, match="runs/tiny: is an encoder, but the harness asks for continuations"
    ):
        harness.JaxLM(path="runs/tiny")
    with pytest.raises(
        UserError, match="--batch_size: must be a whole number of at least 1, got 'auto'"
    ):
        harness.JaxLM(path="runs/tiny", batch_size="auto")
    with pytest.raises(
        UserError, match="--model_args: 'steps' is not known; known: path, step, ema, compute"
    ):
        harness.JaxLM(path="runs/tiny", steps=4)
    with pytest.raises(UserError, match="--model_args: needs path=RUN"):
        harness.JaxLM()


@pytest.mark.slow
def test_mistakes_take_one_line(folder, capsys):
    for path, task, message in (
        ("nowhere", "local_reading", "nowhere: there is no such directory"),
        ("runs/tiny", "local_nothing", "--tasks: Tasks not found: local_nothing"),
    ):
        assert (
            runtime.command(
                harness.main,
                ["--model_args", f"path={path}", "--tasks", task, "--include_path", "tasks"],
            )
            == 2
        )
        assert f"error: {message}\n" in capsys.readouterr().err


def test_what_lm_eval_can_not_use_takes_one_line(monkeypatch, capsys):
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: json.loads("{"))
    assert runtime.command(harness.main, ["--tasks", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: lm_eval: JSONDecodeError: Expecting")
    # A mistake of ours keeps its traceback.
    wrong: Any = None
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: decoding_config(wrong, 1))
    assert runtime.command(harness.main, ["--tasks", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--limit", "x"], ["--model_args", "path=x,y=" + "9" * 5000], ["--tasks"], ["--nothing"]],
)
def test_what_the_parser_of_lm_eval_refuses_takes_one_line(arguments, capsys):
    pytest.importorskip("lm_eval")
    assert runtime.command(harness.main, ["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error


def test_options_of_tasks():
    found = decoding_config(
        {
            "until": "\n",
            "max_new_tokens": 9,
            "do_sample": False,
            "temperature": 0.7,
            "num_beams": 1,
        },
        4,
    )
    assert (
        found.stop_strings == ("\n",)
        and found.max_new_tokens == 9
        and found.sampling.temperature == 0
    )
    found = decoding_config({"until": ["a", "b"], "do_sample": True, "top_p": 0.9, "top_k": 5}, 4)
    assert (
        found.stop_strings == ("a", "b")
        and found.max_new_tokens == 256
        and found.sampling[1:4] == (1.0, 5, 0.9)
    )
    assert decoding_config({}, 1).sampling.temperature == 0
    assert decoding_config({"temperature": 0.5}, 1).sampling.temperature == 0.5
    for options in ({"top_p": 2}, {"until": 5}, {"max_gen_toks": "x"}, {"temperature": -1}):
        (key,) = options
        with pytest.raises(UserError, match=f"generation_kwargs: {key}: "):
            decoding_config(options, 1)
    with pytest.raises(
        UserError, match="generation_kwargs: 'num_beams' is not supported with --model jaxlm"
    ):
        decoding_config({"num_beams": 4}, 1)


@pytest.mark.parametrize(("word", "nearest"), [("rn", "run"), ("vlidate", "validate")])
def test_a_misspelt_command_of_the_harness_names_the_nearest(capsys, word, nearest):
    pytest.importorskip("lm_eval")
    assert runtime.command(harness.main, [word, "tasks"]) == 2
    assert f"no command {word!r} (did you mean {nearest!r}?)" in capsys.readouterr().err


def test_without_the_harness_one_line_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert runtime.command(harness.main, ["ls", "tasks"]) == 2
    assert capsys.readouterr().err == 'error: lm_eval is not installed: pip install "jaxlm[eval]"\n'


def test_help_has_examples(capsys):
    assert harness.main([]) == 0 and harness.main(["--help"]) == 0
    assert "python -m jaxlm.harness run --model_args path=gpt2/" in capsys.readouterr().out
