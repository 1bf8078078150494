"""Ansible module ``sovctl.host.files``: several text files of root's, in one round trip to a host.

Ansible's own ``copy`` and ``template`` look at a file, then set its attributes, one file a task:
two programs started per file and host. Half of a site's tasks were files, and on a run that changes
nothing they took half of its time (docs/benchmarks.md).
"""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: files
short_description: Write several text files of root's in one round trip
description:
  - Writes each file whose content differs, in the order given, replacing it in one step.
  - A file is owned by root and root. Folders that are missing are made, for everybody to read.
  - A symbolic link in a file's place is replaced, never followed.
  - If a file is refused by its C(validate), those before it are written and those after it are not.
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where it goes; absolute.
        type: str
        required: true
      content:
        description: All of its text.
        type: str
        required: true
      mode:
        description: Permissions, in octal.
        type: str
        default: "0644"
      validate:
        description:
          - A command that must succeed on the new file, C(%s), before it is put in place.
          - It runs only when the content differs, so it may also make the file take effect.
        type: str
      in_place:
        description: Write over the file where it cannot be replaced, because it is a mount.
        type: bool
        default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The Sovereign Appliance project
"""

EXAMPLES = r"""
- name: Write what chrony reads
  sovctl.host.files:
    files:
      - path: /etc/chrony/sovctl.conf
        content: "{{ lookup('ansible.builtin.template', 'sovctl.conf') }}"
      - path: /usr/local/sbin/tool
        content: "{{ lookup('ansible.builtin.file', 'tool', rstrip=false) }}"
        mode: "0755"
"""

RETURN = r"""
paths:
  description: The files that were written or given other attributes, or would be.
  type: list
  elements: str
  returned: success
"""

_OPTIONS = {
    "path": {"type": "str", "required": True},
    "content": {"type": "str", "required": True},
    "mode": {"type": "str", "default": "0644"},
    "validate": {"type": "str"},
    "in_place": {"type": "bool", "default": False},
}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True, "options": _OPTIONS}
        },
        supports_check_mode=True,
    )
    paths: list[str] = []
    diffs: list[dict[str, str]] = []
    for file in module.params["files"]:
        try:
            changed = _write(module, file, diffs)
        except OSError as problem:
            module.fail_json(msg=f"{file['path']}: {problem.strerror or problem}")
        if changed:
            paths.append(file["path"])
    module.exit_json(changed=bool(paths), paths=paths, diff=diffs)


def _write(module: Any, file: dict[str, Any], diffs: list[dict[str, str]]) -> bool:
    """Make one file what it should be; whether that took, or would take, anything."""
    path, wanted = Path(file["path"]), file["content"].encode()
    if not path.is_absolute():
        module.fail_json(msg=f"{path}: not an absolute path")
    before = _content(path)
    changed = before != wanted
    if changed:
        diffs.append(
            {
                "before_header": str(path),
                "after_header": str(path),
                "before": (before or b"").decode(errors="replace"),
                "after": file["content"],
            }
        )
        if module.check_mode:
            return True
        _replace(module, path, file, wanted)
    changed = module.set_mode_if_different(str(path), file["mode"], changed)
    changed = module.set_owner_if_different(str(path), "root", changed)
    return bool(module.set_group_if_different(str(path), "root", changed))


def _content(path: Path) -> bytes | None:
    """What is in a file; None if none is there, or a link is in its place."""
    if path.is_symlink():
        return None
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _replace(module: Any, path: Path, file: dict[str, Any], content: bytes) -> None:
    handle, new = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(handle, "wb") as out:
        out.write(content)
    if file["validate"]:
        command = [word.replace("%s", new) for word in shlex.split(file["validate"])]
        status, said, complained = module.run_command(command)
        if status:
            reason = " ".join((complained or said).split()) or f"status {status}"
            module.fail_json(msg=f"{path} would not do: {reason}", rc=status)
    os.umask(0o022)  # whatever the operator's is
    path.parent.mkdir(parents=True, exist_ok=True)
    os.umask(0o077)  # a new file is nobody else's until it has its mode
    module.atomic_move(new, str(path), unsafe_writes=file["in_place"])


if __name__ == "__main__":
    main()
