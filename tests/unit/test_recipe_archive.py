"""The text files of an apt repository, from control data that may be anything."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.bundle.sources.archive import (
    Control,
    Entry,
    packages_index,
    pool_of,
    release_file,
    sources_file,
)

GOOD = "Package: app\nVersion: 1:2.0-1\nArchitecture: amd64\nDescription: an app\n Long.\n .\n"
DIGEST = "ab" * 32


def test_a_stanza_is_the_package_s_own_and_what_we_found_out() -> None:
    text = GOOD + "Filename: ../../etc/passwd\nSHA256: 00\n 11\nSize: 1\nTag: x\n"
    index = packages_index([Entry(Control.parse(text), DIGEST, 1234)])
    assert index == (
        GOOD + "Tag: x\nFilename: pool/app_2.0-1_amd64.deb\nSize: 1234\n" + f"SHA256: {DIGEST}\n"
    )
    assert pool_of(index) == {DIGEST: "pool/app_2.0-1_amd64.deb"}


def test_one_package_twice_is_refused() -> None:
    other = Entry(Control.parse(GOOD.replace("1:2.0", "2:2.0")), "cd" * 32, 1)
    with pytest.raises(ValueError, match="twice"):
        packages_index([Entry(Control.parse(GOOD), DIGEST, 1), other])


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD.replace("app\n", "../app\n", 1),
        GOOD.replace("1:2.0-1", "2.0/../1"),
        GOOD.replace("amd64", "amd 64"),
        GOOD + "\nPackage: other\nVersion: 1\n",
        GOOD + " \nPackage2: x\n",
        GOOD + "package: again\n",
        GOOD + "X: a\rSHA256: 00\n",
        " starts in the middle\n" + GOOD,
    ],
)
def test_control_data_that_would_say_more_than_one_package_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="control data"):
        Control.parse(text)


@given(st.text("PackgeVrsion:Filnm SHA256\n\t .0a-\r\x0c\u2028", max_size=80))
@example("SHA256: x\n\nFilename: y")
def test_no_control_data_adds_an_entry_of_its_own(more: str) -> None:
    with contextlib.suppress(ValueError):
        index = packages_index([Entry(Control.parse(GOOD + more), DIGEST, 1)])
        assert "\n\n" not in index
        assert pool_of(index) == {DIGEST: "pool/app_2.0-1_amd64.deb"}


def test_the_release_names_the_index_and_the_date() -> None:
    index = packages_index([Entry(Control.parse(GOOD), DIGEST, 1)])
    release = release_file("os", "bookworm", "amd64", 1_700_000_000, index).decode()
    assert "Date: Tue, 14 Nov 2023 22:13:20 UTC\n" in release
    digest = hashlib.sha256(index.encode()).hexdigest()
    assert f" {digest} {len(index.encode())} main/binary-amd64/Packages\n" in release


def test_the_sources_file_carries_the_key_and_trusts_nothing_else() -> None:
    text = sources_file("/srv/x", "bookworm", "amd64", b"-----BEGIN\n\nabc\n-----END\n")
    assert text.endswith("Signed-By:\n -----BEGIN\n .\n abc\n -----END\n")
    assert "URIs: file:/srv/x\n" in text and "Trusted" not in text
