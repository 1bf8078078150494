"""Diagnosis text → three-character ICD-10-CM category: a coding task every hospital knows.

    {"prompt": "Diagnosis: Typhoid fever with heart involvement\\nICD-10-CM category:",
     "completion": " A01"}

The prompt ends where the answer starts and the completion begins with the space, so that both
tokenise alike apart and together.

Of 74,000 leaf codes more than half are injuries, told apart by side, finger and encounter; drawn
evenly they would teach a model to answer "S". So rows come from the four most finely divided
categories of each letter, some hundred categories in all, as many as a small model can learn in a
few minutes, and are dealt out **by category**: one leaf code of each, then a second of each that
has one, and so on, until there are enough. Held-out rows are dealt out by letter, at most one a
category, from categories that training knows by other codes: what a coder does all day is put a new
text into a known category.

Leaf codes that differ only in their seventh character (initial encounter, sequela, …) say nearly
the same. They are kept on one side: a held-out row shares its first six characters, and its text,
with no training row. Everything is dealt in the order of SHA-256(seed, code): the same on every
machine and Python.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

from appliance.bundle.licences import licence_texts
from appliance.bundle.sources import icd10cm_extract
from appliance.bundle.sources.desk import Desk, Made, collect
from appliance.bundle.sources.pins import PinnedPackage
from appliance.bundle.sources.wheels import fetch
from appliance.errors import BuildStepFailed
from appliance.i18n import _
from appliance.manifests.recipe import ArtefactRecipe, DatasetSource

FORMAT = 3  # part of the cache's key: raise it when the rows come out differently

CATEGORIES_PER_LETTER = 4


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A leaf code without its dot (``S42447S``) and its description."""

    code: str
    text: str

    @property
    def stem(self) -> str:
        """What siblings that differ only in the seventh character have in common."""
        return self.code[:6]

    @property
    def category(self) -> str:
        """The first three characters, which are what is asked for."""
        return self.code[:3]

    @property
    def letter(self) -> str:
        """The first character, which for nearly all codes names the chapter."""
        return self.code[0]

    def row(self) -> dict[str, str]:
        """The training row."""
        prompt = f"Diagnosis: {self.text}\nICD-10-CM category:"
        return {"prompt": prompt, "completion": f" {self.category}"}


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows to judge by."""

    train: tuple[Diagnosis, ...]
    heldout: tuple[Diagnosis, ...]


def split(diagnoses: Iterable[Diagnosis], source: DatasetSource) -> Split:
    """Deal out ``source.heldout`` and ``source.train`` rows. Raises ``ValueError`` if too few."""
    drawn = sorted(
        _finely_divided(diagnoses),
        key=lambda d: hashlib.sha256(f"{source.seed}:{d.code}".encode()).digest(),
    )
    heldout = tuple(islice(_dealt(_askable(drawn), key=lambda d: d.letter), source.heldout))
    stems = {d.stem for d in heldout}
    texts = {d.text for d in heldout}
    apart = [d for d in drawn if d.stem not in stems and d.text not in texts]
    train = tuple(islice(_dealt(apart, key=lambda d: d.category), source.train))
    if len(heldout) < source.heldout or len(train) < source.train:
        raise ValueError(f"{len(drawn)} codes are too few for the rows wanted")
    return Split(train, heldout)


def _finely_divided(diagnoses: Iterable[Diagnosis]) -> list[Diagnosis]:
    """The codes of those categories of each letter that have the most stems."""
    everything = list(diagnoses)
    stems = _stems(everything)
    kept: set[str] = set()
    for letter in {category[0] for category in stems}:
        of_letter = [category for category in stems if category[0] == letter]
        of_letter.sort(key=lambda category: (-len(stems[category]), category))
        kept.update(of_letter[:CATEGORIES_PER_LETTER])
    return [d for d in everything if d.category in kept]


def _stems(diagnoses: Iterable[Diagnosis]) -> dict[str, set[str]]:
    stems: dict[str, set[str]] = defaultdict(set)
    for diagnosis in diagnoses:
        stems[diagnosis.category].add(diagnosis.stem)
    return stems


def _askable(drawn: Sequence[Diagnosis]) -> list[Diagnosis]:
    """The first code of each category that may be held out.

    Its category has other stems to learn from, and no other code has its text, so that a held-out
    row takes no rows but its siblings' from training.
    """
    stems = _stems(drawn)
    uses = Counter(d.text for d in drawn)
    first: dict[str, Diagnosis] = {}
    for diagnosis in drawn:
        if len(stems[diagnosis.category]) > 1 and uses[diagnosis.text] == 1:
            first.setdefault(diagnosis.category, diagnosis)
    return list(first.values())


def _dealt(drawn: Iterable[Diagnosis], key: Callable[[Diagnosis], str]) -> Iterator[Diagnosis]:
    """One of each group, then another of each that has one, …; groups in order of their key."""
    groups: dict[str, list[Diagnosis]] = defaultdict(list)
    for diagnosis in drawn:
        groups[key(diagnosis)].append(diagnosis)
    for round_ in zip_longest(*(groups[name] for name in sorted(groups))):
        yield from (diagnosis for diagnosis in round_ if diagnosis is not None)


def make(recipe: ArtefactRecipe, source: DatasetSource, desk: Desk) -> Made:
    """Fetch the code list, draw the rows (once) and digest them."""
    pin = PinnedPackage.of(source.wheel, source.sha256)
    wheel = fetch([pin], desk)[pin]
    inputs: dict[str, str | int] = {
        "format": FORMAT,
        "card": json.dumps(_card(recipe, source, {}), sort_keys=True),
    }
    folder = desk.cache.make(
        recipe.name, inputs, lambda out: _write(recipe, source, wheel, out, desk)
    )
    title = _("Digesting {name}").format(name=recipe.name)
    attributes = {
        "train_rows": str(source.train),
        "heldout_rows": str(source.heldout),
        "seed": str(source.seed),
        "source": f"pypi:{source.wheel}",
    }
    return Made(collect(folder, desk, title), attributes)


def _write(
    recipe: ArtefactRecipe, source: DatasetSource, wheel: Path, out: Path, desk: Desk
) -> None:
    rows = split(_extract(recipe, wheel, desk), source)
    files = {
        "train.jsonl": _json_lines(rows.train),
        "heldout.jsonl": _json_lines(rows.heldout),
    }
    digests = {name: "sha256:" + hashlib.sha256(data).hexdigest() for name, data in files.items()}
    described = {**_card(recipe, source, digests), "baseline": _baseline(rows)}
    card = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    for name, data in {**files, "card.json": card.encode()}.items():
        (out / name).write_bytes(data)
    for text in licence_texts(wheel)[:1]:
        (out / "LICENSE").write_bytes(text)


def _extract(recipe: ArtefactRecipe, wheel: Path, desk: Desk) -> list[Diagnosis]:
    title = _("Reading the ICD-10-CM code list")
    script = str(Path(icd10cm_extract.__file__))
    with desk.cache.scratch() as folder, desk.progress.task(title, None, "items") as task:
        listing = folder / "codes.tsv"
        with listing.open("wb") as out:
            done = subprocess.run(
                [sys.executable, "-I", script, str(wheel)],
                stdout=out, stderr=subprocess.PIPE, check=False,
            )  # fmt: skip
        if done.returncode:
            log = desk.cache.root / f"failed-{recipe.name}.log"
            log.write_bytes(done.stderr)
            reason = done.stderr.decode(errors="replace").strip()[-300:]
            raise BuildStepFailed(artefact=recipe.name, step=title, reason=reason, log=log)
        lines = listing.read_text(encoding="utf-8").splitlines()
        task.advance(len(lines))
    return [Diagnosis(*line.split("\t", 1)) for line in lines]


def _json_lines(diagnoses: Sequence[Diagnosis]) -> bytes:
    lines = (json.dumps(diagnosis.row(), ensure_ascii=False) + "\n" for diagnosis in diagnoses)
    return "".join(lines).encode()


def _baseline(rows: Split) -> dict[str, object]:
    """What always giving the commonest answer of the training rows scores on the held-out rows.

    A tuned model must beat this to have learnt something.
    """
    scores: dict[str, object] = {}
    for part, length in (("letter", 1), ("category", 3)):
        commonest, _n = Counter(d.code[:length] for d in rows.train).most_common(1)[0]
        right = sum(d.code[:length] == commonest for d in rows.heldout)
        scores[part] = {"answer": commonest, "right": round(right / len(rows.heldout), 4)}
    return scores


def _card(
    recipe: ArtefactRecipe, source: DatasetSource, digests: Mapping[str, str]
) -> dict[str, object]:
    return {
        "name": recipe.name,
        "version": recipe.version,
        "description": recipe.description,
        "licence": recipe.licence,
        "language": "en",
        "task": "completion",
        "source": {"package": f"pypi:{source.wheel}", "digest": f"sha256:{source.sha256}"},
        "seed": source.seed,
        "rows": {"train": source.train, "heldout": source.heldout},
        "categories": f"the {CATEGORIES_PER_LETTER} most finely divided of each letter",
        "split": (
            "held-out rows share their category with training rows, but neither text nor first six "
            "characters"
        ),
        "digests": dict(digests),
    }
