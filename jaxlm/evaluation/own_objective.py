"""The objective by which a loaded model is scored, and texts as it reads them."""

from collections.abc import Iterable
from dataclasses import replace

from jaxlm import data
from jaxlm.config import ObjectiveConfig, SourceConfig, UserError
from jaxlm.config.objective import SOURCE_FORMATS
from jaxlm.data import Document
from jaxlm.data.documents import COMMAND_OPTIONS
from jaxlm.data.sources import read_documents as read_source
from jaxlm.evaluation.texts import (
    HeldOutSource,
    TextSource,
    TokenizedExamples,
    TokenizedPairs,
    TokenizedTexts,
    read_examples,
    read_pairs,
    read_texts,
)
from jaxlm.load_model import LoadedModel
from jaxlm.objectives import Objective


def read_samples(
    loaded: LoadedModel, limit: int | None, source: TextSource, objective: Objective
) -> TokenizedTexts | TokenizedPairs | TokenizedExamples:
    """Read a source as the objective does: documents joined as in training, pairs or examples."""
    if loaded.config is not None and objective.examples is not None:
        assert isinstance(source, SourceConfig), "examples are no running text"
        form = SOURCE_FORMATS[loaded.config.objective.kind]
        source = replace(source, format=form, keys=loaded.config.data.sources[0].keys)
        spec = data.example_spec(loaded.config)
        documents = read_source(source, COMMAND_OPTIONS, examples=spec)
        return read_examples(documents, loaded.tokenizer, limit)
    if loaded.config is not None and loaded.config.objective.kind == "pairs":
        assert isinstance(source, SourceConfig), "pairs are no running text"
        trained_on = loaded.config.data.sources[0]
        source = replace(
            source,
            format="pairs",
            source_key=trained_on.source_key,
            target_key=trained_on.target_key,
        )
        return read_pairs(read_documents(source), loaded.tokenizer, limit)

    most = limit * objective.window if limit else None
    end = [loaded.tokenizer.end_of_text]
    return read_texts(read_documents(source), loaded.tokenizer, end=end, most_tokens=most)


def choose_objective(loaded: LoadedModel) -> ObjectiveConfig:
    """Return a run's own objective; else one by the family and what the tokenizer has.

    Raises UserError where the tokenizer lacks what is needed.
    """
    if loaded.config is not None:
        return loaded.config.objective

    vocabulary, family = loaded.tokenizer.vocabulary, loaded.model.config.family
    if loaded.model.config.generator_share is not None:
        loaded.mask_filler()
        return ObjectiveConfig(kind="replaced_tokens")
    if family == "encoder" and vocabulary.mask is not None:
        return ObjectiveConfig(kind="masked")
    if family == "encoder_decoder" and (len(vocabulary.sentinels) or vocabulary.mask is not None):
        starts_with_pad = loaded.special.decoder_start_id == vocabulary.pad
        return ObjectiveConfig(
            kind="span" if len(vocabulary.sentinels) else "infilling",
            decoder_start="pad" if starts_with_pad else "end_of_text",
        )

    missing = "mask" if family == "encoder" else "mask and no sentinels"
    remedy = "" if family == "encoder" else "; jaxlm.convert import makes a run of it for pairs"
    raise UserError(f"{loaded.path}: its tokenizer has no {missing}: nothing can be hidden{remedy}")


def read_documents(source: TextSource) -> Iterable[Document]:
    """Yield the documents of `--data`, whose options the errors name, or of a validation split."""
    if isinstance(source, HeldOutSource):
        return source.read_documents()
    return read_source(source, COMMAND_OPTIONS)
