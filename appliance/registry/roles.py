"""Who may do what at the gateway. Pure: no disk, no clock."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What an API key is for."""

    USER = "user"  # asks models
    TUNER = "tuner"  # also submits tuning jobs
    AUDITOR = "auditor"  # reads the record, and nothing else
    OPERATOR = "operator"  # runs the appliance; may do all of the above


_GRANTS: dict[Role, frozenset[Role]] = {
    Role.USER: frozenset({Role.USER}),
    Role.TUNER: frozenset({Role.USER, Role.TUNER}),
    # Outside the chain: an auditor reads, and can neither ask a model nor change anything.
    Role.AUDITOR: frozenset({Role.AUDITOR}),
    Role.OPERATOR: frozenset(Role),
}


def permits(role: Role, needed: Role) -> bool:
    """Whether a key of ``role`` may do what ``needed`` is demanded for.

    >>> permits(Role.TUNER, Role.USER), permits(Role.AUDITOR, Role.USER)
    (True, False)
    """
    return needed in _GRANTS[role]
