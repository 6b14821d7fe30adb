"""Tokens per second of generation beside those of transformers, in the shape of GPT-2 124M.

Run it on a quiet machine: pytest -m campaign -s.

Each side has a process of its own, since both keep threads that wait busily, and they take turns.
"""

import json
import statistics
import subprocess
import sys

import pytest

pytestmark = pytest.mark.campaign

COMMON = """
import json, sys, time
import numpy as np

rows, prompt, new = int(sys.argv[1]), 32, 64
prompts = [
    np.random.default_rng(row).integers(0, 50257, prompt).astype(np.int32) for row in range(rows)
]

def measured(generate):
    generate()
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        generate()
        rates.append(rows * new / (time.perf_counter() - started))
    print(json.dumps(rates))
"""
OURS = """
import jax
from jaxlm import config, models
from jaxlm.decoding.engine import Engine, StopTokens

model = models.build(config.ModelConfig(vocabulary_size=50257, layers=12, width=768, heads=12))
params = jax.jit(lambda key: models.unstacked(model.init(key)))(jax.random.key(0))
engine = Engine(model, params, StopTokens(()))
measured(lambda: engine.generate(prompts, [new] * rows))
"""
THEIRS = """
import torch, transformers

peer = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
ids = torch.from_numpy(np.stack(prompts)).long()
exactly = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
exactly |= {"eos_token_id": None}
with torch.inference_mode():
    measured(lambda: peer.generate(ids, attention_mask=torch.ones_like(ids), **exactly))
"""


def rates(program: str, rows: int) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", COMMON + program, str(rows)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("rows", [1, 8])
def test_at_least_as_fast_as_transformers(rows, capfd):
    """64 tokens after prompts of 32, greedy, float32."""
    pytest.importorskip("transformers")
    found = {"jaxlm": [], "transformers": []}
    for _ in range(2):
        found["transformers"] += rates(THEIRS, rows)
        found["jaxlm"] += rates(OURS, rows)
    medians = {name: statistics.median(values) for name, values in found.items()}
    with capfd.disabled():
        shown = ", ".join(f"{name} {value:.0f} tokens/s" for name, value in medians.items())
        print(f"\nbatch {rows}: {shown}, ratio {medians['jaxlm'] / medians['transformers']:.2f}")
    assert medians["jaxlm"] >= medians["transformers"]
