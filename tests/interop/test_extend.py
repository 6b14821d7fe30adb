"""jaxlm.convert extend: runs and Hugging Face directories with more tokens."""

import json

import jax
import numpy as np
import pytest
from support.conversions import MADE, TEXT, converted, hf_directory

from jaxlm import config, interop
from jaxlm.load_model import load_model
from jaxlm.types import Batch

AUTO = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}
NEW = [" wisdom", "namespace", "<|im_start|>", "<|im_end|>"]
QUICK_AND_SLOW = ["gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in MADE if n != "gpt2")]
WITH_NEW = "It was the age of wisdom: namespace packages"


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """name -> (HF_DIR, the run of its import, the run with more tokens)."""
    folder, made = tmp_path_factory.mktemp("extended"), {}
    (folder / "tokens.txt").write_text(f"{NEW[0]}\n{NEW[1]}\n")

    def directories(name):
        if name not in made:
            hf, run, out = (folder / f"{part}-{name}" for part in ("hf", "run", "out"))
            hf_directory(hf, name)
            assert converted("import", hf, run) == 0
            (run / "chat_template.jinja").write_text("{{ messages }}")
            options = ("--tokens", folder / "tokens.txt", "--special", *NEW[2:])
            assert converted("extend", run, out, *options) == 0
            made[name] = hf, run, out
        return made[name]

    return directories


def batch_of(ids, family):
    tokens = np.array([ids], np.int32)
    return Batch(tokens=tokens, source=tokens if family == "encoder_decoder" else None)


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_old_texts_keep_their_ids_and_their_scores(name, extended):
    _, run, out = extended(name)
    before, after = load_model(run), load_model(out)
    old_size = before.tokenizer.size  # the model may have had room for more
    ids = before.tokenizer.encode(TEXT)[:24]
    np.testing.assert_array_equal(ids, after.tokenizer.encode(TEXT)[:24])
    scores = [
        np.asarray(jax.jit(loaded.model.apply)(loaded.params, batch_of(ids, MADE[name][2].family)))
        for loaded in (before, after)
    ]
    assert scores[0][..., :old_size].tobytes() == scores[1][..., :old_size].tobytes()

    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    # Words are read from texts, special tokens never.
    new = [after.tokenizer.inner.token_to_id(token) for token in NEW]
    assert set(new[:2]) <= set(after.tokenizer.encode(WITH_NEW).tolist())
    assert not set(new) & set(after.tokenizer.encode("<|im_start|> <|im_end|>").tolist())
    assert after.tokenizer.decode(after.tokenizer.encode(WITH_NEW)) == WITH_NEW


@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_transformers_read_the_new_ids(name, extended, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    _, _, out = extended(name)
    assert converted("export", out, tmp_path / "hf") == 0
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = load_model(out)
    new = [ours.tokenizer.inner.token_to_id(token) for token in NEW]
    assert read.convert_tokens_to_ids(NEW) == new
    assert set(new[2:]) <= set(read.all_special_ids)

    ids = read(WITH_NEW, add_special_tokens=False)["input_ids"]
    assert ids == ours.tokenizer.encode(WITH_NEW).tolist() and set(new[:2]) <= set(ids)
    ids = read(f"<|im_start|>{WITH_NEW}<|im_end|>", add_special_tokens=False)["input_ids"]
    assert (ids[0], ids[-1]) == tuple(new[2:])

    kind, _, model = MADE[name]
    theirs = getattr(transformers, AUTO.get(kind, "AutoModelForSeq2SeqLM"))
    theirs = theirs.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.vocab_size == ours.model.config.vocabulary_size
    inputs = {"input_ids": torch.tensor([ids])}
    if model.family == "encoder_decoder":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        logits = theirs(**inputs).logits.numpy()
    scores = jax.jit(ours.model.apply)(ours.params, batch_of(ids, model.family))
    np.testing.assert_allclose(logits, scores, atol=2e-5 * float(np.abs(logits).max()))


def test_a_directory_is_extended_as_its_run_is(extended, tmp_path):
    """The same parameters, and a run as an import makes it."""
    hf, _, out = extended("gpt2")
    (tmp_path / "tokens.txt").write_text(f"{NEW[0]}\n{NEW[1]}\n")
    options = ("--tokens", tmp_path / "tokens.txt", "--special", *NEW[2:])
    assert converted("extend", hf, tmp_path / "out", *options) == 0
    one, other = load_model(out), load_model(tmp_path / "out")
    assert jax.tree.all(jax.tree.map(np.array_equal, one.params, other.params))
    assert one.tokenizer.hash == other.tokenizer.hash
    assert config.load(tmp_path / "out" / "config.json").model == one.model.config
    kept = [
        json.loads((run / "tokenizer_config.json").read_text()) for run in (out, tmp_path / "out")
    ]
    assert kept[0].keys() == kept[1].keys()
    _, params = interop.load(hf)
    rows = one.params["embedding"]["tokens"]
    pieces = load_model(hf).tokenizer.encode("namespace")
    mean = np.mean([params["embedding"]["tokens"][piece] for piece in pieces], axis=0)
    np.testing.assert_allclose(rows[one.tokenizer.inner.token_to_id("namespace")], mean, atol=1e-6)


MISTAKES = {
    "wisdom\n\nfolly\n": "tokens.txt:2: is empty",
    "wisdom\n folly\nwisdom\n": "tokens.txt:3: 'wisdom' stands there twice, first at",
    "folly\n the\n": "tokens.txt:2: ' the' is one token already",
    "</s>\n": "tokens.txt:1: '</s>' is a token already",
    "wisdom \n": "tokens.txt:1: 'wisdom ' ends with white space",
    "x" * 300: "tokens.txt:1: 'xxx",
    "caf\u00e9": "tokens.txt:1: 'café' can't be given back as text",
    "": "tokens.txt: is empty",
    "\n".join(f"word{n}" for n in range(65_537)): "tokens.txt:65537: is one token too many",
}


@pytest.mark.parametrize("text", MISTAKES, ids=MISTAKES.values())
def test_tokens_that_can_not_be_added_are_refused_in_one_line(text, extended, tmp_path, capsys):
    (tmp_path / "tokens.txt").write_text(text.replace("</s>", "<|endoftext|>"))
    hf, run, _ = extended("gpt2")
    capsys.readouterr()
    for directory in (run, hf):
        assert (
            converted("extend", directory, tmp_path / "out", "--tokens", tmp_path / "tokens.txt")
            == 2
        )
        error = capsys.readouterr().err
        assert MISTAKES[text].replace("</s>", "<|endoftext|>") in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "extend needs new tokens: --special, --tokens or --from-text"),
        (("--special", "<x>", "<x>"), "--special: '<x>' stands there twice"),
        (("--special", ""), "--special: is empty"),
        (("--tokens", "nowhere.txt"), "nowhere.txt: can't be read: No such file or directory"),
        (("--from-text", "nowhere"), "--from-text: nowhere: no such file"),
        (("--from-text", "x", "--count", "0"), "--count: must be from 1 to 50,000"),
        (("--special", "<x>", "--step", "7"), "7"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message, extended, tmp_path, capsys):
    _, run, _ = extended("gpt2")
    capsys.readouterr()
    assert converted("extend", run, tmp_path / "out", *options) in (2, 3)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
