"""Shapes for a number of parameters."""

import pytest

from jaxlm import models
from jaxlm.config import UserError
from jaxlm.plan.shapes import find_shape

FAMILIES = ("decoder", "encoder", "encoder_decoder")


def shape(parameters, family="decoder", vocabulary_size=32_768, sequence_length=512):
    return find_shape(
        parameters,
        family=family,
        vocabulary_size=vocabulary_size,
        sequence_length=sequence_length,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parameters", [2e7, 1.2e8, 3e9, 7e10])
def test_shapes_have_the_parameters_that_were_asked_for(family, parameters):
    """Within 4%: the smallest have few layers, and one more or less is a tenth of them."""
    found = shape(parameters, family)
    assert found.parameters == pytest.approx(parameters, rel=0.04)
    assert 30 < found.config.width / found.config.layers < 130
    assert found.config.width % found.config.heads == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parameters", [5e6, 1e9])
def test_parameters_are_those_of_the_model(family, parameters):
    """To the last one, with a tied head and with one of its own."""
    found = shape(parameters, family, vocabulary_size=4096)
    assert found.parameters == models.build(found.config).parameter_count()


@pytest.mark.parametrize(
    ("parameters", "layers", "width"),
    [(1.1e9, 26, 1792), (6.8e9, 40, 3584), (16.2e9, 47, 5120), (70e9, 80, 8192)],
)
def test_decoders_have_about_the_shapes_of_chinchillas(parameters, layers, width):
    """Tables 4 and A9 of arXiv 2203.15556, whose MLPs are as large: 4 widths without a gate."""
    config = shape(parameters, vocabulary_size=32_000).config
    assert config.layers == pytest.approx(layers, rel=0.16)
    assert config.width == pytest.approx(width, rel=0.08)


def test_the_vocabulary_counts():
    """A large one leaves fewer layers, and the head is tied where it would take over a tenth."""
    small, large = shape(2e8, vocabulary_size=8192), shape(2e8, vocabulary_size=250_000)
    assert large.parameters == pytest.approx(small.parameters, rel=0.05)
    assert not small.config.tied_head and large.config.tied_head
    assert large.vocabulary_parameters == 250_000 * large.config.width
    assert small.vocabulary_parameters == 2 * 8192 * small.config.width


def test_a_vocabulary_that_leaves_nothing():
    with pytest.raises(UserError, match="a vocabulary of 250,000 takes 16,000,000"):
        shape(1e7, vocabulary_size=250_000)
    with pytest.raises(UserError, match=r"at most 1e\+15"):
        shape(1e30)


def test_flops_of_a_decoder_are_the_closed_form():
    """6 for each multiplied weight, 12 L T W for attention (PaLM, arXiv 2204.02311, appendix B)."""
    found = shape(1e9, sequence_length=2048)
    config = found.config
    norms = (2 * config.layers + 1) * config.width
    table = 0 if config.tied_head else config.vocabulary_size * config.width
    weights = 6 * (found.parameters - norms - table)
    assert found.flops_per_token == weights + 12 * config.layers * config.width * 2048


def test_samples_of_the_families():
    """BERT predicts 15% of its tokens; T5 reads 512 tokens and writes 114."""
    assert shape(1e8, "decoder").sample == (512, 0, 512)
    assert shape(1e8, "encoder").sample == (512, 0, 77)
    assert shape(1e8, "encoder_decoder").sample == (114, 512, 114)


def test_an_encoder_decoder_costs_half_of_a_decoder():
    """Each token passes through one of the two stacks."""
    both, one = shape(3e9, "encoder_decoder"), shape(3e9, "decoder")
    ratio = both.flops_per_token / both.parameters / (one.flops_per_token / one.parameters)
    assert 0.42 < ratio < 0.52
