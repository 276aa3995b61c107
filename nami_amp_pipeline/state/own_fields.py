"""The fields that a destination has of its own: the rules for their values, and the destination that was given them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from nami_amp_pipeline import redaction
from nami_amp_pipeline.contract import did_you_mean
from nami_amp_pipeline.destinations import destination_of, own_fields
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state.integration_rows import Integration

if TYPE_CHECKING:
    from nami_amp_pipeline.delivery.destination import Destination, Field

LONGEST: Final = 1_000
"""No value has more characters."""


def check_given(
    destination: Destination, fields: Collection[str], secret_fields: Collection[str], *, as_options: bool = True
) -> None:
    """Checks the names of what is given, and that no secret is among what everybody sees.

    Args:
        destination: whose fields they are.
        fields: names of those that are given in clear.
        secret_fields: names of those that are given as secrets.
        as_options: whether they are given on the command line, so that a message can say how.

    Raises:
        Misconfigured: one is unknown, or stands in the wrong place.
    """
    own = own_fields(destination)
    for name in (*fields, *secret_fields):
        if name not in own:
            there = f"there are {', '.join(own)}" if own else "it has none of its own"
            instead = did_you_mean(name, own) or f": {there}"
            raise Misconfigured(f"{destination.title} has no field {name if _is_name(name) else '…'}{instead}")
    for name in fields:
        if own[name].is_secret:
            how = _way(name, is_secret=True, as_options=as_options)
            raise Misconfigured(f"the {own[name].label} is a secret: give it by {how}")
    for name in secret_fields:
        if not own[name].is_secret:
            how = _way(name, is_secret=False, as_options=as_options)
            raise Misconfigured(f"the {own[name].label} is no secret: give it by {how}")


def mistakes(
    destination: Destination, fields: Mapping[str, str], secret_fields: Mapping[str, Secret | None]
) -> dict[str, str]:
    """What is wrong with the values, by field; what the destination does not declare is left alone.

    Args:
        destination: whose fields they are.
        fields: those that are no secrets.
        secret_fields: those that are; None of one that is stored already, or that cannot be looked at.
    """
    found = {}
    for name, field in own_fields(destination).items():
        if name not in (secret_fields if field.is_secret else fields):
            if field.is_required and field.default is None:
                found[name] = f"{destination.title} needs the {field.label}"
            continue
        secret = secret_fields.get(name)
        text = fields.get(name) if not field.is_secret else secret.reveal() if secret is not None else None
        if text is not None and (said := _wrong(field, text)):
            found[name] = said
    return found


def check(
    destination: Destination,
    fields: Mapping[str, str],
    secret_fields: Mapping[str, Secret | None],
    *,
    as_options: bool = True,
) -> None:
    """Checks the values.

    Args:
        destination: whose fields they are.
        fields: those that are no secrets.
        secret_fields: those that are; None as for :func:`mistakes`.
        as_options: as for :func:`check_given`.

    Raises:
        Misconfigured: one is missing or cannot be used; the message does not repeat it.
    """
    if wrong := mistakes(destination, fields, secret_fields):
        name, said = next(iter(wrong.items()))
        is_missing = name not in fields and name not in secret_fields
        how = _way(name, is_secret=own_fields(destination)[name].is_secret, as_options=as_options)
        raise Misconfigured(f"{said}: give it by {how}" if is_missing else said)


def _wrong(field: Field, text: str) -> str:
    if not text.strip() or text != text.strip():
        return f"the {field.label} is empty, or has space around it"
    if not text.isprintable() or len(text) > LONGEST:
        return f"the {field.label} must be one line of at most {LONGEST:,} characters"
    if field.choices and text not in field.choices:
        return f"the {field.label} must be one of {', '.join(field.choices)}"
    if field.pattern and not re.fullmatch(field.pattern, text):
        return f"the {field.label} cannot be used: {field.help[:1].lower()}{field.help[1:].removesuffix('.')}"
    return ""


def _way(name: str, *, is_secret: bool, as_options: bool) -> str:
    if as_options:
        return f"--secret-field-env {name}=VAR" if is_secret else f"--field {name}=VALUE"
    return f"secret_fields: {{{name}: {{env: VARIABLE}}}}" if is_secret else f"fields: {{{name}: VALUE}}"


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name) is not None


def encrypted(stored: Mapping[str, str], given: Mapping[str, Secret | None], cipher: Cipher) -> str:
    """The column of the secrets, after some were given or, as None, taken away.

    Args:
        stored: encrypted, by name.
        given: those that change.
        cipher: for the new ones.
    """
    kept = {name: token for name, token in stored.items() if name not in given}
    new = {name: cipher.encrypt(secret) for name, secret in given.items() if secret is not None}
    return orjson.dumps(dict(sorted((kept | new).items()))).decode()


def recorded(stored: Mapping[str, str], given: Mapping[str, Secret | None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a change of secrets is recorded as: before and after, only that they are set."""
    before = {name: "set" if name in stored else "not set" for name in given}
    after = {
        name: "not set" if secret is None else "changed" if name in stored else "set" for name, secret in given.items()
    }
    return before, after


def with_defaults(destination: Destination, fields: Mapping[str, str]) -> dict[str, str]:
    """The values of the destination's own fields that are no secrets: as given, or their defaults."""
    own = {name: field for name, field in own_fields(destination).items() if not field.is_secret}
    defaults = {name: field.default for name, field in own.items() if field.default is not None}
    return defaults | {name: value for name, value in fields.items() if name in own}


def given_to(destination: Destination, fields: Mapping[str, str], secrets: Mapping[str, Secret]) -> Destination:
    """The destination with the values of its own fields; itself, if it has none."""
    if not own_fields(destination):
        return destination
    return destination.with_fields(with_defaults(destination, fields), secrets)


def secrets_of(
    destination: Destination, integration: Integration, cipher: Cipher, *, but: Collection[str] = ()
) -> dict[str, Secret]:
    """The secrets of the destination's own fields.

    Args:
        destination: whose fields they are.
        integration: which has them.
        cipher: of them.
        but: names of those that are left out.

    Raises:
        Misconfigured: one cannot be decrypted.
    """
    own = own_fields(destination).keys() - set(but)
    return {name: cipher.decrypt(token) for name, token in integration.secret_fields.items() if name in own}


def as_set(integration: Integration, cipher: Cipher | None, destination: Destination | None = None) -> Destination:
    """The destination of an integration, with the values of its own fields.

    Args:
        integration: whose.
        cipher: of its secrets; None where these must not be seen, as what becomes of them is kept.
        destination: the destination, if it is known already.

    Raises:
        Misconfigured: it is unknown, lacks a value that it needs, or a secret cannot be decrypted.
    """
    try:
        destination = destination_of(integration.destination) if destination is None else destination
        check(destination, integration.fields, dict.fromkeys(integration.secret_fields))
    except Misconfigured as error:
        raise Misconfigured(f"{integration.key}: {error}") from None
    secrets = {} if cipher is None else secrets_of(destination, integration, cipher)
    redaction.add(*secrets.values())
    return given_to(destination, integration.fields, secrets)
