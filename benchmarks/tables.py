"""What the benchmarks share: photographs, and a section of README.md for each script."""

import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
import time
from datetime import date
from pathlib import Path

from PIL import Image

from fruits_lib.sample import write_sample

ROOT = Path(__file__).parents[1]
README = Path(__file__).with_name("README.md")
SHARED = Path(os.environ.get("FRUITS_SHARED", ROOT.parent / "shared"))
WEIGHTS = "imagenet" if SHARED.exists() else "random"
FRUITS = Path(sys.executable).with_name("fruits")
if SHARED.exists():
    os.environ.setdefault("KERAS_HOME", str(SHARED / "keras"))


def photographs(folder: Path, count: int) -> Path:
    """Fill a folder with so many photographs, and return it.

    They are those of Fruits-360 in FRUITS_SHARED, Test first, or else the embedded sample's; when
    all are there, they come again, turned by 1, 2, ... degrees.
    """
    source = SHARED / "fruits360"
    if not source.exists():
        source = folder.with_name("sample")
        write_sample(source)
    found = sorted(source.rglob("*.jpg"))
    for number in range(count):
        turn, file = number // len(found), found[number % len(found)]
        target = folder / file.relative_to(source).with_stem(f"{file.stem}_{turn}")
        target.parent.mkdir(parents=True, exist_ok=True)
        if turn:
            turned = Image.open(file).rotate(turn, Image.Resampling.BICUBIC, fillcolor="white")
            turned.save(target, quality=95)
        else:
            shutil.copyfile(file, target)
    return folder


def timed(command: list, cwd: Path = ROOT, **environment: str) -> float:
    """Return the seconds that a command took; its output goes to ours."""
    started = time.monotonic()
    subprocess.run(command, check=True, cwd=cwd, env=os.environ | environment)
    return time.monotonic() - started


def peak_mb(pid: int | str = "self") -> int:
    """Return the largest resident memory that a process ever had, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


def processor() -> str:
    """Return the processor's name and vector instructions, which decide a network's speed."""
    facts = Path("/proc/cpuinfo").read_text()
    vectors = sorted(set(re.findall(r"avx\w*", facts)) & {"avx2", "avx512f"})
    return f"{re.search('model name.*: (.+)', facts)[1]} ({', '.join(vectors)})"


def table(*rows: tuple) -> str:
    """Return rows as a table of Markdown; the first one is its head."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def write_section(title: str, text: str) -> None:
    """Print a section, and put it into README.md in place of the one that this script wrote."""
    name = Path(sys.argv[0]).stem
    arguments = " ".join([name, *sys.argv[1:]])
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    paragraphs = text.strip().split("\n\n")
    wrapped = "\n\n".join(p if p[0] == "|" else textwrap.fill(p, 100) for p in paragraphs)
    section = f"""<!-- {name} -->
## {title}

`make bench ARGS="{arguments}"`, {date.today()}, {os.cpu_count()} cores of {processor()},
Python {platform.python_version()}, commit {commit.stdout.strip() or "unknown"}.

{wrapped}
<!-- end of {name} -->"""
    print(section, flush=True)
    old = README.read_text(encoding="utf-8")
    pattern = re.compile(rf"<!-- {name} -->.*<!-- end of {name} -->", re.DOTALL)
    new = pattern.sub(lambda _: section, old) if pattern.search(old) else f"{old}\n{section}\n"
    README.write_text(new, encoding="utf-8")
