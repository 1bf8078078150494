"""Sources on the web, against a real server on 127.0.0.1 that speaks the hub's API."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, hub

from appliance.bundle.cache import BuildCache
from appliance.bundle.sources import huggingface, urls
from appliance.bundle.sources.desk import Desk, Made
from appliance.bundle.sources.download import Patience, Sha256, Wanted, Web
from appliance.errors import (
    ApplianceError,
    DownloadMismatch,
    SourceMissing,
    SourceRefused,
    SourceUnreachable,
    TokenMissing,
    WeightsRefused,
)
from appliance.manifests.bundle import Platform
from appliance.manifests.recipe import ArtefactRecipe, HuggingfaceSource, UrlFile, UrlSource
from appliance.progress import Silent

LINUX = Platform(python="3.11", system="linux", machine="x86_64")
QUICK = Patience(first=0.01, longest=0.01, silence=20)


def safetensors(size: int) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(size).randbytes(size)


MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": safetensors(300_000),
    "nested/é tokenizer.json": b"[]" * 2000,
    "README.md": b"# A model\n",
}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as running:
        yield running


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "bundle.yaml", LINUX, BuildCache(tmp_path / "cache"), 1, Silent())


def recipe(source: UrlSource | HuggingfaceSource) -> ArtefactRecipe:
    return ArtefactRecipe(kind="model", name="toy", version="1", licence="MIT", source=source)


def snapshot(server: Hub, desk: Desk, **options: object) -> Made:
    source = HuggingfaceSource(
        type="huggingface",
        repo="acme/toy",
        endpoint=server.url,
        **options,  # type: ignore[arg-type]
    )
    return huggingface.make(recipe(source), source, desk)


def content(made: Made) -> dict[str, bytes]:
    return {file.path: file.content.location.read_bytes() for file in made.files}


# --- the hub --------------------------------------------------------------------------------------


def test_a_snapshot_is_what_the_hubs_own_client_gets(
    server: Hub, desk: Desk, tmp_path: Path
) -> None:
    commit = server.repo("acme/toy").commit(MODEL)
    made = snapshot(server, desk)
    assert made.inputs == {"commit": commit}
    assert content(made) == MODEL
    assert all(hashlib.sha256(MODEL[f.path]).hexdigest() == f.content.hex for f in made.files)

    script = (
        "import sys; from huggingface_hub import snapshot_download; "
        "print(snapshot_download('acme/toy', endpoint=sys.argv[1], cache_dir=sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, server.url, str(tmp_path / "hf")],
        env={"PATH": "", "HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1",
             "HF_HUB_DISABLE_XET": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert folder.name == commit
    theirs = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    assert theirs == MODEL


def test_patterns_choose_and_must_leave_something(server: Hub, desk: Desk) -> None:
    server.repo("acme/toy").commit({**MODEL, "pytorch_model.bin": b"\x80\x02."})
    made = snapshot(server, desk, allow=("*.safetensors", "nested/", "*.json"), deny=("config*",))
    assert sorted(content(made)) == ["model.safetensors", "nested/é tokenizer.json"]
    with pytest.raises(SourceMissing):
        snapshot(server, desk, allow=("*.nothing",))


@pytest.mark.parametrize(
    ("path", "data", "says"),
    [
        ("pytorch_model.bin", b"\x80\x02.", "runs the program"),
        ("model.onnx", b"onnx", "only safetensors"),
        ("modeling_toy.py", b"import os", "is code"),
        ("weights.dat", b"\x80\x04\x95pickle", "under another name"),
        ("weights.dat", b"PK\x03\x04" + bytes(2000), "archive"),
        ("b.safetensors", b"\x80\x02" + bytes(3000), "not a JSON object"),
        ("b.safetensors", safetensors(2000)[:-1], "2000 bytes, and 1999 follow"),
    ],
)
def test_what_runs_is_refused_with_the_reason(
    server: Hub, desk: Desk, path: str, data: bytes, says: str
) -> None:
    server.repo("acme/toy").commit({**MODEL, path: data})
    with pytest.raises(WeightsRefused) as caught:
        snapshot(server, desk)
    assert caught.value.values["file"] == path
    assert says in caught.value.sentences()[1]


def test_an_unknown_repository_and_a_wrong_token_are_said_plainly(
    server: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceRefused) as caught:
        snapshot(server, desk)
    assert "404" in caught.value.values["reason"]
    server.repo("acme/toy").commit(MODEL)
    server.token = "hf_right"
    with pytest.raises(SourceRefused) as caught:
        snapshot(server, desk)
    assert "401" in caught.value.values["reason"]
    with pytest.raises(TokenMissing):
        snapshot(server, desk, token_env="TOY_TOKEN")
    monkeypatch.setenv("TOY_TOKEN", "hf_wrong")
    with pytest.raises(SourceRefused) as caught:
        snapshot(server, desk, token_env="TOY_TOKEN")
    assert "hf_wrong" not in " ".join(caught.value.sentences()) + repr(caught.value)


def test_the_token_goes_to_the_hub_and_to_nobody_it_redirects_to(server: Hub, desk: Desk) -> None:
    with hub() as elsewhere:
        server.repo("acme/toy").commit({"model.safetensors": safetensors(5000)})
        server.token = "hf_right"
        secret = desk.path("token")
        secret.write_text("hf_right\n")
        sha256 = hashlib.sha256(safetensors(5000)).hexdigest()
        server.faults["model.safetensors"] = [f"to:{elsewhere.url}/moved?Signature=SECRET"]
        elsewhere.files["/moved"] = safetensors(5000)
        made = snapshot(server, desk, token_file="token")
        assert made.files[0].content.hex == sha256
        assert {token for _m, path, token in server.seen if "/api/" in path} == {"Bearer hf_right"}
        assert elsewhere.seen == [("GET", "/moved", "")]
        assert {token for _m, path, token in server.seen if "/cdn/" in path} == {""}


# --- the downloader -------------------------------------------------------------------------------

DATA = random.Random(1).randbytes(3_000_000)
HEX = hashlib.sha256(DATA).hexdigest()


def fetch(server: Hub, desk: Desk, *faults: str, size: int | None = None) -> bytes:
    server.files["/file"] = DATA
    server.faults["/file"] = list(faults)
    wanted = Wanted("file", f"{server.url}/file?Signature=SECRET", Sha256(HEX), size)
    try:
        with Web(desk.cache, patience=QUICK) as web:
            (found,) = web.fetch_all([wanted], desk, "Fetching")
    except ApplianceError as error:
        assert "SECRET" not in " ".join(error.sentences()) + repr(error)
        raise
    return found.location.read_bytes()


def test_a_download_cut_off_again_and_again_goes_on_where_it_stopped(
    server: Hub, desk: Desk
) -> None:
    assert fetch(server, desk, "cut", "busy", "cut", "cut") == DATA
    assert server.ranges == [
        "bytes=1500000-", "bytes=1500000-", "bytes=2250000-", "bytes=2625000-"
    ]  # fmt: skip
    assert not list(desk.cache.partial.iterdir())


def test_the_next_run_goes_on_where_a_run_that_gave_up_stopped(server: Hub, desk: Desk) -> None:
    with pytest.raises(SourceUnreachable) as caught:
        fetch(server, desk, "cut", *["busy"] * 5)
    assert "503" in caught.value.values["reason"]
    assert fetch(server, desk) == DATA
    assert server.ranges[-1] == "bytes=1500000-"
    before = len(server.seen)
    assert fetch(server, desk) == DATA  # from the cache
    assert len(server.seen) == before


def test_a_server_without_ranges_sends_it_again(server: Hub, desk: Desk) -> None:
    assert fetch(server, desk, "cut", "no-ranges") == DATA


def test_halves_of_two_files_are_fetched_anew_and_not_believed(server: Hub, desk: Desk) -> None:
    assert fetch(server, desk, "cut", "other") == DATA
    with pytest.raises(DownloadMismatch):
        fetch_other(server, desk)


def fetch_other(server: Hub, desk: Desk) -> None:
    server.files["/other"] = bytes(5000)
    wanted = Wanted("other", f"{server.url}/other", Sha256("0" * 64))
    with Web(desk.cache, patience=QUICK) as web:
        web.fetch_all([wanted], desk, "Fetching")


@pytest.mark.parametrize("fault", ["longer", "endless"])
def test_more_than_was_announced_is_not_taken(server: Hub, desk: Desk, fault: str) -> None:
    with pytest.raises(DownloadMismatch):
        fetch(server, desk, fault, size=len(DATA))
    assert not list(desk.cache.partial.iterdir())
    assert not list(desk.cache.files.iterdir())


@pytest.mark.parametrize(
    "target",
    ["http://192.0.2.1/file", "file:///etc/passwd", "ftp://127.0.0.1/x", "https://u:p@127.0.0.1/"],
)
def test_it_does_not_follow_to_where_it_should_not(server: Hub, desk: Desk, target: str) -> None:
    with pytest.raises(SourceRefused) as caught:
        fetch(server, desk, f"to:{target}")
    assert "u:p" not in " ".join(caught.value.sentences())


def test_circles_end(server: Hub, desk: Desk) -> None:
    with pytest.raises(SourceRefused) as caught:
        fetch(server, desk, *[f"to:{server.url}/file"] * 50)
    assert "5 times" in caught.value.values["reason"]


def test_a_damaged_file_of_the_cache_is_fetched_again(server: Hub, desk: Desk) -> None:
    fetch(server, desk)
    (desk.cache.files / HEX).write_bytes(b"damaged")
    assert fetch(server, desk) == DATA


def test_nobody_there_is_said_with_the_files_name(server: Hub, desk: Desk) -> None:
    server.stop()
    with pytest.raises(SourceUnreachable) as caught:
        fetch(server, desk)
    assert caught.value.values["file"] == "file"
    assert "refused" in caught.value.values["reason"].lower()


def test_the_proxy_of_the_environment_is_used(
    server: Hub, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:SECRET@{proxy.url.removeprefix('http://')}")
        monkeypatch.setenv("NO_PROXY", "")
        with pytest.raises(SourceRefused):
            fetch(server, desk)
        assert proxy.seen and not server.seen


def test_addresses_of_a_recipe_are_fetched_under_their_paths(server: Hub, desk: Desk) -> None:
    files = {"model.safetensors": safetensors(4000), "a/config.json": b"{}"}
    server.files = {f"/{path}": data for path, data in files.items()}
    source = UrlSource(
        type="url",
        files=tuple(
            UrlFile(url=f"{server.url}/{p}", sha256=hashlib.sha256(d).hexdigest(), path=p)
            for p, d in files.items()
        ),
    )
    assert content(urls.make(recipe(source), source, desk)) == files
