"""Errors that people read: one line that names the value, the bound and the way out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from fruits_lib.text import printable


class FruitsError(Exception):
    """Something the user can correct. The message is one line: value, bound, way out."""

    def __init__(self, message: object = ""):
        super().__init__(printable(message))

    def _render_traceback_(self):
        """Show the line alone in a notebook (IPython calls this hook instead of a traceback)."""
        return [f"{type(self).__name__}: {self}"]


class VerificationError(FruitsError):
    """At least one check of a finished run failed."""


class Signalled(KeyboardInterrupt):
    """SIGTERM or SIGHUP: a command cleans up as after Ctrl-C, but there is nobody to ask."""

    def __init__(self, number: int):
        super().__init__()
        self.code = 128 + number  # the command's exit code


@contextmanager
def spark_errors(
    work: str, way_out: str = "run it again, it goes on where it stopped"
) -> Iterator[None]:
    """Turn what Spark or the operating system raises in a block into one line that names `work`."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (Py4JError, PySparkException, OSError) as error:
        # The text nests stack traces of Python and Java. The last cause says most, unless that is
        # the socket of a worker that was killed.
        text = f"{type(error).__name__}: {error}"
        name = r"(?m)^(?:Caused by: )?(?:\w+\.)*((?!Socket)\w+(?:Error|Exception)"
        causes = re.findall(rf"{name}: \S.*)", text) or re.findall(rf"{name})$", text)
        reason = causes[-1] if causes else text.splitlines()[0].rstrip(": ")
        raise FruitsError(f"{work} stopped ({reason}): {way_out}") from error
