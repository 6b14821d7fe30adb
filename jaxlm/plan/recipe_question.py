"""The question what the training of a config costs."""

from dataclasses import replace

from jaxlm import models
from jaxlm.benchmark import synthetic
from jaxlm.config import Config
from jaxlm.data.schedule import BatchSchedule
from jaxlm.plan.question import Question
from jaxlm.plan.scaling_laws import check_scaling_law
from jaxlm.plan.shapes import Sample, Shape
from jaxlm.plan.traced_flops import traced_training_flops


def ask_about(config: Config, question: Question) -> tuple[Question, float]:
    """Return the question with the model and the tokens of a config, and its traced FLOPs.

    These are the FLOPs per token that are in the jaxpr of its training step, both passes, without
    recomputation. GPUs, days and price stay those of `question`. Raises ConfigError for an
    objective that doesn't fit the config, and for a classifier.
    """
    check_scaling_law(config)
    objective = synthetic.objective(config)
    sample = Sample(objective.length, objective.source_length, objective.predictions)
    schedule = BatchSchedule(config.training.batch_size, config.training.batch_schedule)
    samples = schedule.first_sample(config.training.steps)

    model = models.build(config.model)
    parameters = model.parameter_count()
    if model.generator is not None:
        parameters += model.generator_parameter_count()
    question = replace(
        question,
        parameters=float(parameters),
        tokens=float(samples * sample.tokens),
        family=config.model.family,
        vocabulary_size=config.model.vocabulary_size,
        sequence_length=config.data.sequence_length,
        shape=Shape(config.model, sample, parameters),
        recompute=question.recompute or config.parallel.remat == "full",
    )
    return question, traced_training_flops(config.model, *sample) / sample.tokens
