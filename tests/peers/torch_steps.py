"""Time the training step of a config in PyTorch: a plain loop over the same batches."""

import contextlib
import gc
import itertools
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from peers import torch_models
from peers.shapes import BFLOAT16, Arm
from support import synthetic
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from jaxlm.config import Config, OptimizerConfig

HOST_BATCHES = 4  # different ones, used in turn, as on jaxlm's side

OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
NO_KERNEL = ("No available kernel", "No viable backend")  # of scaled_dot_product_attention

# In this order, where cuDNN alone lacks a case of a model's.
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

# By family. BERT's scores of all positions, which transformers computes, leave no room on 80 GB for
# jaxlm's batch of 256: it isn't tried, since its compilation alone takes a minute.
LARGEST_BATCHES = {"encoder": 128}


class TimedSteps(NamedTuple):
    """A training step that was run."""

    batch_size: int
    attention: str
    parameters: int  # with the rows that pad the vocabulary
    seconds: list[float]  # of each timed step
    losses: list[float]  # of every step, from the first
    first_step_seconds: float  # with the time of compilation
    peak_memory_bytes: int | None


def time_steps(
    run_config: Config, arm: Arm, device: str, *, warm_up: int, timed: int
) -> TimedSteps:
    """Run the step with the config's batch size, or the largest half of it that fits.

    Attention by cuDNN falls back to other kernels where cuDNN lacks a case; the result says so.
    """
    # The default of float32 products on Hopper is float32 itself. CPUs have no TF32.
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    backends = [[SDPBackend.CUDNN_ATTENTION], CUDNN_FIRST] if arm.cudnn else [[]]
    rows = run_config.training.batch_size
    if device == "cuda":
        rows = min(rows, LARGEST_BATCHES.get(run_config.model.family, rows))
    while True:
        part = replace(run_config, training=replace(run_config.training, batch_size=rows))
        try:
            model = build_model(part, device)
            return run_steps(model, part, arm, device, backends[0], warm_up=warm_up, timed=timed)
        except RuntimeError as error:
            if says(error, OUT_OF_MEMORY) and rows > 1:
                rows //= 2
            elif says(error, NO_KERNEL) and len(backends) > 1:
                backends.pop(0)
            else:
                raise
        # Outside of the handler, which would keep the tensors of the failed step alive.
        model = None
        gc.collect()
        if arm.compiled:
            torch._dynamo.reset()
        if device == "cuda":
            torch.cuda.empty_cache()


def says(error: RuntimeError, texts: Sequence[str]) -> bool:
    """Return whether the message of an error has one of these texts."""
    return any(text in str(error) for text in texts)


def build_model(run_config: Config, device: str) -> torch_models.TrainedModel:
    """Return the model of a config on a device, with random weights."""
    torch.manual_seed(run_config.seed)
    vocabulary_size = run_config.model.vocabulary_size
    if device == "cuda":
        vocabulary_size = torch_models.padded_size(vocabulary_size)
    return torch_models.TrainedModel(run_config.model, vocabulary_size).to(device).train()


def run_steps(
    model: torch_models.TrainedModel,
    run_config: Config,
    arm: Arm,
    device: str,
    backends: Sequence[SDPBackend] = (),
    *,
    warm_up: int,
    timed: int,
) -> TimedSteps:
    """Train the model for some steps and return their times."""
    loss_of = torch.compile(model) if arm.compiled else model
    optimizer = build_optimizer(model, run_config.optimizer)
    batches = [
        torch_models.batch_inputs(synthetic.batch(run_config, number))
        for number in range(HOST_BATCHES)
    ]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        batches = [{name: x.pin_memory() for name, x in batch.items()} for batch in batches]

    # One step stays in flight while the host starts the next, as in jaxlm; on CPUs none does.
    losses, finished, ends = [], [], [time.perf_counter()]
    for number in range(warm_up + timed + 1):
        batch = batches[number % HOST_BATCHES]
        inputs = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
        set_learning_rate(optimizer, run_config.optimizer, number)
        with precision_and_attention(arm, device, backends):
            loss = loss_of(**inputs)
            loss.backward()
        if run_config.optimizer.gradient_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), run_config.optimizer.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        losses.append(loss.detach())
        finished.append(record_end(device))
        waited = number - (device == "cuda")
        if waited >= 0:
            if finished[waited] is not None:
                finished[waited].synchronize()
            ends.append(time.perf_counter())

    return TimedSteps(
        batch_size=run_config.training.batch_size,
        attention=describe_attention(model, backends),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=[end - start for start, end in itertools.pairwise(ends)][-timed:],
        losses=[loss.item() for loss in losses],
        first_step_seconds=ends[1] - ends[0],
        peak_memory_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else None,
    )


def record_end(device: str) -> Any:
    """Return the event that ends the work of a GPU so far, or None on CPUs, which are done."""
    if device != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


@contextlib.contextmanager
def precision_and_attention(
    arm: Arm, device: str, backends: Sequence[SDPBackend]
) -> Iterator[None]:
    """Compute in the precision of an arm, and attention by one of these backends ([]: any)."""
    with contextlib.ExitStack() as stack:
        if arm.precision == BFLOAT16:
            stack.enter_context(torch.autocast(device, torch.bfloat16))
        if backends:
            stack.enter_context(sdpa_kernel(list(backends), set_priority=len(backends) > 1))
        yield


def describe_attention(model: torch_models.TrainedModel, backends: Sequence[SDPBackend]) -> str:
    """Return the attention of a model and the kernels that it may use."""
    hf_config: Any = getattr(model.model, "config", None)
    name = "sdpa" if hf_config is None else hf_config._attn_implementation
    kernels = {0: "any kernel", 1: "cudnn"}.get(len(backends), "cudnn first")
    return f"{name}, {kernels}"


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return AdamW, fused; like nanoGPT and jaxlm it decays matrices alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, number: int
) -> None:
    """Set the learning rate of a step, from 0, of the warmup; no run here is longer."""
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * min(1.0, (number + 1) / max(1, config.warmup_steps))


def versions() -> dict[str, str]:
    """Return the versions that decide what the peer computes."""
    packages = {package: version(package) for package in ("torch", "transformers")}
    return {
        "python": platform.python_version(),
        **packages,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
