"""The rendered ruleset: one golden file, and that it says the matrix and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from egress_sites import hospital, sites
from hypothesis import HealthCheck, given, settings

from appliance.egress.policy import flows_of
from appliance.egress.ruleset import COUNTERS, digest, render
from appliance.manifests.site import Site

GOLDEN = Path(__file__).parent / "golden" / "egress-hospital-n1.nft"

NEUTRAL = {
    "loopback", "neighbour-discovery", "neighbour-discovery-groups", "path-mtu-and-errors",
    "errors-to-peers", "spoofed", "who-tried", "not-in-the-matrix",
}  # fmt: skip


def rules(text: str, chain: str) -> list[str]:
    body = text.split(f"\tchain {chain} {{\n")[1].split("\n\t}", maxsplit=1)[0]
    return [line.strip() for line in body.splitlines()[1:]]


def test_golden() -> None:
    assert render(hospital(), hospital().host("n1")) == GOLDEN.read_text("utf-8")


def test_the_digest_fits_the_text_and_no_other() -> None:
    text = render(hospital(), hospital().host("n1"))
    assert digest(text) is not None
    assert digest(text.replace("tcp dport 8443", "tcp dport 8444")) is None
    assert digest("table inet sovctl { }") is None


def test_an_operators_words_stay_words() -> None:
    text = render(hospital(), hospital().host("n1"))
    assert "; flush ruleset" in text
    assert not re.search(r"^[^#]*flush", text, re.MULTILINE)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(sites())
def test_every_flow_is_two_rules_and_every_accept_is_a_flow(site: Site) -> None:
    for host in site.hosts:
        text = render(site, host)
        assert digest(text)
        flows = flows_of(site, host)
        for chain in ("input", "output", "forward"):
            said = rules(text, chain)
            accepts = [r for r in said if " accept" in r]
            named = [n for r in accepts for n in re.findall(r'comment "(.*)"$', r)]
            assert len(named) == len(accepts)
            wanted = [f.name for f in flows] if chain != "forward" else []
            assert sorted(n for n in named if n not in NEUTRAL) == sorted(wanted)
            assert not any("state established accept" in r and "reply" not in r for r in said)
            # the last rule matches everything that is left, counts it and refuses it
            assert re.match(r'counter name "\w+" (drop|reject)', said[-1])
            for rule in accepts:
                flow_rule = re.findall(r'comment "(.*)"$', rule)[0] not in NEUTRAL
                assert not flow_rule or re.search(r"(ip|ip6) saddr .* daddr .* [sd]port", rule)
        assert all(f"counter {name} {{" in text for name in COUNTERS)
        assert "ct state established,related" not in text
