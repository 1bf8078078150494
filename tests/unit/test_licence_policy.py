"""Which SPDX expressions a policy forbids."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.bundle.licence_policy import (
    POLICY_PROPERTY,
    Licensed,
    as_property,
    judge,
    licensed_in,
    policy_in,
)
from appliance.bundle.licences import licence_of_debian
from appliance.manifests.recipe import LicenceException, LicencePolicy


def verdict(expression: str, **policy: Any) -> str:
    component = Licensed("wheel", "thing", "1.0", expression, "" if expression else "ask us")
    return judge([component], LicencePolicy(**policy))[0].verdict


@pytest.mark.parametrize(
    ("expression", "deny", "expected"),
    [
        ("MIT", ["GPL-*"], "allowed"),
        ("GPL-3.0-only", ["GPL-*"], "denied"),
        ("AGPL-3.0-only", ["GPL-*"], "allowed"),
        ("AGPL-3.0-only", ["*GPL-*"], "denied"),
        ("gpl-3.0-ONLY", ["Gpl-3.0-only"], "denied"),
        ("MIT OR GPL-3.0-only", ["GPL-*"], "allowed"),
        ("AGPL-3.0-only OR GPL-3.0-only", ["*GPL*"], "denied"),
        ("MIT AND GPL-3.0-only", ["GPL-*"], "denied"),
        ("(MIT OR GPL-2.0-only) AND (ISC OR GPL-3.0-only)", ["GPL-*"], "allowed"),
        ("(MIT AND GPL-2.0-only) OR (ISC AND GPL-3.0-only)", ["GPL-*"], "denied"),
        ("GPL-3.0", ["GPL-3.0-only"], "denied"),  # the old names
        ("GPL-3.0-only", ["GPL-3.0"], "denied"),
        ("GPL-2.0+", ["GPL-2.0-or-later"], "denied"),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", ["GPL-*"], "denied"),
        ("GPL-3.0-or-later", ["* WITH *"], "allowed"),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", ["* WITH GCC-*"], "denied"),
        ("LicenseRef-Proprietary", ["LicenseRef-*"], "denied"),
        ("LicenseRef-MIT-Discord", ["LicenseRef-*"], "denied"),  # others call that plain MIT
    ],
)
def test_an_expression_is_denied_where_no_way_through_it_is_left(
    expression: str, deny: list[str], expected: str
) -> None:
    assert verdict(expression, deny=deny) == expected


def test_an_allowed_exception_outweighs_what_is_denied() -> None:
    policy = {"deny": ["GPL-*"], "allow": ["* WITH GCC-exception-3.1"]}
    assert verdict("GPL-3.0-or-later WITH GCC-exception-3.1", **policy) == "allowed"
    assert verdict("GPL-3.0-or-later WITH Bison-exception-2.2", **policy) == "denied"
    assert verdict("GPL-3.0-or-later", **policy) == "denied"


@pytest.mark.parametrize("expression", ["", "NOASSERTION", "No Such Licence", "MIT AND"])
def test_what_is_no_expression_is_unknown(expression: str) -> None:
    assert verdict(expression, deny=["GPL-*"]) == "allowed"
    assert verdict(expression, unknown="deny") == "denied"


@pytest.mark.parametrize("name", ["thing", "THING", "thing==1.0"])
def test_a_component_that_is_excepted_keeps_the_reason(name: str) -> None:
    policy = LicencePolicy(
        deny=("GPL-*",), exceptions=(LicenceException(component=name, reason="our own fork"),)
    )
    (judged,) = judge([Licensed("wheel", "thing", "1.0", "GPL-3.0-only")], policy)
    assert (judged.verdict, judged.reason) == ("excepted", "our own fork")
    assert judge([Licensed("wheel", "other", "1.0", "GPL-3.0-only")], policy)[0].verdict == "denied"


@pytest.mark.parametrize(
    ("kind", "expression", "expected"),
    [
        ("deb", "MIT AND GPL-2.0-or-later", "excepted"),
        ("deb", "AGPL-3.0-only AND GPL-2.0-or-later", "denied"),  # not among its licences
        ("wheel", "GPL-2.0-or-later", "denied"),  # a kind opens no other
        ("deb", "MIT", "allowed"),
    ],
)
def test_a_kind_is_excepted_from_the_licences_it_names(
    kind: str, expression: str, expected: str
) -> None:
    policy = LicencePolicy.model_validate(
        {
            "deny": ["AGPL-*", "GPL-*"],
            "except": [{"kind": "deb", "licences": ["GPL-*"], "reason": "the system's own"}],
        }
    )
    assert judge([Licensed(kind, "thing", "1.0", expression)], policy)[0].verdict == expected


def test_an_exception_says_what_it_is_for() -> None:
    with pytest.raises(ValueError, match="component"):
        LicenceException(reason="because")


_LICENCES = st.sampled_from(["MIT", "ISC", "GPL-3.0-only", "AGPL-3.0-only"])
_EXPRESSIONS = st.recursive(
    _LICENCES,
    lambda inner: st.tuples(inner, st.sampled_from(["AND", "OR"]), inner),
    max_leaves=8,
)


@given(_EXPRESSIONS)
def test_and_and_or_mean_what_they_say(tree: Any) -> None:
    def text(node: Any) -> str:
        return node if isinstance(node, str) else f"({text(node[0])} {node[1]} {text(node[2])})"

    def fine(node: Any) -> bool:
        if isinstance(node, str):
            return "GPL" not in node
        left, right = fine(node[0]), fine(node[2])
        return (left and right) if node[1] == "AND" else (left or right)

    assert verdict(text(tree), deny=["*GPL*"]) == ("allowed" if fine(tree) else "denied")


def test_the_policy_travels_in_the_bill() -> None:
    policy = LicencePolicy(
        deny=("GPL-*",), exceptions=(LicenceException(component="a", reason="é"),)
    )
    properties = [{"name": POLICY_PROPERTY, "value": as_property(policy)}]
    assert policy_in(json.dumps({"metadata": {"properties": properties}}).encode()) == policy
    assert policy_in(b'{"bomFormat":"CycloneDX"}') is None
    assert licensed_in(b'{"bomFormat":"CycloneDX"}') == ()


def test_a_bill_that_names_several_licences_means_all_of_them() -> None:
    def terms(*licences: dict[str, Any]) -> tuple[str, str]:
        component = {"bom-ref": "wheel/a", "name": "a", "licenses": licences}
        (found,) = licensed_in(json.dumps({"components": [component]}).encode())
        return found.expression, found.stated

    assert terms({"license": {"name": "LicenseRef-ours"}}) == ("LicenseRef-ours", "")
    assert terms({"expression": "MIT OR ISC"}) == ("MIT OR ISC", "")
    both = terms({"license": {"id": "MIT"}}, {"license": {"id": "GPL-3.0-only"}})
    assert both == ("(MIT) AND (GPL-3.0-only)", "")
    assert terms({"license": {"id": "MIT"}}, {"license": {"name": "ask us"}}) == ("", "MIT, ask us")
    assert terms() == ("", "")


@pytest.mark.parametrize(
    ("names", "expression"),
    [
        (("GPL-2+",), "GPL-2.0-or-later"),
        (("LGPL-2.1", "Expat"), "LGPL-2.1-only AND MIT"),
        (("GPL-1+ or Artistic",), "(GPL-1.0-or-later OR Artistic-1.0-Perl)"),
        (("Artistic or GPL-1+", "BSD-3-clause"), None),
        (("public-domain", "AGPL-3"), "LicenseRef-debian-public-domain AND AGPL-3.0-only"),
    ],
)
def test_debians_names_of_licences_become_spdx(
    names: tuple[str, ...], expression: str | None
) -> None:
    licence = licence_of_debian(names)
    assert licence.expression
    if expression is not None:
        assert licence.expression == expression
    denied = verdict(licence.expression, deny=["AGPL-*"]) == "denied"
    assert denied == ("AGPL-3" in names)
