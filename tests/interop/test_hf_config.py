"""config.json: each value is checked where it is used."""

from pathlib import Path

import pytest

from jaxlm.config import UserError
from jaxlm.interop.hf_config import MAX_CONFIG_BYTES, HFConfig, read_hf_config

CONFIGS = {
    "missing": (None, "there is no such file"),
    "not JSON": (b"{'a': 1}", "is not JSON"),
    "not UTF-8": (b"\xff\xfe", "is not UTF-8"),
    "a list": (b"[1]", "must be a JSON object"),
    "twice": (b'{"a": 1, "a": 1}', '"a" appears twice'),
    "large": (b"[" + b" " * MAX_CONFIG_BYTES + b"]", "is larger than 10 MiB"),
    "code": (
        b'{"auto_map": {"AutoModel": "modeling.Model"}}',
        "auto_map: names code that comes with the checkpoint",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_refused(tmp_path, case):
    content, expected = CONFIGS[case]
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=expected) as refused:
        read_hf_config(tmp_path)
    assert str(refused.value).startswith(str(tmp_path / "config.json")) and "\n" not in str(
        refused.value
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nowhere", "there is no such directory"), ("file", "is not a directory")],
)
def test_no_directory(tmp_path, name, expected):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=expected):
        read_hf_config(tmp_path / name)


def values(**keys):
    return HFConfig(Path("config.json"), keys)


def test_values_of_a_config():
    at = values(
        one=1, yes=True, text="gelu", nothing=None, share=0.5, names=["a", "b"], inner={"theta": 1}
    )
    assert (
        "one" in at and "two" not in at and at.get("two", 2) == 2 and at.get("nothing", 2) is None
    )
    at.require({"one": (0, 1), "yes": True, "nothing": False, "absent": 3})
    assert (
        at.choice("text", {"gelu": "g", "relu": "r"}, "relu") == "g"
        and at.choice("absent", {"gelu": "g"}, "gelu") == "g"
    )
    assert (
        at.scalar("one", 5) == 1
        and at.scalar("absent", 5) == 5
        and at.scalar("share", 1, float) == 0.5
    )
    assert (
        at.scalar("yes", False, bool) is True
        and at.scalar("nothing", None) is None
        and at.scalar("nothing", 3, allow_null=True) is None
    )
    assert (
        isinstance(at.scalar("one", 1.0, float), float)
        and at.strings("names") == ("a", "b")
        and at.strings("nothing") is None
    )
    inner = at.nested("inner")
    assert inner is not None and inner.scalar("theta", 0) == 1 and at.nested("absent") is None


REFUSED = {
    "fixed": (
        lambda at: at.require({"one": (2, 3)}),
        "config.json: one: 1 is not supported, only 2 or 3",
    ),
    "a bool is no number": (
        lambda at: at.require({"one": True}),
        "config.json: one: 1 is not supported, only true",
    ),
    "choice": (
        lambda at: at.choice("text", {"gelu": "g", "relu": "r"}, "relu"),
        'text: "tanh" is not supported; known: gelu, relu',
    ),
    "choice of a list": (
        lambda at: at.choice("names", {"gelu": "g"}, "gelu"),
        "names: [1] is not supported",
    ),
    "whole": (
        lambda at: at.scalar("share", 1),
        "config.json: share: must be a whole number, got 0.5",
    ),
    "bool for a number": (lambda at: at.scalar("yes", 1), "yes: must be a whole number, got true"),
    "number for a bool": (
        lambda at: at.scalar("one", False, bool),
        "one: must be true or false, got 1",
    ),
    "text": (lambda at: at.scalar("text", 1.0, float), 'text: must be a number, got "tanh"'),
    "infinite": (
        lambda at: at.scalar("infinite", 1.0, float),
        "infinite: must be a number, got Infinity",
    ),
    "beyond a float": (
        lambda at: at.scalar("large", 1.0, float),
        "large: must be a number, got 1000",
    ),
    "no size": (lambda at: at.scalar("large", 1), "large: 1000"),
    "null": (lambda at: at.scalar("nothing", 3), "nothing: must be a whole number, got null"),
    "words": (lambda at: at.strings("names"), "names: must be a list of strings, got [1]"),
    "section": (lambda at: at.nested("one"), "one: must be an object, got 1"),
    "in a section": (
        lambda at: at.nested("inner").scalar("theta", 1),
        'config.json: inner.theta: must be a whole number, got "x"',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_are_refused(case):
    ask, expected = REFUSED[case]
    keys = dict(
        one=1,
        yes=True,
        text="tanh",
        nothing=None,
        share=0.5,
        names=[1],
        inner={"theta": "x"},
        infinite=float("inf"),
        large=10**400,
    )
    with pytest.raises(UserError) as refused:
        ask(values(**keys))
    assert expected in str(refused.value) and len(str(refused.value)) < 200


@pytest.mark.parametrize("key", ["n_layer", "num_hidden_layers", "encoder_layers"])
def test_layers_are_bounded_before_they_are_described(key):
    for layers in (10_000, 2**27):
        with pytest.raises(UserError, match=f"{key}: {layers} is too large"):
            HFConfig(Path("config.json"), {key: layers}).scalar(key, 1)
    assert HFConfig(Path("config.json"), {key: 9_999}).scalar(key, 1) == 9_999
