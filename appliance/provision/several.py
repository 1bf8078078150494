"""The same for every host at once, and one error for what failed.

    answers, failures = try_each(remotes, lambda remote: remote.check(["uname", "-r"]).text)
    if failures:
        raise one_error(failures)

A host that fails does not stop the others: what they have done need not be done again. ^C leaves at
once; the commands under way are ended by whoever opened the connections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from appliance.errors import ApplianceError, SeveralHostsFailed
from appliance.provision.ssh import Remote

T = TypeVar("T")

AT_ONCE = 32
"""Hosts that are talked to at the same time; each costs the controller an ssh process."""


def try_each(
    remotes: Mapping[str, Remote], act: Callable[[Remote], T]
) -> tuple[dict[str, T], dict[str, ApplianceError]]:
    """``act`` on all hosts in parallel; what it returned, and what failed, by host."""
    results: dict[str, T] = {}
    failures: dict[str, ApplianceError] = {}
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        begun = {name: pool.submit(act, remote) for name, remote in remotes.items()}
        for name, future in begun.items():
            try:
                results[name] = future.result()
            except ApplianceError as error:
                failures[name] = error
    finally:
        # On ^C nobody waits here: what still runs ends with its connection.
        pool.shutdown(wait=False, cancel_futures=True)
    return results, failures


def one_error(failures: Mapping[str, ApplianceError]) -> ApplianceError:
    """The error of the one host that failed, or one that tells of all. Pure."""
    if len(failures) == 1:
        return next(iter(failures.values()))
    told = {name: error.sentences() for name, error in failures.items()}
    return SeveralHostsFailed(
        count=len(failures),
        hosts=", ".join(failures),
        reasons=" ".join(f"{name}: {what} {why}" for name, (what, why, _fix) in told.items()),
        remedies=" ".join(dict.fromkeys(fix for _what, _why, fix in told.values())),
    )
