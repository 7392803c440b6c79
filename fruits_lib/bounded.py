"""A file on this machine, read whole, but never beyond a bound."""

import os


def read_file(path: str | os.PathLike, most: int) -> bytes:
    """Return the content of a file; of a longer one than `most`, that many bytes and one more.

    Its recorded length is a hint alone: files grow, and a device has none.
    """
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        content = file.read(min(length, most) + 1)  # allocates what it is asked for
        if len(content) > length:
            content += file.read(most + 1 - len(content))
        return content
