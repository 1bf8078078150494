"""Write ``docs/preflight.md`` from the checks themselves, so that the page cannot fall behind.

python -m appliance.provision.checks_page > docs/preflight.md
"""

from __future__ import annotations

import sys

from appliance.provision.checks import CHECKS

_HEAD = """\
# Preflight

<!-- Made by `python -m appliance.provision.checks_page`; do not edit. -->

Before a site is installed, `sovctl plan BUNDLE --site site.yaml` looks at every host at once, and
`sovctl site check site.yaml --hosts` does so without a bundle. Nothing is changed on a host. A
program for its own Python (3.6 or newer, standard library only) is sent over SSH, run as root where
sudo allows it, and ends within eight seconds; the one file it writes, 32 MiB to measure the disk
with, has no name and is gone when it ends. On shared storage one host makes an empty file
`.sovctl-check-…`, the others look for it, and it is removed.

Each check ends in *pass*, *warn* or *fail*, with what to do. A host that cannot be reached is a
failed check; the others are judged all the same. Anything a host cannot tell is a warning. With a
failed check nothing is installed.

| check | fails | warns | remedy |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The page's Markdown, in the order in which checks are shown."""
    rows = (f"| `{c.name}` | {c.fails} | {c.warns} | {c.remedy} |\n" for c in CHECKS)
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    sys.stdout.write(page())
