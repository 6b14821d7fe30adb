"""What an import keeps beside config, tokenizer and weights comes out again at export."""

import json
import shutil

import numpy as np
import pytest
from support.chat_templates import random_conversation
from support.conversions import converted, hf_directory
from support.hf_directories import change_config
from support.marks import quick_and_slow
from tokenizers import AddedToken, Tokenizer

from jaxlm import chat, interop
from jaxlm.config import UserError
from jaxlm.interop import kept_files
from jaxlm.interop.generation_config import write_generation_config
from jaxlm.interop.write_tokenizer import write_templates
from jaxlm.load_model import load_model

GENERATORS = ("gpt2", "llama", "t5", "bart")  # architectures that generate
RULES = {
    "bad_words_ids": [[5], [6, 7]],
    "suppress_tokens": [8],
    "begin_suppress_tokens": [9],
    "no_repeat_ngram_size": 3,
    "min_length": 2,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "num_beams": 2,
    "length_penalty": 0.5,
    "stop_strings": ["END"],
    "something_of_later": {"x": [1]},
}
ABOUT_TOKENS = {
    "chat_template": "{% for message in messages %}{{ 1 / 0 }}{% endfor %}",
    "padding_side": "left",
    "truncation_side": "left",
    "model_max_length": 1000000000000000019884624838656,
    "clean_up_tokenization_spaces": True,
    "add_bos_token": False,
    "something_of_later": "kept",
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Return a function: name -> a Hugging Face directory; tests change copies of it."""
    folder, made = tmp_path_factory.mktemp("directories"), {}

    def directory(name):
        if name not in made:
            made[name] = hf_directory(folder / name, name)
            ids = read(made[name], "config.json")
            keys = ("eos_token_id", "pad_token_id", "decoder_start_token_id")
            write_generation_config(made[name], {key: ids.get(key) for key in keys}, 64)
        return made[name]

    return directory


def change(directory, name, values):
    path = directory / name
    present = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(present | values), encoding="utf-8")


def read(directory, name):
    return json.loads((directory / name).read_text(encoding="utf-8"))


def there_and_back(directory, folder):
    """Import and export a directory; return the run and the export."""
    assert converted("import", directory, folder / "run") == 0
    assert converted("export", folder / "run", folder / "out") == 0
    return folder / "run", folder / "out"


@pytest.mark.parametrize("name", GENERATORS)
def test_rules_of_generation_survive_import_and_export(name, directories, tmp_path):
    directory = shutil.copytree(directories(name), tmp_path / "hf")
    end = read(directory, "generation_config.json")["eos_token_id"]
    ends = {"eos_token_id": [end, 65, 66], "forced_bos_token_id": 70, "forced_eos_token_id": 65}
    change(directory, "generation_config.json", RULES | ends)
    run, out = there_and_back(directory, tmp_path)

    loaded = [load_model(path).special for path in (directory, run, out)]
    assert loaded[0] == loaded[1] == loaded[2]
    assert loaded[0].eos_ids == (end, 65, 66)
    assert (loaded[0].forced_bos_id, loaded[0].forced_eos_id) == (70, 65)
    written = read(out, "generation_config.json")
    assert read(directory, "generation_config.json").items() <= written.items()
    assert "jaxlm" not in written and "version" in read(run, "generation_config.json")["jaxlm"]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig.from_pretrained(out)
    assert theirs.eos_token_id == [end, 65, 66] and theirs.bad_words_ids == [[5], [6, 7]]


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_rules_that_old_files_have_in_config_json_survive_too(name, directories, tmp_path):
    directory = shutil.copytree(directories(name), tmp_path / "hf")
    rules = {"bad_words_ids": [[5]], "no_repeat_ngram_size": 3, "num_beams": 4, "max_length": 50}
    (directory / "generation_config.json").unlink()
    change_config(directory, rules | {"forced_bos_token_id": 70, "eos_token_id": [0, 66]})
    run, out = there_and_back(directory, tmp_path)
    loaded = [load_model(path).special for path in (directory, run, out)]
    assert loaded[0]._replace(notes=()) == loaded[1]._replace(notes=())
    assert loaded[1] == loaded[2] and loaded[1].rules.no_repeat_ngram_size == 3
    written = read(out, "generation_config.json")
    assert rules.items() <= written.items()
    assert (written["forced_bos_token_id"], written["eos_token_id"][-1]) == (70, 66)


def test_config_json_has_no_say_beside_a_generation_config(directories, tmp_path):
    """As in `transformers`, which reads one of the two."""
    directory = shutil.copytree(directories("gpt2"), tmp_path / "hf")
    change_config(directory, {"no_repeat_ngram_size": 3})
    _, out = there_and_back(directory, tmp_path)
    assert "no_repeat_ngram_size" not in read(out, "generation_config.json")


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_entries_of_the_tokenizer_survive_import_and_export(name, directories, tmp_path):
    directory = shutil.copytree(directories(name), tmp_path / "hf")
    change(directory, "tokenizer_config.json", ABOUT_TOKENS | {"auto_map": {"AutoTokenizer": "x"}})
    run, out = there_and_back(directory, tmp_path)
    written = read(out, "tokenizer_config.json")
    assert ABOUT_TOKENS.items() <= written.items() and "auto_map" not in written
    assert not {"jaxlm"} & written.keys() and read(run, "tokenizer_config.json")["jaxlm"]

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.chat_template == ABOUT_TOKENS["chat_template"]
    assert (theirs.padding_side, theirs.truncation_side) == ("left", "left")


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"chat_template.jinja": "a\nö"}, "a\nö"),
        (
            {"chat_template.jinja": "a", "additional_chat_templates/tools.jinja": "b"},
            {"default": "a", "tools": "b"},
        ),
        ({"additional_chat_templates/tools.jinja": "b"}, {"tools": "b"}),
    ],
)
def test_templates_in_files_of_their_own_count_first(files, expected, directories, tmp_path):
    directory = shutil.copytree(directories("gpt2"), tmp_path / "hf")
    change(directory, "tokenizer_config.json", {"chat_template": "not this one"})
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    _, out = there_and_back(directory, tmp_path)
    transformers = pytest.importorskip("transformers")
    for path in (directory, out):
        assert transformers.AutoTokenizer.from_pretrained(path).chat_template == expected


NAMED = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]


@pytest.mark.parametrize(
    "template, files",
    [
        ("a\r\nö", {"chat_template.jinja": "a\r\nö"}),
        (NAMED, {"chat_template.jinja": "a", "additional_chat_templates/tools.jinja": "b"}),
        ([NAMED[0], {"name": "../x", "template": "b"}], {}),  # no name of a file
        (NAMED[1:], {"additional_chat_templates/tools.jinja": "b"}),
        ({"default": "a"}, {}),
    ],
)
def test_an_export_has_its_templates_in_files(template, files, tmp_path):
    values = {"chat_template": template}
    write_templates(tmp_path, values, None)
    written = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes().decode()
        for path in tmp_path.rglob("*.jinja")
    }
    assert written == files and values == {"chat_template": template}


def test_the_template_of_a_run_takes_the_place_of_the_imported_one(directories, tmp_path):
    directory = shutil.copytree(directories("gpt2"), tmp_path / "hf")
    change(directory, "tokenizer_config.json", {"chat_template": NAMED})
    run, out = tmp_path / "run", tmp_path / "out"
    assert converted("import", directory, run) == 0
    (run / "chat_template.jinja").write_text("mine")
    assert converted("export", run, out) == 0
    assert (out / "chat_template.jinja").read_text() == "mine"
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(out).chat_template
    assert theirs == {"default": "mine", "tools": "b"}


@pytest.mark.parametrize(
    ("name",), quick_and_slow([("plain",)], ((name,) for name in chat.NAMED_TEMPLATES))
)
def test_an_export_renders_what_its_run_renders(name, directories, tmp_path):
    pytest.importorskip("jinja2")
    run, out = tmp_path / "run", tmp_path / "out"
    edit = f"tokenizer.chat_template={name}"
    assert converted("import", directories("gpt2"), run, edit) == 0
    assert read(run, "config.json")["tokenizer"]["chat_template"] == name
    assert converted("export", run, out) == 0

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    talk = random_conversation(3)
    values = [message.for_template() for message in talk]
    expected = theirs.apply_chat_template(
        values, return_dict=True, return_assistant_tokens_mask=True
    )
    for folder in (run, out):
        text, spans = chat.load_template(None, folder).render(talk)
        encoding = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
        assert encoding["input_ids"] == expected["input_ids"]
        assert chat.token_mask(encoding["offset_mapping"], spans) == expected["assistant_masks"]


def test_a_run_has_what_its_base_keeps(tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    base.mkdir()
    run.mkdir()
    (base / "generation_config.json").write_text("1")
    (base / "tokenizer_config.json").write_text("2")
    (run / "tokenizer_config.json").write_text("3")
    kept_files.copy_kept_files(base, run)
    texts = [
        (run / name).read_text() for name in ("generation_config.json", "tokenizer_config.json")
    ]
    assert texts == ["1", "3"]


def test_flags_of_added_tokens_survive_training_and_export(directories, tmp_path):
    """Training makes the end of text a special token that takes no spaces along."""
    directory = shutil.copytree(directories("gpt2"), tmp_path / "hf")
    inner = Tokenizer.from_file(str(directory / "tokenizer.json"))
    end = inner.id_to_token(read(directory, "generation_config.json")["eos_token_id"])
    inner.add_special_tokens([AddedToken(end, rstrip=True, normalized=True)])
    inner.add_tokens([AddedToken("best", single_word=True, lstrip=True)])
    inner.save(str(directory / "tokenizer.json"))
    run, out = there_and_back(directory, tmp_path)
    trained = Tokenizer.from_file(str(run / "tokenizer.json"))
    exported = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert trained.get_added_tokens_decoder() != inner.get_added_tokens_decoder()
    assert exported.get_added_tokens_decoder() == inner.get_added_tokens_decoder()


def test_a_run_that_was_not_imported_keeps_nothing(tmp_path):
    assert kept_files.read_kept(tmp_path / "generation_config.json") is None
    assert kept_files.read_kept_generation(tmp_path) is None


@pytest.mark.parametrize(
    "text, named",
    [
        ('{"jaxlm": {"version": 2}}', "jaxlm.version: 2"),
        ('{"jaxlm": 3}', "jaxlm.version: 3"),
        ("[]", "JSON object"),
        ("{", "not JSON"),
    ],
)
def test_a_file_of_another_version_is_refused(text, named, tmp_path):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        kept_files.read_kept_generation(tmp_path)
    assert "generation_config.json" in str(caught.value)


JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "model.safetensors.index.json",
)


def add_byte_order_marks(paths):
    for path in paths:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def test_byte_order_marks_are_dropped(directories, tmp_path):
    directory = shutil.copytree(directories("gpt2"), tmp_path / "hf")
    interop.save(tmp_path / "shards", *interop.load(directory), max_shard_bytes=20_000)
    (directory / "model.safetensors").unlink()
    for path in (tmp_path / "shards").glob("model*"):
        shutil.copy(path, directory)
    run, out = tmp_path / "run", tmp_path / "out"
    add_byte_order_marks(directory / name for name in JSON_FILES)
    assert converted("import", directory, run) == 0
    add_byte_order_marks(run.glob("*.json"))
    assert converted("export", run, out) == 0
    plain = load_model(directories("gpt2"))
    for path in (directory, run, out):
        loaded = load_model(path)
        assert loaded.special == plain.special
        assert np.array_equal(
            loaded.tokenizer.encode("the best"), plain.tokenizer.encode("the best")
        )
