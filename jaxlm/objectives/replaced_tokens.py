"""Replaced-token detection: hide some tokens; a generator fills them, and a detector finds them.

ELECTRA (arXiv 2003.10555, section 2). The batch is that of masked language modelling, with each
chosen token hidden by the mask. The generator's tokens are drawn within the step.
"""

from dataclasses import replace

from jaxlm.config import ObjectiveConfig
from jaxlm.objectives import masked
from jaxlm.objectives.objective import Objective, Vocabulary


def build(config: ObjectiveConfig, sequence_length: int, vocabulary: Vocabulary) -> Objective:
    """Build the objective, with the windows, packed rows and errors of `masked.build`."""
    all_masked = replace(config, mask_share=1.0, random_share=0.0)
    return masked.build(all_masked, sequence_length, vocabulary)
