from dataclasses import replace

import pytest
from support.stores import BYTES, all_texts, build_store, data_config, write_corpus

from jaxlm.config import CurationConfig, SourceConfig, TokenizerConfig
from jaxlm.data import identify_store, identity
from jaxlm.data.rules.document_rules import VERSIONS
from jaxlm.data.vocabulary import SpecialTokens


@pytest.fixture
def data(tmp_path):
    return data_config(tmp_path, write_corpus(tmp_path / "c"))


def name_of(data, tokenizer=BYTES, needs=()):
    return identify_store(data, tokenizer, 300, needs).folder.name


def test_store_is_reused_where_nothing_that_decides_tokens_changes(data):
    first, _ = build_store(data)
    written = (first.path / "manifest.json").stat().st_mtime_ns
    sources = tuple(replace(source, weight=3.0, name="renamed") for source in data.sources)
    for same in (data, replace(data, sequence_length=7, prefetch_batches=9, sources=sources)):
        assert build_store(same)[0].hash == first.hash
    assert (first.path / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "tokenizer",
    [
        TokenizerConfig(kind="bytes", end_of_text="<eos>"),
        TokenizerConfig(kind="bpe"),
        TokenizerConfig(kind="bpe", training_megabytes=0.5),
    ],
)
def test_another_tokenizer_is_another_store(data, tokenizer):
    others = (BYTES, TokenizerConfig(kind="bpe", training_megabytes=7.0))
    assert name_of(data, tokenizer) not in {name_of(data, other) for other in others}


def test_stores_of_trained_tokenizers_are_told_apart(data):
    configs = [
        TokenizerConfig(kind="bpe", longest_piece=None),
        TokenizerConfig(kind="bpe"),
        TokenizerConfig(kind="bpe", longest_piece=99),
        TokenizerConfig(kind="bpe", pre_tokenization="gpt4"),
        TokenizerConfig(kind="wordpiece"),
        TokenizerConfig(kind="wordpiece", pre_tokenization="whitespace"),
        TokenizerConfig(kind="unigram"),
    ]
    assert len({name_of(data, each) for each in configs}) == len(configs)
    # The default by its name is the default.
    assert name_of(data, TokenizerConfig(pre_tokenization="gpt2")) == name_of(data, configs[1])


def test_the_size_of_a_trained_tokenizer_decides_the_store(data):
    bpe = TokenizerConfig(kind="bpe")
    assert identify_store(data, bpe, 300, ()).folder != identify_store(data, bpe, 301, ()).folder


def test_another_share_or_key_is_another_store(data, tmp_path):
    texts = tmp_path / "c"
    read_otherwise = (
        {"text_keys": ("text", "title")},
        {"text_keys": ("text", "title"), "text_join": " "},
        {"documents": 9},
    )
    names = {
        name_of(data),
        name_of(replace(data, on_error="skip")),
        *(name_of(replace(data, sources=(replace(data.sources[0], **e),))) for e in read_otherwise),
        name_of(data_config(tmp_path, texts, share=0.3)),
        name_of(data_config(tmp_path, texts, method="tail", share=0.2)),
        name_of(replace(data, sources=(replace(data.sources[0], text_key="body"),))),
        name_of(replace(data, sources=(replace(data.sources[0], format="text"),))),
    }
    assert len(names) == 9


def test_contents_of_files_decide_the_store_and_their_folder_does_not(data, tmp_path):
    first, _ = build_store(data)
    (tmp_path / "c" / "007.txt").write_text("another text")
    changed, _ = build_store(data)
    assert changed.hash != first.hash and "another text" in all_texts(changed)

    moved = (tmp_path / "c").rename(tmp_path / "moved")
    assert name_of(data_config(tmp_path, moved)) == changed.hash


def test_special_tokens_that_the_objective_needs_decide_the_store(data):
    tokenizer = TokenizerConfig(kind="bytes", begin_of_text="<s>", sentinels=2)
    needs = ("pad", "sentinels")
    names = {
        name_of(data, tokenizer, needs),
        name_of(data, tokenizer, ("pad",)),
        name_of(data, replace(tokenizer, sentinels=3), needs),
        name_of(data, replace(tokenizer, pad="[PAD]"), needs),
        name_of(data, tokenizer),
    }
    assert len(names) == 5
    unused = replace(tokenizer, mask="[MASK]")
    assert name_of(data, unused, needs) == name_of(data, tokenizer, needs)


def test_names_of_stores_are_fixed_for_ever(data):
    """A run must find its store again. Old manifests say no more about the tokenizer than this."""
    store, _ = build_store(data)
    assert store.hash == "5aa945c6efd345af"
    spec = {"kind": "bytes", "end_of_text": "<|endoftext|>"}
    assert store.manifest["inputs"]["tokenizer"] == spec
    assert store.manifest["inputs"]["sources"][0].keys() == {"fingerprint", "format", "text_key"}
    assert store.tokenizer.special == SpecialTokens("<|endoftext|>")


def test_names_of_all_kinds_of_stores_are_fixed_for_ever(data, tmp_path):
    pairs = tmp_path / "p.jsonl"
    pairs.write_text('{"source": "a", "target": "b"}\n')
    of_pairs = (SourceConfig(name="p", path=str(pairs), format="pairs"),)
    framed = TokenizerConfig(kind="bytes", begin_of_text="<s>", sentinels=2)
    names = [
        name_of(data, TokenizerConfig(kind="bpe", training_megabytes=7.0, longest_piece=None)),
        name_of(data, framed, ("pad", "mask", "sentinels")),
        name_of(data_config(tmp_path, tmp_path / "c", method="source", path=str(pairs))),
        name_of(replace(data, sources=of_pairs), BYTES, ("pad",)),
    ]
    assert names == [
        "aecbcf700e2a4437",
        "0842bb5f6bae5f12",
        "8861e55ef05f564c",
        "e8269361da7575e5",
    ]


USED = {
    "normalization": {"normalization": "NFC"},
    "c4": {"rules": ("c4",)},
    "gopher_quality": {"rules": ("gopher_quality",)},
    "gopher_repetition": {"rules": ("gopher_repetition",)},
    "remove_addresses": {"remove_addresses": True},
    "exact_duplicates": {"exact_duplicates": True},
    "near_duplicates": {"near_duplicates": 0.6},
}
NAMES = {
    "normalization": "ae8ef905121b410e",
    "c4": "08110e2a4766b9d4",
    "gopher_quality": "261c3fcb912fceb1",
    "gopher_repetition": "5ff62a2eea7d067f",
    "remove_addresses": "3fb2394b1c721bd4",
    "exact_duplicates": "e1292664e7112af5",
    "near_duplicates": "254716d623d1e4c0",
}


def curated(data, **fields):
    return replace(data, curation=CurationConfig(**fields))


def test_names_of_stores_with_rules_are_fixed_for_ever(data):
    """While all versions are 1, the names are those from before there were versions."""
    names = {rule: name_of(curated(data, **fields)) for rule, fields in USED.items()}
    assert names == NAMES


@pytest.mark.parametrize("rule", USED)
def test_another_version_of_a_rule_is_another_store_where_the_rule_is_used(data, rule, monkeypatch):
    versions = identity.DUPLICATES_VERSIONS if rule.endswith("duplicates") else VERSIONS
    monkeypatch.setitem(versions, rule, 2)
    names = {other: name_of(curated(data, **USED[other])) for other in NAMES}
    changed = {other for other, name in names.items() if name != NAMES[other]}
    # Who looks for near duplicates finds exact ones as well.
    assert changed == {rule} | ({"near_duplicates"} if rule == "exact_duplicates" else set())
    assert name_of(data) == "5aa945c6efd345af"


def test_a_rule_with_a_file_of_its_own_has_a_version_as_well(data, tmp_path, monkeypatch):
    (tmp_path / "e.txt").write_text("a text of the evaluation")
    used = curated(data, evaluation_text=str(tmp_path / "e.txt"))
    before = name_of(used)
    monkeypatch.setitem(VERSIONS, "evaluation_text", 2)
    assert name_of(used) != before


def test_validation_files_that_are_read_as_before_keep_the_name_of_their_store(data, tmp_path):
    """Earlier versions went by the names of the validation files alone."""
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    names = []
    for validation in ("v.jsonl", "v.json"):
        (tmp_path / validation).write_text('{"text": "b"}\n')
        config = data_config(
            tmp_path, tmp_path / "t.jsonl", method="source", path=str(tmp_path / validation)
        )
        sources = (replace(config.sources[0], format="jsonl"),)
        inputs = identify_store(replace(config, sources=sources), BYTES, 300, ()).inputs
        names.append(inputs["sources"][-1]["format"])
    assert names == ["auto", "jsonl"]
