"""Print ICD-10-CM: ``python icd10cm_extract.py WHEEL`` → lines of ``code<TAB>description``.

Runs by itself, in a process of its own, with nothing but the pinned wheel of simple-icd-10-cm on
its path, so it imports nothing of ours. Leaf codes only, without dots, sorted.
"""

from __future__ import annotations

import sys


def main(wheel: str) -> None:
    """Write the lines to standard output; about two seconds."""
    sys.path.insert(0, wheel)
    import simple_icd_10_cm as icd

    codes = sorted(c for c in icd.get_all_codes(with_dots=False) if icd.is_leaf(c))
    for code in codes:
        if not icd.is_chapter_or_block(code):
            sys.stdout.write(f"{code}\t{' '.join(icd.get_description(code).split())}\n")


if __name__ == "__main__":
    main(sys.argv[1])
