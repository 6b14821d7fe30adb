"""One small model of each family that an architecture of `transformers` can hold."""

from jaxlm.config import ModelConfig

GPT2 = ModelConfig(vocabulary_size=300, layers=3, width=48, heads=4, context_length=32)
ROBERTA = ModelConfig(
    family="encoder",
    vocabulary_size=300,
    layers=2,
    width=48,
    heads=4,
    context_length=32,
    position_offset=2,
    token_types=1,
    norm_placement="post",
    embedding_norm=True,
    activation="gelu",
    head_bias=True,
    head_transform=True,
    norm_epsilon=1e-12,
)
T5 = ModelConfig(
    family="encoder_decoder",
    vocabulary_size=300,
    layers=2,
    heads=4,
    mlp_width=40,
    encoder_layers=3,
    width=32,
    head_width=8,
    norm="rmsnorm",
    norm_epsilon=1e-6,
    positions="relative",
    activation="gelu_tanh",
    gated=True,
    attention_bias=False,
    attention_output_bias=False,
    mlp_bias=False,
    attention_scale=1.0,
    tied_head=False,
)
MODELS = {"gpt2": GPT2, "roberta": ROBERTA, "t5": T5}
