"""What only shows when hosts are compared: two that are one, two with one name. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from appliance.i18n import _
from appliance.provision.facts import HostFacts
from appliance.provision.finding import HostFinding


def between(facts: Mapping[str, HostFacts]) -> Iterator[HostFinding]:
    """Findings about hosts whose facts are known, by name."""
    yield from _alike(
        facts,
        "machine-id",
        lambda each: each.machine_id,
        fine=_("machine-id {value}"),
        text=_("it has the same machine-id as {others}: a copied image, or one machine twice"),
        remedy=_("On one: 'rm /etc/machine-id && systemd-machine-id-setup', then restart it."),
    )
    yield from _alike(
        facts,
        "hostname",
        lambda each: each.hostname,
        fine="{value}",
        text=_("it calls itself {value}, as does {others}"),
        remedy=_("Give each its own name: 'hostnamectl set-hostname NAME'."),
    )


def _alike(
    facts: Mapping[str, HostFacts],
    check: str,
    value_of: Callable[[HostFacts], str | None],
    *,
    fine: str,
    text: str,
    remedy: str,
) -> Iterator[HostFinding]:
    sharing: dict[str, list[str]] = defaultdict(list)
    for name, each in facts.items():
        value = value_of(each)
        if value:
            sharing[value].append(name)
        else:
            yield HostFinding(name, check, "warn", _("it has none"), remedy)
    for value, names in sharing.items():
        for name in names:
            others = ", ".join(other for other in names if other != name)
            if others:
                told = text.format(value=value, others=others)
                yield HostFinding(name, check, "fail", told, remedy)
            else:
                yield HostFinding(name, check, "pass", fine.format(value=value))
