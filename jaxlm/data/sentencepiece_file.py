"""Read SentencePiece's model files: a message of Protocol Buffers.

Only the fields that decide ids are read (sentencepiece_model.proto); the others are passed over.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of Protocol Buffers
# SentencePiece.Type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType


class Piece(NamedTuple):
    """A token of a SentencePiece model."""

    text: str
    score: float
    kind: int


class SentencePieceModel(NamedTuple):
    """The parts of a SentencePiece model that decide its ids."""

    pieces: list[Piece]
    kind: int = UNIGRAM
    byte_fallback: bool = False
    space_after: bool = False  # treat_whitespace_as_suffix
    charsmap: bytes = b""  # compiled rules of normalization
    adds_prefix: bool = True  # add_dummy_prefix
    joins_spaces: bool = True  # remove_extra_whitespaces
    escapes_spaces: bool = True


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a model file. Raises ValueError where it is none, OSError where it can't be read."""
    try:
        return parse_model(path.read_bytes())
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError("not a SentencePiece model") from error


def parse_model(data: bytes) -> SentencePieceModel:
    """Return the model of a `ModelProto`."""
    pieces, trainer, normalizer = [], {}, {}
    for field, value in read_fields(data):
        if field == 1:
            pieces.append(parse_piece(value))
        elif field == 2:
            trainer = dict(read_fields(value))
        elif field == 3:
            normalizer = dict(read_fields(value))
    if not pieces:
        raise ValueError("not a SentencePiece model: it has no pieces")

    return SentencePieceModel(
        pieces,
        kind=trainer.get(3, UNIGRAM),
        space_after=bool(trainer.get(24, 0)),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=normalizer.get(2, b""),
        adds_prefix=bool(normalizer.get(3, 1)),
        joins_spaces=bool(normalizer.get(4, 1)),
        escapes_spaces=bool(normalizer.get(5, 1)),
    )


def parse_piece(data: bytes) -> Piece:
    """Return a piece of its message."""
    fields = dict(read_fields(data))
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(fields[1].decode(), score, fields.get(3, NORMAL))


def read_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of the fields of a message: an int, or the bytes of anything else."""
    place = 0
    while place < len(data):
        key, place = read_varint(data, place)
        wire = key & 7
        if wire == VARINT:
            value, place = read_varint(data, place)
            yield key >> 3, value
            continue

        if wire == BYTES:
            size, place = read_varint(data, place)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError("not a SentencePiece model")
        if place + size > len(data):
            raise ValueError("not a SentencePiece model: it ends inside a field")
        yield key >> 3, data[place : place + size]
        place += size


def read_varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the number that begins at `place`, and the place after it."""
    number = shift = 0
    while True:
        byte = data[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place
        if shift > 63:
            raise ValueError("not a SentencePiece model")
