"""Files from addresses, each pinned by the recipe."""

from __future__ import annotations

from appliance.bundle.sources.desk import Desk, Made, MadeFile
from appliance.bundle.sources.download import Sha256, Wanted, Web
from appliance.bundle.sources.tokens import token_for
from appliance.bundle.sources.weights import refusal_of_content, refusal_of_name
from appliance.errors import WeightsRefused
from appliance.i18n import _
from appliance.manifests.recipe import ArtefactRecipe, UrlSource


def make(recipe: ArtefactRecipe, source: UrlSource, desk: Desk) -> Made:
    """Fetch what the cache lacks. Raises what :meth:`Web.fetch_all` raises, `WeightsRefused`."""
    locked = desk.locked(recipe)
    sizes = {file.sha256: file.size for file in locked.files} if locked else {}
    wanted = [
        Wanted(file.path, file.url, Sha256(file.sha256), sizes.get(file.sha256))
        for file in source.files
    ]
    title = _("Fetching {count} files of {name}").format(count=len(wanted), name=recipe.name)
    for file in source.files:
        refuse(recipe, file.path, refusal_of_name(file.path, recipe.kind), desk)
    with Web(desk.cache, token_for(recipe, source, source.files[0].url, desk)) as web:
        contents = web.fetch_all(wanted, desk, title)
    made = tuple(
        MadeFile(file.path, content, file.url.partition("?")[0])  # a query may be a credential
        for file, content in zip(source.files, contents, strict=True)
    )
    for each in made:
        reason = refusal_of_content(each.path, each.content.location, recipe.kind)
        refuse(recipe, each.path, reason, desk)
    return Made(made)


def refuse(recipe: ArtefactRecipe, path: str, reason: str | None, desk: Desk) -> None:
    """Raise :class:`WeightsRefused` if there is a reason."""
    if reason is not None:
        raise WeightsRefused(artefact=recipe.name, file=path, reason=reason, recipe=desk.recipe)
