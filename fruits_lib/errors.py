"""Errors that people read: one line that names the value, the bound and the way out."""


class FruitsError(Exception):
    """Something the user can correct. The message is one line: value, bound, way out."""

    def _render_traceback_(self):
        """Show the line alone in a notebook (IPython calls this hook instead of a traceback)."""
        return [f"{type(self).__name__}: {self}"]


class VerificationError(FruitsError):
    """At least one check of a finished run failed."""
