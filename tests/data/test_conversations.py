"""Conversations and preferences in a store, compared with `transformers`."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tokenizer_files
from support.marks import quick_and_slow

from jaxlm import config, data, objectives
from jaxlm.chat import FIELD_NAMES
from jaxlm.chat.named_templates import NAMED_TEMPLATES
from jaxlm.config import UserError
from jaxlm.config.data import KEY_NAMES
from jaxlm.data.example_array import ExampleArray
from jaxlm.data.schedule import BatchSchedule
from jaxlm.data.stream import open_stream

WORDS = [
    "the",
    "river",
    "of",
    "Stone",
    "été",
    "日本",
    "  two",
    "\n\nlines",
    "e\u0301",
    "🙂‍💻",
    "<s>",
]
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def random_text(seed: random.Random, most: int = 12) -> str:
    return " ".join(seed.choices(WORDS, k=seed.randint(1, most))) + f" {seed.randint(0, 999)}"


def random_conversations(count: int) -> list[list[dict[str, str]]]:
    seed, conversations = random.Random(0), []
    for number in range(count):
        messages = []
        if number % 3 == 0:
            messages.append({"role": "system", "content": random_text(seed)})
        for _ in range(seed.randint(1, 4)):
            messages.append({"role": "user", "content": random_text(seed)})
            messages.append({"role": "assistant", "content": random_text(seed)})
        conversations.append(messages)
    return conversations


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def save_tokenizer(folder: Path, *, with_special: bool) -> Path:
    """Write a byte-level tokenizer.json, perhaps with the special tokens of templates."""
    inner = tokenizer_files.byte_level(("<|endoftext|>", "<pad>"))
    if with_special:
        inner.add_special_tokens(tokenizer_files.specials(*SPECIAL))
    inner.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def run_config(folder: Path, path: Path, kind: str, template: str | None, **fields: Any):
    """Return a config of a source of examples whose tokenizer is in the folder."""
    form = {"instruction": "messages", "preference": "preferences"}[kind]
    source = config.SourceConfig(name="s", path=str(path), format=form, keys=fields.pop("keys", ()))
    return config.Config(
        model=config.ModelConfig(family="decoder", vocabulary_size=500, context_length=2048),
        objective=config.ObjectiveConfig(kind=kind),
        tokenizer=config.TokenizerConfig(
            kind="file", path=str(folder / "tokenizer.json"), chat_template=template
        ),
        data=config.DataConfig(
            sources=(source,),
            store=str(folder / "stores"),
            sequence_length=1024,
            validation=config.ValidationConfig(share=0.2),
            **fields,
        ),
    )


def prepare(run: config.Config) -> data.Store:
    return data.prepare(
        run.data,
        run.tokenizer,
        run.tokenizer_vocabulary_size,
        lambda line: None,
        needs=run.objective.needs,
        workers=1,
        examples=data.example_spec(run),
    )


def read_rows(run: config.Config, store: data.Store) -> set[tuple]:
    """Return the ids of each example of both splits, and which of them are targets."""
    length, vocabulary = run.data.sequence_length, store.tokenizer.vocabulary
    objective, found = objectives.build(run.objective, length, vocabulary, run.model), set()
    for array in (*store.train, *store.validation):
        rows = array.read_samples(np.arange(array.start_count(objective)), objective)
        for row, count in zip(rows, rows[:, 0], strict=True):
            found.add((*row[1 : 1 + count].tolist(), *row[2 + length :][:count].tolist()))
    return found


@pytest.mark.parametrize("with_special", [True, False])
@pytest.mark.parametrize(
    ("template",), quick_and_slow([("chatml",)], [(name,) for name in NAMED_TEMPLATES])
)
def test_ids_and_masks_are_those_of_transformers(tmp_path, template, with_special):
    transformers = pytest.importorskip("transformers")
    path = save_tokenizer(tmp_path, with_special=with_special)
    conversations = random_conversations(60)
    records = [{"messages": messages} for messages in conversations]
    run = run_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", records), "instruction", template)

    other = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    expected = set()
    for messages in conversations:
        encoded = other.apply_chat_template(
            messages,
            chat_template=NAMED_TEMPLATES[template],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        expected.add((*encoded["input_ids"], *encoded["assistant_masks"]))
    assert read_rows(run, prepare(run)) == expected


def test_other_forms_and_keys_give_the_same_examples(tmp_path):
    save_tokenizer(tmp_path, with_special=True)
    texts = [(f"question {number}", f"answer {number}") for number in range(30)]
    forms = {
        "messages": [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in texts
        ],
        "prompt": [{"prompt": q, "response": a} for q, a in texts],
        "alpaca": [{"instruction": q, "input": "", "output": a} for q, a in texts],
        "named": [{"q": q, "a": a} for q, a in texts],
    }
    rows = []
    for name, records in forms.items():
        path = write_jsonl(tmp_path / f"{name}.jsonl", records)
        keys = (("prompt", "q"), ("response", "a")) if name == "named" else ()
        run = run_config(tmp_path, path, "instruction", "chatml", keys=keys)
        rows.append(read_rows(run, prepare(run)))
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert len(rows[0]) == 30


def test_a_table_has_conversations(tmp_path):
    save_tokenizer(tmp_path, with_special=False)
    lines = [f'"question {number}","answer {number}"' for number in range(30)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["prompt,response", *lines]))
    run = run_config(tmp_path, path, "instruction", "plain")
    assert len(read_rows(run, prepare(run))) == 30


def test_a_store_is_named_by_its_template(tmp_path):
    save_tokenizer(tmp_path, with_special=False)
    records = [{"prompt": f"q {number}", "response": "a"} for number in range(30)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    template = tmp_path / "own.jinja"
    names = []
    for source in (None, NAMED_TEMPLATES["plain"], NAMED_TEMPLATES["plain"] + " "):
        if source is not None:
            template.write_text(source)
        spec = "plain" if source is None else str(template)
        names.append(prepare(run_config(tmp_path, path, "instruction", spec)).hash)
    assert names[0] == names[1] != names[2]


def test_an_instruction_needs_a_template(tmp_path):
    save_tokenizer(tmp_path, with_special=False)
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "response": "a"}])
    with pytest.raises(UserError, match="chat template"):
        prepare(run_config(tmp_path, path, "instruction", None))


# Preferences


def read_answers(run: config.Config, store: data.Store) -> set[tuple[str, ...]]:
    """Return prompt, chosen and rejected answer of each example as text."""
    found = set()
    for array in (*store.train, *store.validation):
        assert isinstance(array, ExampleArray)
        for number in range(len(array)):
            found.add(tuple(map(store.tokenizer.show, array.parts.read(number))))
    return found


def test_answers_without_a_template_end_the_text(tmp_path):
    save_tokenizer(tmp_path, with_special=False)
    records = [
        {"prompt": f"q {number}", "chosen": f" a {number}", "rejected": " no"}
        for number in range(30)
    ]
    run = run_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", records), "preference", None)
    end = "<|endoftext|>"
    assert read_answers(run, prepare(run)) == {
        (f"q {number}", f" a {number}{end}", f" no{end}") for number in range(30)
    }


def test_answers_are_the_last_turns_of_a_template(tmp_path):
    save_tokenizer(tmp_path, with_special=True)

    def turns(*contents: str) -> list[dict[str, str]]:
        roles = ("user", "assistant") * 2
        return [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=False)
        ]

    records: list[dict] = []
    for number in range(30):
        prompt, answers = f"q {number}", ("a", "b")
        records.append(
            [
                {"prompt": prompt, "chosen": "a", "rejected": "b"},
                {"prompt": turns(prompt), "chosen": "a", "rejected": turns(prompt, "b")[1:]},
                {
                    f"{key}": turns(prompt, answer)
                    for key, answer in zip(("chosen", "rejected"), answers, strict=True)
                },
                {"chosen": turns("x", "y", prompt, "a"), "rejected": turns("x", "y", prompt, "b")},
            ][number % 4]
        )
    run = run_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", records), "preference", "chatml")
    store = prepare(run)
    expected = set()
    for number in range(30):
        before = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\ny<|im_end|>\n"
        prompt = f"<|im_start|>user\nq {number}<|im_end|>\n<|im_start|>assistant\n"
        prompt = before + prompt if number % 4 == 3 else prompt
        expected.add((prompt, "a<|im_end|>", "b<|im_end|>"))
    assert read_answers(run, store) == expected


# Streams


def test_packed_rows_are_read_by_step_alone(tmp_path):
    save_tokenizer(tmp_path, with_special=True)
    records = [{"messages": messages} for messages in random_conversations(80)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    run = run_config(tmp_path, path, "instruction", "chatml", sequences="packed")
    store, lines = prepare(run), []
    length, vocabulary = run.data.sequence_length, store.tokenizer.vocabulary
    objective = objectives.build(run.objective, length, vocabulary, run.model)

    def build_stream():
        return open_stream(store, run.data, objective, BatchSchedule(4, ()), 0, lines.append)

    stream = build_stream()
    rows = stream.epoch_samples(0)
    assert 0 < rows < len(store.train[0]) / 2
    batches = [stream[step] for step in range(5)]
    again = build_stream()
    for step in (4, 0, 2):
        for ours, theirs in zip(again[step], batches[step], strict=True):
            assert ours is theirs is None or np.array_equal(ours, theirs)
    half = again.rows(1, 1, 3)
    assert np.array_equal(half.segments, batches[1].segments[1:3])
    assert f"source 's': {len(store.train[0])} examples in {rows} rows" in lines[0]

    # An epoch has all tokens that count, once.
    epoch = stream.make_batch(np.arange(rows))
    alone = store.train[0].read_samples(np.arange(len(store.train[0])), objective)
    assert epoch.weights.sum() == objective.make_batch(alone, np.arange(1), 0).weights.sum()


def test_the_config_knows_the_names_of_a_conversation():
    assert {*KEY_NAMES["messages"]} == {*FIELD_NAMES}
