"""The journal survives being torn anywhere, and the lock any death of its holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import Busy, JournalDamaged
from appliance.install import lock
from appliance.install.journal import Entry, Journal, find_unfinished, parse
from appliance.layout import Home

NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)

entries = st.builds(
    Entry,
    plan=st.text(max_size=8),
    phase=st.sampled_from(["", "blobs", "runtime", "start"]),
    mark=st.sampled_from(["begin", "intent", "done", "failed", "end", "given-up"]),
    at=st.just(NOW),
    release=st.text(max_size=8),
    replaces=st.none() | st.text(max_size=8),
    reason=st.text(max_size=20),
)


@given(st.lists(entries, max_size=5), entries, st.data())
def test_a_journal_torn_at_any_byte_reads_as_its_whole_lines_and_goes_on(
    written: list[Entry], after: Entry, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "install.jsonl")
        for entry in written:
            journal.append(entry)
        whole = journal.path.read_bytes() if written else b""
        cut = data.draw(st.integers(0, len(whole)))
        journal.path.write_bytes(whole[:cut])

        kept = journal.entries()
        assert kept == written[: whole[:cut].count(b"\n")]
        journal.append(after)
        assert journal.entries() == [*kept, after]


@given(st.binary(max_size=200))
def test_no_bytes_are_read_as_anything_but_entries_or_a_named_damage(garbage: bytes) -> None:
    try:
        parse(garbage, Path("j"))
    except JournalDamaged as error:
        assert error.code == "journal-damaged"


def test_damage_before_the_last_line_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for mark in ("begin", "end"):
        journal.append(Entry(plan="p", mark=mark, at=NOW))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole.replace(b'"begin"', b'"begun"'))
    with pytest.raises(JournalDamaged, match="journal-damaged"):
        journal.entries()


def test_an_interrupted_plan_is_remembered_with_what_it_replaces() -> None:
    begin = Entry(plan="p", mark="begin", at=NOW, release="b-2", replaces="b-1")
    intent = Entry(plan="p", mark="intent", phase="start", at=NOW)
    found = find_unfinished([begin, intent])
    assert found is not None
    assert (found.release, found.replaces, found.open_phases) == ("b-2", "b-1", {"start"})
    done = Entry(plan="p", mark="done", phase="start", at=NOW)
    resumed = find_unfinished([begin, intent, begin])
    assert resumed is not None
    assert resumed.open_phases == {"start"}
    assert find_unfinished([begin, intent, begin, done]) == replace(
        resumed, open_phases=frozenset()
    )
    for closing in ("end", "given-up"):
        assert find_unfinished([begin, intent, Entry(plan="p", mark=closing, at=NOW)]) is None


_HOLD = """
import sys, time
from pathlib import Path
from appliance.install import lock
from appliance.layout import Home
with lock.hold(Home(Path(sys.argv[1])), "install b.tar"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_command_is_told_who_holds_the_lock_and_kill_9_releases_it(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "home")
    with subprocess.Popen([sys.executable, "-c", _HOLD, home.root], stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"held\n"
        with pytest.raises(Busy) as refused, lock.hold(home, "install c.tar"):
            pass
        assert refused.value.values["pid"] == str(it.pid)
        assert refused.value.values["command"] == "install b.tar"
        assert lock.holder(home) == lock.Holder(it.pid, "install b.tar")
        os.kill(it.pid, signal.SIGKILL)
    assert lock.holder(home) is None
    with lock.hold(home, "install c.tar"):
        assert lock.holder(home) == lock.Holder(os.getpid(), "install c.tar")


def test_a_lock_whose_file_was_removed_is_not_trusted(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with lock.hold(home, "uninstall"):
        home.lock.unlink()
        with lock.hold(home, "install"):
            assert home.lock.exists()
