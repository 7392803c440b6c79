"""The user of this machine: a name and a folder of their own, also where the system knows neither.

A container often runs under a uid that has no name and no home (`docker --user`, OpenShift).
"""

import getpass
import os
import pwd
import stat
import tempfile
from pathlib import Path

from fruits_lib.errors import FruitsError


def has_name() -> bool:
    try:
        return bool(pwd.getpwuid(os.geteuid()))
    except KeyError:
        return False


def name() -> str:
    """Return what the user is called: by LOGNAME or USER, by the system, else the uid."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.geteuid())


def folder() -> Path:
    """Return `fruits-NAME` among the temporary files, which this user alone can read and write.

    Its name can be guessed, so it may be there already: a folder of another user's, or a link to
    one, is a FruitsError.
    """
    # Not by LOGNAME or USER, which `su` may leave as they were.
    owner = pwd.getpwuid(os.geteuid()).pw_name if has_name() else os.geteuid()
    path = Path(tempfile.gettempdir(), f"fruits-{owner}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            path.chmod(0o700)  # older versions made it by the umask
            return path
        reason = "it is a link" if path.is_symlink() else f"it belongs to uid {found.st_uid}"
    except OSError as error:
        reason = error.strerror
    raise FruitsError(
        f"{path} cannot be used ({reason}): remove it, or set TMPDIR to a folder of your own"
    )


def give_home() -> None:
    """Set HOME to `folder` if the uid has no name, and no home that it can write.

    Java's and Python's libraries keep caches and sockets there, and fail without.
    """
    home = os.environ.get("HOME", "")
    if not has_name() and not (os.path.isabs(home) and os.access(home, os.W_OK | os.X_OK)):
        os.environ["HOME"] = str(folder())
