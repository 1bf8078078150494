"""Write ``docs/errors.md`` from the errors themselves, so that the page cannot fall behind.

    python -m appliance.errors_page > docs/errors.md

A test compares the page with what this prints.
"""

from __future__ import annotations

import re
import sys
from string import Formatter

from appliance.errors import ApplianceError, ExitCode

_MEANING: dict[ExitCode, str] = {
    ExitCode.OK: "It was done.",
    ExitCode.INTERNAL: "A defect of `sovctl`.",
    ExitCode.USAGE: "The command line, or a file you wrote, is wrong.",
    ExitCode.REFUSED: "Refused for safety: unsigned, tampered, expired, or not authorised.",
    ExitCode.PRECONDITION: "The machine is not fit for it: space, kernel, platform.",
    ExitCode.NOT_FOUND: "There is nothing of that name here.",
    ExitCode.BUSY: "Another `sovctl` is at work.",
    ExitCode.FAILED: "It was started and did not succeed.",
    ExitCode.VERDICT: "A check ran, and its answer is no.",
    ExitCode.INTERRUPTED: "You interrupted it.",
}

_HEAD = """\
# Errors

<!-- Made by `python -m appliance.errors_page`; do not edit. -->

Every error has a code, which stays the same from release to release, and an exit status. With
`--json` an error is `{"error": {"code", "what", "why", "fix", "fields"}}` on standard error. Words
in *italics* below are filled in by the message itself.

## Exit statuses

| status | name | meaning |
| --- | --- | --- |
"""


def page(errors: dict[str, type[ApplianceError]]) -> str:
    """The page's Markdown, errors by code."""
    statuses = "".join(
        f"| {int(code)} | `{code.name}` | {meaning} |\n" for code, meaning in _MEANING.items()
    )
    entries = "".join(_entry(errors[code]) for code in sorted(errors))
    return f"{_HEAD}{statuses}\n## Codes\n{entries}"


def _entry(error: type[ApplianceError]) -> str:
    status = f"{int(error.exit_code)} (`{error.exit_code.name}`)"
    lines = [f"**{_filled_in(error.what)}**", _filled_in(error.why), f"→ {_filled_in(error.fix)}"]
    return f"\n### {error.code}\n\nExit status {status}.\n\n" + "\n\n".join(lines) + "\n"


def _filled_in(template: str) -> str:
    """A template as Markdown: its fields in italics, its commands as code."""
    commands = re.sub(r"'(sovctl [^']*)'", r"`\1`", template.replace("<", "&lt;"))
    fields = (name for _text, name, _spec, _conversion in Formatter().parse(commands) if name)
    return commands.format(**{name: f"*{name}*" for name in fields})


if __name__ == "__main__":
    sys.stdout.write(page(ApplianceError.catalogue))
