"""Diagnosis text → three-character ICD-10-CM category: a coding task every hospital knows.

    {"prompt": "Diagnosis: Typhoid fever with heart involvement\\nICD-10-CM category:",
     "completion": " A01"}

The prompt ends where the answer starts and the completion begins with the space, so that both
tokenise alike apart and together. Of 74,000 leaf codes two thirds are injuries and their external
causes, told apart by side, finger and encounter; drawn evenly they would teach a model to answer
"S". So rows are dealt out **by category**: training takes one leaf code of every category, then a
second of every category that has one, and so on, until there are enough. Held-out rows are dealt
out by first letter, at most one a category, from categories that training knows by other codes:
what a coder does all day is put a new text into a known category.

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
        diagnoses, key=lambda d: hashlib.sha256(f"{source.seed}:{d.code}".encode()).digest()
    )
    heldout = tuple(islice(_dealt(_askable(drawn), key=lambda d: d.letter), source.heldout))
    stems = {d.stem for d in heldout}
    texts = {d.text for d in heldout}
    apart = [d for d in drawn if d.stem not in stems and d.text not in texts]
    train = tuple(islice(_dealt(apart, key=lambda d: d.category), source.train))
    if len(heldout) < source.heldout or len(train) < source.train:
        raise ValueError(f"{len(drawn)} codes are too few for the rows wanted")
    return Split(train, heldout)


def _askable(drawn: Sequence[Diagnosis]) -> list[Diagnosis]:
    """The first code of each category of which something is left to learn from.

    That is a code with other first six characters and a text that is in no other category's reach:
    texts are compared with those of all codes, so that no held-out text takes rows from training.
    """
    stems: dict[str, set[str]] = defaultdict(set)
    for diagnosis in drawn:
        stems[diagnosis.category].add(diagnosis.stem)
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

    Injuries are two fifths of all codes, so a chapter letter is easy to guess; a tuned model must
    beat this to have learnt something.
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
        "split": "held-out rows share neither text nor first six characters with training rows",
        "digests": dict(digests),
    }
