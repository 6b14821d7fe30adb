"""Both sides of the comparison compute the same: parameters and loss."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from peers import shapes, torch_models, torch_steps
from safetensors.torch import load_file
from support import synthetic, timed_steps
from support.tiny_models import lively_params

from jaxlm import config, interop, losses, models, state
from jaxlm.run import build_run

SHAPES = {name: shape.config for name, shape in shapes.cpu_shapes().items()} | {
    name: shapes.gpu_config(name, edits) for name, edits in shapes.GPU_EDITS.items()
}
TINY = (
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "model.mlp_width=48",
    "model.context_length=16",
    "model.vocabulary_size=300",
    "data.sequence_length=16",
    "training.batch_size=3",
)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of torch wait for each other by spinning, which takes long beside other workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SHAPES)
def test_both_sides_have_the_same_parameters(name):
    model_config = SHAPES[name].model
    expected = models.build(model_config).parameter_count()
    assert torch_models.count_parameters(model_config) == expected


@pytest.mark.parametrize(
    "name",
    [
        "nanogpt",  # no biases, GELU itself
        "gpt2_124m",  # biases, GELU's tanh form
        "llama_1b",
        "bert",
        "t5",
    ],
)
def test_both_sides_have_the_same_loss(name, tmp_path):
    """A tiny model of the kind, with the weights of jaxlm, on a batch of the comparison."""
    edits = [*TINY, "model.kv_heads=1"] if name == "llama_1b" else TINY
    run_config = config.apply_edits(SHAPES[name], edits)
    model, batch = models.build(run_config.model), synthetic.batch(run_config, 0)
    # T5 does not scale its scores: larger weights would show the rounding of float32 beyond 1e-5.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: 0.3 * x if "kernel" in jax.tree_util.keystr(path) else x,
        lively_params(model),
    )
    logits = jax.jit(model.apply)(params, batch)
    sums = losses.loss_sums(logits, batch.targets, batch.weights)

    peer = torch_models.TrainedModel(run_config.model, run_config.model.vocabulary_size).eval()
    if peer.is_gpt:
        torch_models.copy_params(peer.model, jax.tree.map(np.asarray, params))
    else:
        interop.save(tmp_path, run_config.model, params)
        missing, unexpected = peer.model.load_state_dict(
            load_file(tmp_path / "model.safetensors"), strict=False
        )
        # Names of tensors that are tied to others.
        assert not unexpected and all("embed" in key or "decoder" in key for key in missing)

    loss = peer(**torch_models.batch_inputs(batch)).item()
    # Both add up in float32.
    assert loss == pytest.approx(float(sums.loss / sums.count), rel=0, abs=1e-5)


@pytest.mark.slow
def test_both_sides_train_alike():
    """Nine steps of the tiny GPT in float32: optimizer, warmup, decay and clipping agree."""
    edits = [*TINY, "runtime.devices=1", "optimizer.warmup_steps=4", "optimizer.gradient_clip=0.5"]
    run_config = config.apply_edits(SHAPES["nanogpt"], [*edits, "precision.compute=float32"])
    run = build_run(run_config, first_step=0)
    initial = state.create_state(run.model, run.optimizer, run.placement, run_config.seed)
    peer = torch_steps.build_model(run_config, "cpu")
    torch_models.copy_params(peer.model, jax.tree.map(np.asarray, initial.params))

    arm = next(arm for arm in shapes.CPU_ARMS if arm.name == "torch f32")
    theirs = torch_steps.run_steps(peer, run_config, arm, "cpu", warm_up=3, timed=5).losses
    ours = timed_steps.time_steps(run_config, warm_up=3, timed=5).losses
    assert len(ours) == 9 and ours[-1] < ours[0] - 0.02
    # Differences of the last bits grow from step to step, Adam's where gradients are near 0.
    assert theirs == pytest.approx(ours, rel=0, abs=1e-4)
