"""The shapes and the arms that are compared. Imports neither jax nor torch."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gpu import step_speed

from jaxlm import config

FLOAT32, BFLOAT16 = "float32", "bfloat16"


class Arm(NamedTuple):
    """One way to run the same training step."""

    name: str
    library: Literal["jaxlm", "torch"]
    precision: str | None  # None: what jaxlm measures (runtime.measure_cpu), devices as well
    devices: int | None = None  # jaxlm on CPUs: emulated devices
    compiled: bool = False  # torch: by torch.compile
    cudnn: bool = False  # torch on GPUs: attention by cuDNN alone


class Shape(NamedTuple):
    """A model with its objective and batch, and the timed steps.

    In some of the first steps on CPUs memory is taken from the system: the median leaves these out.
    """

    config: config.Config
    steps: int


CPU_ARMS = (
    Arm("jaxlm f32, 2 devices", "jaxlm", FLOAT32, devices=2),
    Arm("torch f32", "torch", FLOAT32),
    Arm("torch f32, compiled", "torch", FLOAT32, compiled=True),
    Arm("jaxlm bf16, 2 devices", "jaxlm", BFLOAT16, devices=2),
    Arm("torch bf16", "torch", BFLOAT16),
    Arm("torch bf16, compiled", "torch", BFLOAT16, compiled=True),
    Arm("jaxlm f32, 1 device", "jaxlm", FLOAT32, devices=1),
    Arm("jaxlm bf16, 1 device", "jaxlm", BFLOAT16, devices=1),
    Arm("jaxlm, as measured", "jaxlm", None),
)

# The strongest first: time may run out.
GPU_ARMS = (
    Arm("torch compiled, cudnn", "torch", BFLOAT16, compiled=True, cudnn=True),
    Arm("jaxlm", "jaxlm", BFLOAT16),
    Arm("torch compiled", "torch", BFLOAT16, compiled=True),
    Arm("torch, cudnn", "torch", BFLOAT16, cudnn=True),
    Arm("torch", "torch", BFLOAT16),
)

# One optimizer and one loss on both sides, where a recipe has others.
GPU_EDITS: dict[str, tuple[str, ...]] = {
    "gpt2_124m": (),
    "llama_1b": (),
    "bert_base": (),
    "t5_base": ("optimizer.kind=adamw", "optimizer.learning_rate=1e-4", "training.z_loss=0.0"),
}


def build_config(
    model: config.ModelConfig, rows: int, length: int, objective: dict[str, Any], sentinels: int = 1
) -> config.Config:
    """Return a config of this model; precision and devices are left to jaxlm."""
    return config.Config(
        model=model,
        objective=config.ObjectiveConfig(**objective),
        # It is never read: the batches are random tokens.
        tokenizer=config.TokenizerConfig(kind="file", path="tokenizer.json", sentinels=sentinels),
        data=config.DataConfig(sequence_length=length),
        optimizer=config.OptimizerConfig(learning_rate=1e-3, warmup_steps=100),
        training=config.TrainingConfig(batch_size=rows),
        runtime=config.RuntimeConfig(platform="cpu"),
    )


def cpu_shapes() -> dict[str, Shape]:
    """Return the shapes that are compared on CPUs, by name."""
    # nanoGPT's recipes for characters: the one for CPUs, and the baby GPT with a smaller batch and
    # the vocabulary of bytes, with which a step has 292 GFLOP.
    biases = ("attention_bias", "attention_output_bias", "mlp_bias", "norm_bias")
    nanogpt = config.ModelConfig(
        vocabulary_size=65,
        layers=4,
        width=128,
        heads=4,
        context_length=64,
        activation="gelu",
        **dict.fromkeys(biases, False),
    )
    gpt = replace(nanogpt, vocabulary_size=256, layers=6, width=384, heads=6, context_length=256)

    # BERT and T5 v1.1 with fewer and narrower layers.
    bert = replace(
        load_recipe("bert_base").model,
        layers=6,
        width=384,
        heads=6,
        context_length=128,
        dropout=0.0,
    )
    t5 = replace(
        load_recipe("t5_base").model,
        layers=4,
        width=256,
        heads=4,
        mlp_width=1024,
        context_length=128,
    )

    # With this share of the text in spans a source of 128 tokens has a target of 64.
    spans = {"kind": "span", "noise_share": 0.297}
    return {
        "nanogpt": Shape(build_config(nanogpt, 12, 64, {}), 100),
        "gpt": Shape(build_config(gpt, 16, 256, {}), 16),
        "bert": Shape(build_config(bert, 32, 128, {"kind": "masked"}), 16),
        "t5": Shape(build_config(t5, 16, 128, spans, sentinels=32), 16),
    }


def load_recipe(name: str, edits: tuple[str, ...] = ()) -> config.Config:
    """Return the config of a recipe in configs/."""
    return config.load(ROOT / "configs" / f"{name}.py", edits)


def gpu_config(name: str, edits: tuple[str, ...]) -> config.Config:
    """Return the config of a recipe as tests/gpu/step_speed.py runs it, with the largest batch."""
    shape = step_speed.SHAPES[name]
    batch = f"training.batch_size={shape.batch_sizes[0]}"
    return load_recipe(name, (*step_speed.EDITS, batch, *shape.edits, *edits))


def with_arm(run_config: config.Config, arm: Arm) -> config.Config:
    """Return the config of a CPU shape with the precision and the devices of an arm."""
    if arm.precision is None:
        return replace(run_config, runtime=replace(run_config.runtime, measure_cpu=True))
    precision: Any = arm.precision
    return replace(
        run_config,
        precision=replace(run_config.precision, compute=precision),
        runtime=replace(run_config.runtime, devices=arm.devices),
    )
