"""Files that are whole or not there: written beside their place, brought to the disk, and put there in one move."""
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def _to_disk(path: Path) -> None:
    "Wait until what is in a file, or which files a folder has, is on the disk"
    handle = os.open(path, os.O_RDONLY)
    try: os.fsync(handle)
    finally: os.close(handle)


@contextmanager
def whole_file(
    path: str | Path, # of the file; its folder is made if it is not there
) -> Iterator[Path]:  # where to write it: another name in the same folder, with the same ending
    """A file that takes its place when the block has ended, and does not change what is there if it fails

    A process that is killed in between leaves the other name behind: `sweep` removes it. Raises `OSError`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.stem}.{os.getpid()}.partial{path.suffix}')
    try:
        yield partial
        _to_disk(partial)
        os.replace(partial, path)
    except BaseException as e:
        with suppress(OSError): partial.unlink()
        if isinstance(e, OSError) and e.filename is None: e.filename = str(path)  # a full disk's error has none
        raise
    if os.name == 'posix': _to_disk(path.parent)


def write_whole(
    path: str | Path,     # of the file
    content: bytes | str, # text is written as UTF-8, and names of files as the system has them
) -> None:
    "Write a file whole, or leave the one that is there; makes its folder. Raises `OSError`"
    with whole_file(path) as partial:
        partial.write_bytes(content.encode(errors='surrogateescape') if isinstance(content, str) else content)


def megabytes(
    count: int, # bytes
) -> str:
    "Like 30.0 MB or 1.2 GB"
    return f'{count / 1e9:,.1f} GB' if count >= 1e9 else f'{count / 1e6:,.1f} MB'


def sweep(
    folder: str | Path, # in which nobody else writes
) -> None:
    "Remove what programs that were killed while they wrote have left in a folder"
    for partial in Path(folder).glob('.*.partial*'):
        with suppress(OSError): partial.unlink()
