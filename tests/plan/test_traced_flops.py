"""FLOPs per token of every recipe, against every product of its traced training step."""

from dataclasses import replace

import jax
import pytest
from support import random_state, synthetic, tiny
from test_structure import ROOT

from jaxlm import config, flops
from jaxlm.config import Config
from jaxlm.plan.traced_flops import traced_training_flops

# Recipes whose model, objective and optimizer are those of another but for their sizes.
SIMILAR = ("bloom_560m", "llama_1b", "quickstart_encoder_decoder", "roberta_base")
RECIPES = [
    pytest.param(path.stem, marks=pytest.mark.slow if path.stem in SIMILAR else ())
    for path in sorted((ROOT / "configs").glob("*.py"))
]


def trace(recipe: Config) -> tuple[int, tuple[int, int, int]]:
    """Return the FLOPs of a step's products for a sample, and the sizes of the sample.

    Each microbatch has one row: more have the same products. A scan over the layers counts them as
    often as they run, and is traced sooner than all of them.
    """
    rows = recipe.training.microbatches
    training = replace(recipe.training, batch_size=rows, batch_schedule=())
    recipe = replace(recipe, training=training)
    parts = tiny.parts(1, recipe, remat="none", blocks="scanned")
    step = jax.make_jaxpr(parts.step())
    jaxpr = step(random_state.abstract_state_of(parts), synthetic.batch(recipe, 0)).jaxpr

    objective = synthetic.objective(recipe)
    sizes = objective.length, objective.source_length, objective.predictions
    counted = tiny.product_flops(jaxpr)
    assert counted % rows == 0
    return counted // rows, sizes


@pytest.mark.parametrize("name", RECIPES)
def test_flops_of_every_recipe_are_those_of_its_traced_step(name):
    """To the last one. Models with a causal mask compute about a twentieth less than all pairs."""
    recipe = config.load(str(ROOT / "configs" / f"{name}.py"), [])
    recipe = replace(recipe, adapter=config.AdapterConfig())  # frozen weights have fewer products
    counted, sizes = trace(recipe)
    assert counted == traced_training_flops(recipe.model, *sizes)

    convention = flops.training_flops(recipe.model, *sizes)
    assert 0.94 < counted / convention < 1.02
