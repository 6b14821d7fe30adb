"""Take a sample of the files of each source: whole ones, or the first part of large ones."""

import contextlib
import math
import shutil
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlm.config import DataConfig, SourceConfig, UserError
from jaxlm.data.corpus import NumberedSource, numbered_sources
from jaxlm.data.listing import base_folder, list_files
from jaxlm.data.readers.streams import (
    DAMAGED,
    decompress,
    find_compression,
    import_reader,
)
from jaxlm.data.readers.token_documents import read_tokens
from jaxlm.data.readers.token_files import (
    INDEX_HEADER,
    INDEX_MAGIC,
    INDEX_VERSION,
    UINT16_IDS,
    TokenFile,
    find_index,
    open_token_file,
    reading,
)
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.data.remote_files import SourceFile, file_size
from jaxlm.data.sources import choose_reader

PART_BYTES = 1 << 18  # of a file, at least; compressed blocks are up to 900 kB of text
COPY_BYTES = 1 << 16  # at once
HEAD_BYTES = 16  # that tell a compression


class Sample(NamedTuple):
    """The part of a source that is prepared, as a source of its own."""

    config: SourceConfig
    files: int  # of the source
    total_bytes: int  # of them
    sample_bytes: int
    cuts: int  # files that end early, whose last record can't be read

    @property
    def factor(self) -> float:
        """Return how many times larger the source is than its sample."""
        return self.total_bytes / self.sample_bytes if self.sample_bytes else 1.0


def take_samples(data: DataConfig, folder: Path, budget: float) -> tuple[DataConfig, list[Sample]]:
    """Write samples of all sources, validation files included, to folders below `folder`.

    Returns the config that reads them. Each source has the part of `budget` (bytes) that its files
    are of all files.
    """
    numbered = numbered_sources(data)
    paths = [list_files(source, keys) for source, keys in numbered]
    sizes = [[file_size(path) for path in files] for files in paths]
    share = min(budget / max(sum(map(sum, sizes)), 1), 1.0)

    samples = []
    for number, (source, files, of_files) in enumerate(zip(numbered, paths, sizes, strict=True)):
        place = folder / "sources" / str(number)
        samples.append(take_sample(source, files, of_files, place, share * sum(of_files)))

    sampled = replace(
        data,
        sources=tuple(sample.config for sample in samples[: len(data.sources)]),
        on_error="skip",
        store=str(folder / "stores"),
    )
    if data.validation.path is not None:
        validation = replace(data.validation, path=samples[-1].config.path)
        sampled = replace(sampled, validation=validation)
    return sampled, samples


def take_sample(
    numbered: NumberedSource,
    paths: Sequence[SourceFile],
    sizes: list[int],
    place: Path,
    budget: float,
) -> Sample:
    """Write about `budget` bytes of a source to the folder `place`."""
    source, total = numbered.config, sum(sizes)
    chosen = choose_files(sizes, budget, spread=source.documents is None)
    base = base_folder(source)

    # The same share of each file that is chosen: some may be compressed and others not.
    share = budget / max(sum(sizes[number] for number in chosen), 1)
    taken = cuts = 0
    for number in chosen:
        path, target = paths[number], place / paths[number].relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        limit = max(math.ceil(share * sizes[number]), PART_BYTES)
        part = sizes[number]
        if limit < part:
            part = write_part(path, target, numbered, limit)
        if part == sizes[number]:
            take_whole(path, target)
            if source.format == "tokens" and (index := find_index(path)) is not None:
                take_whole(index, target.with_suffix(".idx"))
        else:
            cuts += 1
        taken += part

    kind = "text" if source.format == "python_stdlib" else source.format
    # Files of tokens that a glob chose have any name.
    name = f"{place}/**/*" if source.format == "tokens" else str(place)
    config = replace(source, path=name, format=kind)
    return Sample(config, len(paths), total, taken, cuts)


def take_whole(path: SourceFile, target: Path) -> None:
    """Have a whole file in the sample: a link to it, or a copy of one that is elsewhere."""
    if isinstance(path, Path):
        target.symlink_to(path.absolute())
        return
    with path.open("rb") as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy)


def choose_files(sizes: Sequence[int], budget: float, spread: bool) -> list[int]:
    """Return the numbers of the files of a sample: evenly spread over all, or the first ones."""
    mean = max(sum(sizes) / len(sizes), 1)
    count = min(max(math.ceil(budget / min(mean, PART_BYTES)), 1), len(sizes))
    if not spread:
        return list(range(count))
    return [(2 * number + 1) * len(sizes) // (2 * count) for number in range(count)]


def write_part(path: SourceFile, target: Path, numbered: NumberedSource, limit: int) -> int:
    """Write the first `limit` bytes of a file, up to the end of a line, and return how many.

    Of Parquet they are the first rows. A file that can't be cut is not written, and counts whole.
    """
    size = file_size(path)
    if numbered.config.format == "tokens":
        return write_tokens(path, target, limit)
    kind = choose_reader(path, numbered.config, numbered.keys, ReadingNotes(skips=True))
    if numbered.config.format == "python_stdlib":
        kind = "text"
    if kind == "parquet":
        return write_rows(path, target, limit / size)

    with path.open("rb") as file:
        compression = find_compression(file.read(HEAD_BYTES))
        if kind == "arrow" or (kind == "text" and compression):
            return size
        file.seek(0)
        data = file.read(limit)
    if compression is not None:
        return write_compressed_part(path, target, compression, limit)

    end = data.rfind(b"\n") + 1
    # Text without a line break may be cut before any character.
    while not end and data and data[-1] & 0xC0 == 0x80:
        data = data[:-1]
    data = data[:end] if end else data[:-1]
    target.write_bytes(data)
    return len(data)


def write_compressed_part(path: SourceFile, target: Path, compression: str, limit: int) -> int:
    """Write the first `limit` bytes of a compressed file, at least a block.

    Returns the bytes whose content can be decompressed: of a block that was cut there is nothing.
    """
    size, complete = file_size(path), 0
    while not complete and limit < size:
        with path.open("rb") as file:
            target.write_bytes(file.read(limit))

        with target.open("rb") as file, contextlib.suppress(*DAMAGED, OSError):
            stream = decompress(file, compression, path)
            while stream.read1(COPY_BYTES):
                complete = file.tell()
        limit *= 2
    if complete:
        return complete

    target.unlink(missing_ok=True)
    return size


def write_rows(path: SourceFile, target: Path, share: float) -> int:
    """Write the first rows of a Parquet file, and return the bytes that they are of the whole."""
    parquet = import_reader("pyarrow.parquet", f"{path}: Parquet")
    arrow = import_reader("pyarrow", f"{path}: Parquet")
    try:
        with path.open("rb") as opened, parquet.ParquetFile(opened) as file:
            total = file.metadata.num_rows
            wanted, rows = max(math.ceil(share * total), 1), 0
            with parquet.ParquetWriter(target, file.schema_arrow) as writer:
                for batch in file.iter_batches(batch_size=256):
                    batch = batch.slice(0, wanted - rows)
                    writer.write_batch(batch)
                    rows += batch.num_rows
                    if rows == wanted:
                        break
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged Parquet: {error}") from error
    return min(int(file_size(path) * rows / max(total, 1)), file_size(path) - 1)


def write_index(file: TokenFile, documents: int, target: Path) -> None:
    """Write the .idx of the first documents of a Megatron file."""
    assert file.index is not None
    bounds = file.index.documents[: documents + 1]
    count = int(bounds[-1])
    header = INDEX_HEADER.pack(INDEX_MAGIC, INDEX_VERSION, file.index.code, count, len(bounds))
    arrays = file.index.lengths[:count], file.index.pointers[:count], bounds
    target.write_bytes(header + b"".join(array.tobytes() for array in arrays))


def write_tokens(path: SourceFile, target: Path, limit: int) -> int:
    """Write the first tokens of a file, about `limit` bytes, and return how many bytes they are.

    Those of a file with a header become a .npy, which has one for any type.
    """
    file = open_token_file(path, UINT16_IDS)
    count = min(limit // 4 * 4 // file.dtype.itemsize, file.count)
    if file.index is not None:
        numbers = range(len(file.index.documents))
        last = max(bisect_right(numbers, count, key=file.first_token) - 1, 1)
        count = file.first_token(last)
        write_index(file, last, target.with_suffix(".idx"))

    with reading(path) as stream:
        ids = read_tokens(file, stream, 0, count)
    with target.open("wb") as sample:
        if file.layout not in ("raw", "Megatron"):
            descr = np.lib.format.dtype_to_descr(file.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": ids.shape}
            np.lib.format.write_array_header_1_0(sample, header)
        sample.write(ids.tobytes())
    return min(ids.nbytes, file_size(path) - 1)
