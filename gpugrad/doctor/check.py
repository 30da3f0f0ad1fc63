"""One line of the doctor's report, and the lines that install what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

OK, MISSING, FAILED = "ok", "missing", "failed"


class Check(NamedTuple):
    """What was found; `fix` says what to do about a status that is not "ok", "" for nothing."""

    name: str
    status: str
    detail: str
    fix: str = ""


def attempt(name: str, check: Callable[..., Check], *arguments: Any) -> Check:
    """Return what a check finds; an error of any kind is a finding too."""
    try:
        return check(*arguments)
    except Exception as error:  # a sick machine may raise anything
        return Check(name, FAILED, f"{type(error).__name__}: {error}")


def pip(*arguments: str) -> str:
    """Return a command line that runs pip for this Python."""
    return shlex.join([sys.executable, "-m", "pip", *arguments])


def install(extra: str = "") -> str:
    """Return the command line that installs gpugrad, with an extra, as it was installed before."""
    suffix = f"[{extra}]" if extra else ""
    direct = _origin()
    parts = urlsplit(direct.get("url", ""))
    if not parts.scheme:
        return pip("install", f"gpugrad{suffix}")
    if parts.scheme == "file" and "dir_info" in direct:
        editable = ["-e"] if direct["dir_info"].get("editable") else []
        return pip("install", *editable, url2pathname(parts.path) + suffix)
    vcs = f"{direct['vcs_info']['vcs']}+" if "vcs_info" in direct else ""
    return pip("install", f"gpugrad{suffix} @ {vcs}{direct['url']}")


def _origin() -> dict[str, Any]:
    """Return where pip got gpugrad from, as it notes it (PEP 610); {} for an index or no note."""
    try:
        text = importlib.metadata.distribution("gpugrad").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:  # a bare checkout
        text = None
    return json.loads(text) if text else {}


def version(distribution: str) -> str:
    """Return the version of an installed distribution, "" if it is not."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
