"""Scaling laws of language models as data, and what follows from them.

A law says how a compute budget of C FLOPs is best spent on N parameters and D tokens, where
C = 6 N D (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Losses are nats per token of the
texts and tokenizers that a law was measured with. The laws were measured on decoders. Plain
numbers go in and come out; nothing here imports jax or numpy.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from jaxlm.config import Config, ConfigError

FLOPS_PER_PARAMETER = 6  # of a token, forward and backward


class Allocation(NamedTuple):
    """Parameters and tokens that a budget is spent on."""

    parameters: float
    tokens: float
    loss: float | None  # None: the law predicts none

    @property
    def flops(self) -> float:
        """Return the training FLOPs, 6 N D."""
        return FLOPS_PER_PARAMETER * self.parameters * self.tokens


class PowerLaw(NamedTuple):
    """Optimal parameters as a power of the FLOPs: log10 N = slope log10 C + intercept."""

    slope: float
    intercept: float
    source: str

    def optimum(self, flops: float) -> Allocation:
        """Return the parameters and tokens on which `flops` are best spent."""
        parameters = 10 ** (self.slope * math.log10(flops) + self.intercept)
        return Allocation(parameters, flops / FLOPS_PER_PARAMETER / parameters, loss=None)

    def optimum_for_parameters(self, parameters: float) -> Allocation:
        """Return the optimum of the budget for which this many parameters are best."""
        return self.optimum(10 ** ((math.log10(parameters) - self.intercept) / self.slope))

    def optimum_for_tokens(self, tokens: float) -> Allocation:
        """Return the optimum of the budget for which this many tokens are best."""
        # D = C / 6N is a power of C as well.
        known = math.log10(FLOPS_PER_PARAMETER * tokens) + self.intercept
        return self.optimum(10 ** (known / (1 - self.slope)))


class ParametricLaw(NamedTuple):
    """The loss as a function of parameters N and tokens D: E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the predicted loss, in nats per token."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: float) -> Allocation:
        """Return the parameters and tokens on which `flops` are best spent.

        The closed form of Hoffmann et al. 2022 (arXiv 2203.15556, equation 4).
        """
        exponents = self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / exponents)
        parameters = ratio * (flops / FLOPS_PER_PARAMETER) ** (self.beta / exponents)
        return self.allocation(parameters, flops / FLOPS_PER_PARAMETER / parameters)

    def optimum_for_parameters(self, parameters: float) -> Allocation:
        """Return the optimum of the budget for which this many parameters are best."""
        # Both terms fall at the same rate there: alpha A / N^alpha = beta B / D^beta.
        slope = self.alpha * self.A / parameters**self.alpha
        return self.allocation(parameters, (self.beta * self.B / slope) ** (1 / self.beta))

    def optimum_for_tokens(self, tokens: float) -> Allocation:
        """Return the optimum of the budget for which this many tokens are best."""
        slope = self.beta * self.B / tokens**self.beta
        return self.allocation((self.alpha * self.A / slope) ** (1 / self.alpha), tokens)

    def optimum_for_loss(self, loss: float) -> Allocation:
        """Return the cheapest parameters and tokens that reach `loss`.

        Raises ValueError for a loss that no budget reaches.
        """
        if loss <= self.E:
            raise ValueError(f"no budget reaches a loss of {loss:g}: the law ends at {self.E:g}")
        # On the frontier A / N^alpha is beta / (alpha + beta) of what can be reduced.
        share = self.beta / (self.alpha + self.beta)
        parameters = (self.A / (share * (loss - self.E))) ** (1 / self.alpha)
        return self.optimum_for_parameters(parameters)

    def tokens_for_loss(self, parameters: float, loss: float) -> float:
        """Return the tokens with which this many parameters reach `loss`.

        Raises ValueError where no number of tokens does.
        """
        left = loss - self.E - self.A / parameters**self.alpha
        if left <= 0:
            least = loss - left
            raise ValueError(f"{parameters:g} parameters end at a loss of {least:.4g}")
        return (self.B / left) ** (1 / self.beta)

    def parameters_for_loss(self, tokens: float, loss: float) -> float:
        """Return the parameters that reach `loss` with this many tokens.

        Raises ValueError where no number of parameters does.
        """
        left = loss - self.E - self.B / tokens**self.beta
        if left <= 0:
            raise ValueError(f"{tokens:g} tokens end at a loss of {loss - left:.4g}")
        return (self.A / left) ** (1 / self.alpha)

    def allocation(self, parameters: float, tokens: float) -> Allocation:
        """Return these parameters and tokens, with their loss."""
        return Allocation(parameters, tokens, self.loss(parameters, tokens))


class DataLaw(NamedTuple):
    """The loss where text is repeated, as Muennighoff et al. 2023 found it (arXiv 2305.16264).

    Repeated tokens, and parameters beyond those that are best for the distinct tokens, count for
    less and less: both are replaced by effective numbers (equations 5 and 6).
    """

    law: ParametricLaw  # of distinct tokens
    tokens_decay: float  # R*_D: repetitions after which further ones are worth 1/e of new text
    parameters_decay: float  # R*_N: the same for excess parameters

    def effective_tokens(self, tokens: float, distinct: float) -> float:
        """Return how many new tokens are worth as much as `tokens`, read from `distinct` ones."""
        return saturate(tokens, min(tokens, distinct), self.tokens_decay)

    def loss(self, parameters: float, tokens: float, distinct: float) -> float:
        """Return the predicted loss after `tokens`, read from `distinct` ones in epochs."""
        new = min(tokens, distinct)
        useful = min(parameters, self.law.optimum_for_tokens(new).parameters)
        return self.law.loss(
            saturate(parameters, useful, self.parameters_decay),
            saturate(tokens, new, self.tokens_decay),
        )

    def optimum(self, flops: float, distinct: float) -> Allocation:
        """Return the parameters and tokens on which `flops` are best spent."""
        free = self.law.optimum(flops)
        if free.tokens <= distinct:
            return free

        def loss_of(log_parameters: float) -> float:
            parameters = math.exp(log_parameters)
            return self.loss(parameters, flops / FLOPS_PER_PARAMETER / parameters, distinct)

        # At most so many parameters that the text is read once; at least a hundredth of those that
        # are best for reading it once.
        low = math.log(self.law.optimum_for_tokens(distinct).parameters / 100)
        high = math.log(flops / FLOPS_PER_PARAMETER / distinct)
        parameters = math.exp(minimize(loss_of, low, high))
        tokens = flops / FLOPS_PER_PARAMETER / parameters
        return Allocation(parameters, tokens, self.loss(parameters, tokens, distinct))


def saturate(total: float, base: float, decay: float) -> float:
    """Return the effective size of `total`, of which what exceeds `base` loses its value."""
    excess = total / base - 1
    return base + base * decay * -math.expm1(-excess / decay)


def minimize(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function is least between `low` and `high`, to 1e-9 of its argument.

    A grid finds the valley, golden sections its bottom.
    """
    cells = 400
    grid = [low + (high - low) * cell / cells for cell in range(cells + 1)]
    best = min(range(cells + 1), key=lambda cell: function(grid[cell]))
    low, high = grid[max(0, best - 1)], grid[min(cells, best + 1)]

    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-9 * max(1.0, abs(high)):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if function(left) < function(right) else (left, high)
    return (low + high) / 2


# Chinchilla: Hoffmann et al. 2022, arXiv 2203.15556. The paper prints no intercepts of approaches
# 1 and 2. They are least-squares lines through the logarithms of its tables, as BloombergGPT (arXiv
# 2303.17564, section 3.2) drew them; it found the same slopes, 0.498 and 0.490, and intercepts,
# -1.004 and -0.839.
APPROACH_1 = PowerLaw(0.498099, -1.003668, "Hoffmann et al. 2022, approach 1, table 3")
APPROACH_2 = PowerLaw(0.489942, -0.839000, "Hoffmann et al. 2022, approach 2, table A3")
# Printed as 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28. Rounded so far, the optimum of Gopher's budget
# is 32B parameters instead of the paper's 40B. These are the digits of the paper's TeX source, as
# Besiroglu et al. quote them.
APPROACH_3 = ParametricLaw(
    E=math.exp(0.5267228),
    A=math.exp(6.0073404),
    B=math.exp(6.0179186),
    alpha=0.33917084,
    beta=0.2849083,
    source="Hoffmann et al. 2022, approach 3, equation 10 unrounded",
)
REFIT = ParametricLaw(
    E=1.8172,
    A=482.01,
    B=2085.43,
    alpha=0.3478,
    beta=0.3658,
    source="Besiroglu et al. 2024, arXiv 2404.10102",
)
LAWS: dict[str, PowerLaw | ParametricLaw] = {
    "1": APPROACH_1,
    "2": APPROACH_2,
    "3": APPROACH_3,
    "refit": REFIT,
}

# Muennighoff et al. 2023, appendix A (equation 17 and the numbers before it).
REPEATED_DATA = DataLaw(
    law=ParametricLaw(
        E=math.exp(0.6254804),
        A=math.exp(6.255414),
        B=math.exp(7.3049974),
        alpha=0.3526596,
        beta=0.3526596,
        source="Muennighoff et al. 2023, arXiv 2305.16264, appendix A",
    ),
    tokens_decay=15.387756,
    parameters_decay=5.309743,
)


def check_scaling_law(config: Config) -> None:
    """Raise ConfigError for a loss that no scaling law of language models is about."""
    if config.model.is_classifier:
        reason = "'classify': scaling laws are of losses per token, not of labels"
        raise ConfigError(
            "objective.kind", f"{reason}; plan memory, plan compile and bench take it"
        )
