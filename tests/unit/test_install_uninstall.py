"""Uninstall removes what is ours, and nothing else, whatever someone put in its way."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import HomeNotOurs, NotInstalled, UninstallRefused
from appliance.install.home import claim
from appliance.install.uninstall import is_data, is_nothing, plan_removal, remove
from appliance.layout import Home
from appliance.progress import Silent


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    claim(home)
    for folder in (home.store, home.datasets, home.ledger, home.secrets, home.run, home.releases):
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "file").write_text("x")
    home.registry.parent.mkdir()
    home.registry.write_text("x")
    home.registry.with_name("registry.sqlite-wal").write_text("x")
    (home.releases / "r-1").mkdir()
    home.current.symlink_to("releases/r-1")
    (home.run / "door.sock").symlink_to(tmp_path)
    return home


def test_everything_goes(home: Home, tmp_path: Path) -> None:
    remove(home, plan_removal(home, is_nothing), Silent())
    assert list(tmp_path.iterdir()) == []


def test_the_sites_data_stays_and_the_folder_can_be_installed_into_again(home: Home) -> None:
    remove(home, plan_removal(home, is_data), Silent())
    left = {path.name for path in home.root.iterdir()}
    assert left == {
        ".sovctl", "datasets", "ledger", "secrets", "registry",
    }  # fmt: skip
    claim(home)


def test_what_is_not_ours_stays_and_is_named(home: Home) -> None:
    stranger = home.root / "notes.txt"
    stranger.write_text("mine")
    removal = plan_removal(home, is_nothing)
    remove(home, removal, Silent())
    assert removal.foreign == (stranger,)
    assert list(home.root.iterdir()) == [stranger]


@pytest.mark.parametrize("place", ["store", "secrets", "ledger", "lock"])
def test_a_link_in_place_of_a_part_is_refused_and_nothing_is_removed(
    home: Home, tmp_path: Path, place: str
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("x")
    part: Path = getattr(home, place)
    if part.exists():
        part.rename(tmp_path / "moved")
    part.symlink_to(precious)
    before = sorted(home.root.rglob("*"))
    with pytest.raises(UninstallRefused):
        plan_removal(home, is_nothing)
    assert sorted(home.root.rglob("*")) == before
    assert (precious / "thesis").exists()


def test_links_inside_are_removed_not_followed(home: Home, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("x")
    (home.store / "deep" / "link").symlink_to(precious)
    remove(home, plan_removal(home, is_nothing), Silent())
    assert (precious / "thesis").exists()


def test_a_folder_without_our_mark_or_through_a_link_is_refused(tmp_path: Path, home: Home) -> None:
    link = tmp_path / "link"
    link.symlink_to(home.root)
    with pytest.raises(UninstallRefused):
        plan_removal(Home(link), is_nothing)
    home.marker.unlink()
    with pytest.raises(UninstallRefused):
        plan_removal(home, is_nothing)
    with pytest.raises(NotInstalled):
        plan_removal(Home(tmp_path / "nowhere"), is_nothing)


def test_only_an_empty_folder_or_ours_becomes_an_installation(tmp_path: Path) -> None:
    (tmp_path / "trust").mkdir()  # 'sovctl trust pin' came first
    claim(Home(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis").write_text("x")
    with pytest.raises(HomeNotOurs):
        claim(Home(other))
    assert [path.name for path in other.iterdir()] == ["thesis"]
