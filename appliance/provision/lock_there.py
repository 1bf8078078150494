"""Runs on a host, as root, to take or give back its lock. Only Python's own library.

One JSON request on standard input, one JSON answer::

    {"do": "take", "home": …, "operator": "alice@desk", "controller": …, "run": …, "since": …}
    {"do": "give-back", "home": …, "run": …}
    {"do": "break", "home": …}
    ←  {"held": null}     it was free, is ours now, or was given back
    ←  {"held": {…}}      who holds it; after "break": who held it

The lock is a file that names who holds it, because it must outlive every connection: an operator's
run is many of them, and after a kill the same controller goes on under it. Another controller is
refused until somebody breaks it knowingly.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the request, do it, answer."""
    os.umask(0o022)
    request = json.loads(sys.stdin.readline())
    try:
        held = _do(request, Path(request["home"]) / "operator-lock")
        answer: dict[str, Any] = {"held": held}
    except OSError as error:
        answer = {"error": f"{error.filename}: {error.strerror}"}
    sys.stdout.write(json.dumps(answer) + "\n")


def _do(request: dict[str, Any], lock: Path) -> dict[str, Any] | None:
    if request["do"] == "take":
        return _take(request, lock)
    held = _read(lock)
    ours = held is not None and held.get("run") == request.get("run")
    if held is not None and (ours or request["do"] == "break"):
        lock.unlink(missing_ok=True)
    return held if request["do"] == "break" else None


def _take(request: dict[str, Any], lock: Path) -> dict[str, Any] | None:
    lock.parent.mkdir(parents=True, exist_ok=True)
    fresh = lock.with_name(f".{lock.name}.{os.getpid()}")
    content = {name: request[name] for name in ("operator", "controller", "run", "since")}
    try:
        with fresh.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, lock)  # atomic, and refused if there is one
        except FileExistsError:
            held = _read(lock)
            if held is not None and held.get("controller") != request["controller"]:
                return held
            fresh.replace(lock)
    finally:
        fresh.unlink(missing_ok=True)
    return None


def _read(lock: Path) -> dict[str, Any] | None:
    """Who holds it. A file that says nothing is nobody's."""
    try:
        content = json.loads(lock.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


if __name__ == "__main__":
    main()
