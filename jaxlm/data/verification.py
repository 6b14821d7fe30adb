"""Compare shards with their checksums, once per run and off the step loop."""

import contextlib
import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

from jaxlm.config import UserError

BLOCK_BYTES = 1 << 20
AT_ONCE_BYTES = 1 << 25  # what takes some 20 ms is verified by the read that asks for it
LOWEST_PRIORITY = 19


class ShardVerifier:
    """The comparison of an array's shards with their checksums.

    The first `check` starts it. A small array is verified there and then. A large one is verified
    by a thread of the lowest priority, which reads a gigabyte in about a second; a later `check`
    then raises what the thread has found.
    """

    def __init__(self, paths: Sequence[Path], checksums: Sequence[int]):
        """Take the CRC-32 of each file of `paths`."""
        self.paths, self.checksums = tuple(paths), tuple(checksums)
        self.lock = threading.Lock()
        self.started = False
        self.damage: UserError | None = None

    def check(self) -> None:
        """Raise UserError, naming the shard, if one is known to be damaged."""
        if not self.started:
            self.start()
        if self.damage is not None:
            raise UserError(str(self.damage))

    def start(self) -> None:
        """Verify a small array, or start the thread that verifies a large one."""
        with self.lock:
            if self.started:
                return

            if total_bytes(self.paths) <= AT_ONCE_BYTES:
                self.verify()
            else:
                # A daemon: the end of a run does not wait for it.
                threading.Thread(target=self.verify_slowly, name="verify", daemon=True).start()
            self.started = True

    def verify_slowly(self) -> None:
        """Verify with the processor time that nothing else wants."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        self.verify()

    def verify(self) -> None:
        """Read all shards, and remember the first that is damaged."""
        for path, checksum in zip(self.paths, self.checksums, strict=True):
            try:
                found = compute_checksum(path)
            except OSError as error:
                self.damage = UserError(f"{path}: {error.strerror}; {how_to_rebuild(path)}")
                return
            if found != checksum:
                reason = f"damaged: its checksum is {found:08x} instead of {checksum:08x}"
                self.damage = UserError(f"{path}: {reason}; {how_to_rebuild(path)}")
                return


def total_bytes(paths: Sequence[Path]) -> int:
    """Return the size of files. Those that are missing count nothing."""
    return sum(path.stat().st_size for path in paths if path.exists())


def compute_checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    checksum, block = 0, bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        # zlib lets other threads of the interpreter run meanwhile.
        while size := file.readinto(block):
            checksum = zlib.crc32(memoryview(block)[:size], checksum)
    return checksum


def how_to_rebuild(path: Path) -> str:
    """Return what to do about a damaged file of a store."""
    return f"delete the folder {path.parent} to have it built again"
