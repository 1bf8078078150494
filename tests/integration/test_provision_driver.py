"""The driver with the real Ansible, on this machine as its only host."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import PlaybookFailed, SiteTaskFailed
from appliance.layout import Home, SitePlace
from appliance.progress import Silent
from appliance.provision import driver
from tests.unit.local_hosts import local_hosts

pytest.importorskip("ansible_runner")

INVENTORY: dict[str, Any] = {
    "all": {
        "hosts": {
            "n1": {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
            }
        }
    }
}


def _playbook(folder: Path, tasks: str) -> Path:
    path = folder / "play.yml"
    head = "- hosts: all\n  gather_facts: false\n  tasks:\n"
    path.write_text(head + textwrap.indent(textwrap.dedent(tasks), "    "))
    return path


def _run(tmp_path: Path, tasks: str, mode: driver.Mode = driver.APPLY) -> driver.Outcome:
    place = SitePlace(Home(tmp_path / "home"), "lab")
    playbook = _playbook(tmp_path, tasks)
    with local_hosts(tmp_path / "connections", "n1") as remotes:
        return driver.run(place, remotes, INVENTORY, Silent(), mode=mode, playbook=playbook)


def test_changes_are_counted_and_foretold_by_check_mode(tmp_path: Path) -> None:
    task = f"""
    - name: Write a file
      ansible.builtin.copy: {{dest: {tmp_path}/made, content: hello, mode: "0600"}}
    """
    foretold = _run(tmp_path, task, driver.CHECK)
    assert foretold.hosts["n1"].changes == ("Write a file",)
    assert not (tmp_path / "made").exists()
    assert _run(tmp_path, task).changed == 1
    assert (tmp_path / "made").read_text() == "hello"
    assert _run(tmp_path, task).changed == 0


def test_a_failure_names_host_task_and_remedy(tmp_path: Path) -> None:
    task = """
    - name: See that there is room
      ansible.builtin.fail: {msg: "Too small. → Buy a larger one."}
    """
    with pytest.raises(SiteTaskFailed) as caught:
        _run(tmp_path, task)
    what, why, fix = caught.value.sentences()
    assert what == "On host n1, 'See that there is room' failed."
    assert (why, fix) == ("Too small.", "Buy a larger one.")


def test_a_playbook_that_is_none_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(PlaybookFailed) as caught:
        _run(tmp_path, "- no.such.module: {}")
    assert "no.such.module" in Path(caught.value.values["log"]).read_text()


def test_the_users_ansible_settings_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANSIBLE_CALLBACKS_ENABLED", "nonsense")
    monkeypatch.setenv("ANSIBLE_STRATEGY", "nonsense")
    monkeypatch.setenv("SECRET_OF_MINE", "hunter2")
    task = """
    - ansible.builtin.command: {cmd: env}
      register: there
    - ansible.builtin.assert:
        that: "'hunter2' not in there.stdout and 'nonsense' not in there.stdout"
    """
    _run(tmp_path, task)
    kept = [p for p in (tmp_path / "home").rglob("*") if p.is_file()]
    assert not [p for p in kept if b"hunter2" in p.read_bytes()]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_us_ends_ansible(tmp_path: Path, how: signal.Signals) -> None:
    playbook = _playbook(
        tmp_path,
        f"""
        - ansible.builtin.shell: {{cmd: "touch {tmp_path}/begun; exec sleep 20"}}
        """,
    )
    script = textwrap.dedent(f"""
        from pathlib import Path
        from appliance.layout import Home, SitePlace
        from appliance.progress import Silent
        from appliance.provision import driver
        from tests.integration.test_provision_driver import INVENTORY
        from tests.unit.local_hosts import local_hosts
        place = SitePlace(Home(Path({str(tmp_path)!r}) / "home"), "lab")
        with local_hosts(Path({str(tmp_path)!r}) / "connections", "n1") as remotes:
            driver.run(place, remotes, INVENTORY, Silent(), playbook=Path({str(playbook)!r}))
    """)
    controller = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    while not (tmp_path / "begun").exists():
        assert controller.poll() is None
        time.sleep(0.05)
    controller.send_signal(how)
    _out, said = controller.communicate()
    if how == signal.SIGINT:
        assert said.rstrip().endswith(b"KeyboardInterrupt")
    while _alive(str(tmp_path)):
        time.sleep(0.05)


def _alive(mark: str) -> list[str]:
    """Command lines of Ansible's processes that name this test's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in line and "ansible" in line:
            found.append(line)
    return found
