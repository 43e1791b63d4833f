"""The registered models: which version is champion, which is challenger, and why.

Nothing is ever deleted: promotion moves an alias and leaves its reason in tags of the version.
"""

import time
from dataclasses import dataclass
from typing import Any

from lfm.errors import InputError, unknown
from lfm.storage.artifact import home
from lfm.tracking.client import connect, connect_to_read, every

CONTENT = "lfm.content"
CHAMPION, CHALLENGER = "champion", "challenger"
REASON, WHEN, BEFORE, DATASET, TRAIN, TEST, INPUT, TEST_SHARE, SAMPLE = (
    "lfm.decision", "lfm.decided", "lfm.champion_before", "lfm.dataset", "lfm.train_images", "lfm.test_images",
    "lfm.input", "lfm.test_share", "lfm.image_sample",
)  # fmt: skip
"""Tags of a version; those of the data are on every evaluated run too."""


@dataclass(frozen=True)
class Version:
    """Of a registered model.

    Args:
        name: of the model, which is the preset's.
        number: of the version.
        aliases: that point to it.
        tags: `lfm.content` names the weights, `lfm.dataset` the data, `lfm.decision` says why it is what it is.
        run: MLflow run that made it.
        made: milliseconds since 1970.
    """

    name: str
    number: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run: str
    made: int

    @property
    def uri(self) -> str:
        """As MLflow names it."""
        return f"models:/{self.name}/{self.number}"


def versions(name: str = "") -> list[Version]:
    """Every version of a model, the newest first; without a name, of all models."""
    client = connect_to_read()
    result = []
    for model in every(client.search_registered_models, f"name = '{name}'" if name else None):
        aliases: dict[str, list[str]] = {}
        for alias, number in model.aliases.items():
            aliases.setdefault(str(number), []).append(alias)
        found = every(client.search_model_versions, f"name = '{model.name}'")
        result += [
            Version(
                v.name,
                str(v.version),
                tuple(sorted(aliases.get(str(v.version), ()))),
                dict(v.tags),
                v.run_id or "",
                int(v.creation_timestamp),
            )
            for v in sorted(found, key=lambda v: -int(v.version))
        ]
    return result


def with_alias(name: str, alias: str) -> Version | None:
    """The version that the alias points to."""
    return next((version for version in versions(name) if alias in version.aliases), None)


def version_of(name: str, number: str) -> Version:
    """A version by its number.

    Raises:
        InputError: no such model or version; what there is is listed.
    """
    found = versions(name)
    if not found:
        raise unknown("registered model", name, sorted({version.name for version in versions()}) or ["none"])
    for version in found:
        if version.number == number:
            return version
    raise InputError(f"{name} has no version {number}; it has {', '.join(v.number for v in found)}")


def resolve(uri: str) -> str:
    """`models:/NAME/VERSION` of this or of `models:/NAME@ALIAS`.

    Raises:
        InputError: another form, or no such model, version or alias; what there is is listed.
    """
    name, at, alias = uri.removeprefix("models:/").partition("@")
    name, _, number = name.partition("/")
    if not uri.startswith("models:/") or not name or bool(number) == bool(at):
        raise InputError(f"{uri} names no model; write models:/NAME@champion or models:/NAME/VERSION")
    if not at:
        return version_of(name, number).uri
    found = versions(name)
    if not found:
        raise unknown("registered model", name, sorted({version.name for version in versions()}) or ["none"])
    for version in found:
        if alias in version.aliases:
            return version.uri
    raise InputError(f"{name} has no {alias}; name a version, as in {found[0].uri}, or make one: lfm promote {name} 1")


def only_one() -> str:
    """URI of the only champion there is; without any, of the newest version where there is one model alone.

    Raises:
        InputError: none, or several.
    """
    found = versions()
    champions = [version for version in found if CHAMPION in version.aliases]
    if len(champions) == 1:
        return champions[0].uri
    if len({version.name for version in found}) == 1:
        return found[0].uri
    if not found:
        raise InputError(f"there are no registered models in {home()}; train one with lfm run, or set --home")
    choices = [version.uri for version in champions] or sorted({f"models:/{version.name}/..." for version in found})
    raise InputError(f"there are several models; choose one with --model: {', '.join(choices)}")


def tag(name: str, number: str, values: dict[str, Any]) -> None:
    """Tag a version."""
    client = connect()
    for key, value in values.items():
        client.set_model_version_tag(name, number, key, str(value))


def promote(name: str, number: str, why: str) -> Version | None:
    """Make a version the champion.

    Args:
        name: of the model.
        number: of the version.
        why: in words; kept with it.

    Returns:
        The champion before; the version itself where it is champion already, and nothing is changed.

    Raises:
        InputError: no such version.
    """
    version = version_of(name, number)
    before = with_alias(name, CHAMPION)
    if before == version:
        return before
    tag(name, number, {REASON: why, WHEN: _now(), BEFORE: before.number if before else ""})
    client = connect()
    client.set_registered_model_alias(name, CHAMPION, number)
    if CHALLENGER in version.aliases:
        client.delete_registered_model_alias(name, CHALLENGER)
    return before


def challenge(name: str, number: str, why: str) -> None:
    """Make a version the challenger: trained last, not good enough to be champion."""
    version = version_of(name, number)
    tag(name, number, {REASON: why, WHEN: _now()})
    if CHAMPION not in version.aliases:
        connect().set_registered_model_alias(name, CHALLENGER, number)


def rollback(name: str) -> tuple[Version, Version]:
    """Give the place of the champion back to the one before.

    Returns:
        The champion that was, and the one that is.

    Raises:
        InputError: no champion, or none before it.
    """
    champion = with_alias(name, CHAMPION)
    if champion is None:
        raise InputError(f"{name} has no champion to roll back; `lfm models {name}` lists its versions")
    before = champion.tags.get(BEFORE)
    if not before:
        raise InputError(f"version {champion.number} of {name} is its first champion; promote another: lfm promote")
    tag(name, champion.number, {REASON: f"rolled back to version {before}", WHEN: _now()})
    connect().set_registered_model_alias(name, CHAMPION, before)
    return champion, version_of(name, before)


def replace(name: str, number: str, by: str) -> None:
    """Let a version take the place of one of the same weights that is damaged: its aliases and their reason.

    Args:
        name: of the model.
        number: of the damaged version, which stays, under no content.
        by: number of the new version.
    """
    client, old = connect(), version_of(name, number)
    tag(name, by, {key: old.tags[key] for key in (REASON, WHEN, BEFORE) if key in old.tags})
    for alias in old.aliases:
        client.set_registered_model_alias(name, alias, by)
    tag(name, number, {REASON: f"damaged; version {by} has the same weights", WHEN: _now()})
    client.delete_model_version_tag(name, number, CONTENT)


def content_of(version: Version) -> str:
    """Names the weights of a version."""
    return version.tags.get(CONTENT, "")


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
