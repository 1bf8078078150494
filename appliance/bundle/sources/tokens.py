"""The token a source may need: from where the recipe says it is, and never anywhere else."""

from __future__ import annotations

import os

from appliance.bundle.sources.desk import Desk
from appliance.bundle.sources.download import Token, origin_of
from appliance.errors import TokenMissing
from appliance.i18n import _
from appliance.manifests.recipe import ArtefactRecipe, HuggingfaceSource, UrlSource


def token_for(
    recipe: ArtefactRecipe, source: UrlSource | HuggingfaceSource, url: str, desk: Desk
) -> Token | None:
    """The token for the origin of ``url``; None if the recipe names none.

    Raises :class:`TokenMissing` if it names one that is not there or cannot be one.
    """
    if source.token_env is not None:
        place = f"${source.token_env}"
        value = os.environ.get(source.token_env, "").strip()
    elif source.token_file is not None:
        path = desk.path(source.token_file)
        place = str(path)
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = _("{place} cannot be read.").format(place=place)
            raise TokenMissing(artefact=recipe.name, reason=reason) from error
    else:
        return None
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        reason = _("{place} holds no token.").format(place=place)
        raise TokenMissing(artefact=recipe.name, reason=reason)
    return Token(origin_of(url), value)
