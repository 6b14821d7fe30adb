import pytest
from support.stores import BYTES, build_store, data_config, write_corpus

from jaxlm.config import UserError
from jaxlm.data.trained_tokenizers import train_bpe
from jaxlm.data.vocabulary import SpecialTokens

OTHER_TOKENIZER = train_bpe(["abab"], 300, SpecialTokens(BYTES.end_of_text)).inner.to_str()


@pytest.fixture
def data(tmp_path):
    return data_config(tmp_path, write_corpus(tmp_path / "c"))


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_shard_is_named(data, damage):
    shard = build_store(data)[0].path / "train-0-00000.bin"
    shard.unlink() if damage == "missing" else shard.write_bytes(shard.read_bytes()[:-2])
    message = (
        r"train-0-00000\.bin: (No such file|has [\d,]+ bytes instead of).*; "
        r"delete the folder .* built again$"
    )
    with pytest.raises(UserError, match=message):
        build_store(data)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "{"),
        ("manifest.json", '{"inputs": {"tokenizer": {"end_of_text": "<|endoftext|>"}}}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", OTHER_TOKENIZER),
    ],
)
def test_damaged_description_is_named(data, name, content):
    (build_store(data)[0].path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name}: .*delete the folder"):
        build_store(data)
