"""Rules of generation_config.json against the processors of transformers, and plain loops."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_models import VOCABULARY, build_tiny, random_prompts

from jaxlm import models
from jaxlm.decoding.beam import BeamConfig, BeamSearch
from jaxlm.decoding.constraints import StopTokens, apply_constraints, build_context
from jaxlm.decoding.engine import Engine
from jaxlm.decoding.sampling import SamplingConfig
from jaxlm.interop.generation_config import TokenRules

RANDOM = np.random.default_rng(3)
V, END = 12, 1
PROMPTS = [np.array(ids, np.int32) for ids in ([3], [3, 4, 3], [5, 6, 5, 6, 5, 6, 7, 5])]
NEW = np.array([[3, 4, 3, 0], [4, 3, 4, 0], [6, 5, 6, 0]], np.int32)
RULES = {
    "a token": ({"bad_words_ids": [[3], [9]]}, TokenRules(((3,), (9,)))),
    "the end": ({"bad_words_ids": [[END]]}, TokenRules(((END,),))),
    "sequences": (
        {"bad_words_ids": [[4, 3], [3, 4], [5, 6, 7], [6, 5, 6, 5, 6, 8], [8, 8]]},
        TokenRules(((4, 3), (3, 4), (5, 6, 7), (6, 5, 6, 5, 6, 8), (8, 8))),
    ),
    "suppressed": (
        {"suppress_tokens": [2, 5], "begin_suppress_tokens": [6, 7]},
        TokenRules((), (2, 5), (6, 7)),
    ),
    **{
        f"{size}-grams": ({"no_repeat_ngram_size": size}, TokenRules(no_repeat_ngram_size=size))
        for size in (1, 2, 3, 9, 40)
    },
}


@pytest.mark.parametrize("forced", [None, 7])
@pytest.mark.parametrize(("options", "rules"), RULES.values(), ids=RULES)
def test_scores_are_those_of_the_processors_of_transformers(options, rules, forced):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    stop = StopTokens((END,), forced_first_id=forced, rules=rules)
    context = build_context(stop, PROMPTS, 16)
    scores = RANDOM.normal(size=(3, V)).astype(np.float32)
    options = transformers.GenerationConfig(**options, forced_bos_token_id=forced)
    options._eos_token_tensor = torch.tensor([END])
    model = transformers.GenerationMixin()
    model.config = transformers.GPT2Config()

    for count in range(4):
        ours = apply_constraints(
            stop,
            SamplingConfig(),
            jnp.asarray(scores),
            None,
            context=context,
            tokens_BN=jnp.asarray(NEW),
            count=jnp.int32(count),
            limits_B=jnp.full(3, 4),
        )
        for row, prompt in enumerate(PROMPTS):
            # Row by row: padding before a prompt would be read as tokens there.
            processors = model._get_logits_processor(options, input_ids_seq_length=len(prompt))
            ids = torch.tensor([[*prompt, *NEW[row, :count]]])
            theirs = processors(ids, torch.from_numpy(scores[row : row + 1]))
            np.testing.assert_array_equal(ours[row], theirs[0].numpy())


# --- in texts ---


@pytest.fixture(scope="module")
def tiny():
    model, params = build_tiny("learned")
    return model, models.unstacked(params), random_prompts([3, 20, 9])


def written(tiny, way, rules, prompts=None):
    model, params, all_prompts = tiny
    prompts = all_prompts if prompts is None else prompts
    engine = Engine(model, params, StopTokens((), rules=rules))
    limits = [24] * len(prompts)
    if way == "beams":
        return BeamSearch(engine, BeamConfig(3)).generate(prompts, limits)
    sampling = SamplingConfig(temperature=1.5 if way == "sampled" else 0.0)
    return engine.generate(prompts, limits, sampling)


@pytest.mark.parametrize("way", ["greedy", "sampled", "beams"])
def test_rules_hold_in_every_way_of_writing(tiny, way):
    free = written(tiny, way, TokenRules())
    words = free[1].tolist()
    forbidden = tuple(sorted({*words[:2], 60}))
    rules = TokenRules(
        ((words[2],), (words[3], words[4])), forbidden, (words[5],), no_repeat_ngram_size=2
    )
    rows = written(tiny, way, rules)
    for prompt, row in zip(tiny[2], rows, strict=True):
        text = [*prompt.tolist(), *row.tolist()]
        assert len(row) == 24 and not {*forbidden, words[2]} & {*row.tolist()}
        assert row[0] != words[5]
        pairs = list(pairwise(text))
        new = pairs[len(prompt) - 1 :]
        assert (words[3], words[4]) not in new
        assert len({*new}) == len(new) and not {*new} & {*pairs[: len(prompt) - 1]}
    # A row does not depend on the rows beside it.
    if way != "sampled":
        (alone,) = written(tiny, way, rules, tiny[2][1:2])
        assert alone.tolist() == rows[1].tolist()


def test_ids_outside_of_the_vocabulary_are_left_out(tiny):
    rules = TokenRules(((VOCABULARY + 5,), (1, VOCABULARY)), (10**8,), (VOCABULARY,))
    free, found = written(tiny, "greedy", TokenRules()), written(tiny, "greedy", rules)
    assert [row.tolist() for row in found] == [row.tolist() for row in free]
