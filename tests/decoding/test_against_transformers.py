"""Token for token what generate() of transformers writes, greedy and by beam search."""

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)

from jaxlm import interop, models
from jaxlm.decoding.beam import BeamConfig, BeamSearch
from jaxlm.decoding.engine import Engine, StopTokens
from jaxlm.decoding.sampling import SamplingConfig

VOCABULARY, PAD, END = 97, 0, 1
LENGTHS = [12, 3, 1, 30, 7, 7, 19, 2]
PEERS = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 128, "tie_word_embeddings": False},
    ),
    "llama": (
        "LlamaForCausalLM",
        {
            "num_hidden_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "num_layers": 2,
            "d_model": 32,
            "num_heads": 4,
            "d_kv": 8,
            "d_ff": 48,
            "decoder_start_token_id": PAD,
        },
    ),
    "bart": (
        "BartForConditionalGeneration",
        {
            "encoder_layers": 1,
            "decoder_layers": 2,
            "d_model": 32,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
        }
        | {
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 128,
            "decoder_start_token_id": END,
        }
        | {"forced_eos_token_id": None, "forced_bos_token_id": None},
    ),
}


class Peer:
    """A model of theirs with lively weights, and ours with the same."""

    def __init__(self, name, folder):
        kind, fields = PEERS[name]
        cls = getattr(transformers, kind)
        plain = {
            "vocab_size": VOCABULARY,
            "pad_token_id": PAD,
            "bos_token_id": 2,
            "eos_token_id": END,
        }
        self.theirs = cls(cls.config_class(**(plain | fields))).eval()
        self.theirs.generation_config = transformers.GenerationConfig(
            pad_token_id=PAD,
            eos_token_id=END,
            decoder_start_token_id=fields.get("decoder_start_token_id"),
        )
        generator = torch.Generator().manual_seed(SEEDS[name])
        for key, tensor in self.theirs.state_dict().items():
            if tensor.ndim > 1 and "logits_bias" not in key:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * SCALES[name])
        self.theirs.save_pretrained(folder)
        model, params = interop.load(folder)
        self.engine = Engine(models.build(model), models.unstacked(params), StopTokens((END,), PAD))
        self.starts = (
            [np.array([fields["decoder_start_token_id"]], np.int32)] * 8
            if "decoder_start_token_id" in fields
            else None
        )

    def ours(self, prompts, limit, sampling=SamplingConfig()):  # noqa: B008 (immutable)
        if self.starts is None:
            return listed(self.engine.generate(prompts, [limit] * len(prompts), sampling))
        return listed(
            self.engine.generate(
                self.starts[: len(prompts)], [limit] * len(prompts), sampling, sources=prompts
            )
        )

    def our_beams(self, prompts, limit, search):
        beams = BeamSearch(self.engine, search)
        limits = [limit] * len(prompts)
        return listed(
            beams.generate(prompts, limits)
            if self.starts is None
            else beams.generate(self.starts[: len(prompts)], limits, prompts)
        )

    def expected(self, prompts, limit, **options):
        """Generate with transformers; prompts that it continues are padded on the left."""
        width = max(map(len, prompts))
        padding = [
            (width - len(ids), 0) if self.starts is None else (0, width - len(ids))
            for ids in prompts
        ]
        tokens = torch.tensor(
            np.stack([np.pad(ids, pad) for ids, pad in zip(prompts, padding, strict=True)])
        ).long()
        mask = torch.tensor(
            np.stack(
                [np.pad(np.ones(len(ids)), pad) for ids, pad in zip(prompts, padding, strict=True)]
            )
        ).long()
        with torch.no_grad():
            out = self.theirs.generate(
                tokens, attention_mask=mask, max_new_tokens=limit, do_sample=False, **options
            )
        return [until_end(row) for row in out[:, width if self.starts is None else 1 :].tolist()]


# With these weights texts are no loops of a token, and some end before the limit.
SCALES = {"gpt2": 0.6, "llama": 0.6, "t5": 1.0, "bart": 1.0}
SEEDS = {"gpt2": 3, "llama": 3, "t5": 3, "bart": 1}


def listed(rows):
    return [row.tolist() for row in rows]


def until_end(row):
    return row[: row.index(END) + 1] if END in row else row


def prompts():
    rng = np.random.default_rng(5)
    return [rng.integers(3, VOCABULARY, length).astype(np.int32) for length in LENGTHS]


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    return cache(lambda name: Peer(name, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", PEERS)
def test_greedy(peer, name):
    found = peer(name).ours(prompts(), 64)
    assert found == peer(name).expected(prompts(), 64)
    assert max(len(set(row)) for row in found) > 10  # no loops of a token


@pytest.mark.parametrize("name", PEERS)
def test_penalised_repetitions(peer, name):
    found = peer(name).ours(prompts(), 40, SamplingConfig(repetition_penalty=1.3))
    assert found == peer(name).expected(prompts(), 40, repetition_penalty=1.3)
    assert found != [row[:40] for row in peer(name).ours(prompts(), 64)]


@pytest.mark.parametrize("name", PEERS)
def test_four_beams(peer, name):
    found = peer(name).our_beams(prompts(), 40, BeamConfig(4))
    assert found == peer(name).expected(prompts(), 40, num_beams=4)
    assert found != [row[:40] for row in peer(name).ours(prompts(), 64)]


SEARCHES = {
    "1 beam": BeamConfig(1),
    "5 beams, longer ones": BeamConfig(5, length_penalty=2.0),
    "shorter ones": BeamConfig(3, length_penalty=-1.0),
    "any length": BeamConfig(3, length_penalty=0.0),
    "early": BeamConfig(4, early_stopping=True),
    "never early": BeamConfig(4, 1.5, early_stopping="never"),
    "repetitions": BeamConfig(3, repetition_penalty=1.5),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_beams(peer, search):
    options = {
        "num_beams": search.beams,
        "length_penalty": search.length_penalty,
        "early_stopping": search.early_stopping,
    }
    expected = peer("llama").expected(
        prompts()[:4], 24, **options, repetition_penalty=search.repetition_penalty
    )
    assert peer("llama").our_beams(prompts()[:4], 24, search) == expected


def test_several_ends_and_a_least_length(peer):
    llama = peer("llama")
    ends = (END, 20, 33, 47, 51)
    engine = Engine(
        llama.engine.model, llama.engine.params, StopTokens(ends, PAD, min_new_tokens=5)
    )
    options = {"eos_token_id": list(ends), "min_new_tokens": 5}
    cut = [
        [at for at, token in enumerate(row) if token in ends]
        for row in llama.expected(prompts(), 40, **options)
    ]
    for beams in (1, 4):
        expected = llama.expected(prompts(), 40, num_beams=beams, **options)
        expected = [
            row[: next((at for at, token in enumerate(row) if token in ends), 40) + 1]
            for row in expected
        ]
        found = (
            BeamSearch(engine, BeamConfig(beams)).generate(prompts(), [40] * 8)
            if beams > 1
            else engine.generate(prompts(), [40] * 8)
        )
        assert listed(found) == expected
    assert any(places and 5 <= places[0] < 39 for places in cut)


def test_forced_first_and_last_tokens(peer):
    bart = peer("bart")
    engine = Engine(
        bart.engine.model,
        bart.engine.params,
        StopTokens((END,), PAD, forced_first_id=2, forced_last_id=END),
    )
    options = {"forced_bos_token_id": 2, "forced_eos_token_id": END}
    for beams in (1, 3):
        expected = bart.expected(prompts(), 12, num_beams=beams, **options)
        limits = [12] * 8
        one = (
            BeamSearch(engine, BeamConfig(beams)).generate(bart.starts, limits, prompts())
            if beams > 1
            else None
        )
        assert listed(one or engine.generate(bart.starts, limits, sources=prompts())) == expected
        assert all(row[0] == 2 and row[-1] == END for row in expected)


def test_a_row_of_beams_does_not_depend_on_its_batch(peer):
    together = peer("gpt2").our_beams(prompts()[:3], 20, BeamConfig(3))
    assert together[1:2] == peer("gpt2").our_beams(prompts()[1:2], 20, BeamConfig(3))
