"""The rules for an integration's settings: every value is checked here."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from nami_amp_pipeline import contract
from nami_amp_pipeline.destinations import DEFAULT, destination_of
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.secrets import Secret

_LABEL = re.compile(r"[^.]{1,63}")
_MOST_FIELDS = 200
MOST_QUOTA = 10**15


def check_app_id(app_id: str) -> str:
    """An app id as it is.

    Raises:
        Misconfigured: it has characters that the contract does not allow.
    """
    if not contract.APP_ID.fullmatch(app_id):
        raise Misconfigured(f"app id {app_id!r} must consist of letters, digits, '.', '_' and '-'")
    return app_id


def check_name(name: str) -> str:
    """The name of an integration as it is.

    Raises:
        Misconfigured: it has characters that the contract does not allow.
    """
    if not contract.INTEGRATION_NAME.fullmatch(name):
        raise Misconfigured(f"integration name {name!r} must consist of letters, digits, '-' and '_'")
    return name


def check_choice(value: str, allowed: Iterable[str], what: str) -> str:
    """A value from a list of choices.

    Raises:
        Misconfigured: it is none of them.
    """
    choices = list(allowed)
    if value not in choices:
        raise Misconfigured(f"{what} must be one of {', '.join(choices)}")
    return value


def check_key(secret: Secret, what: str) -> Secret:
    """A key without surrounding space.

    Raises:
        Misconfigured: it is empty.
    """
    text = secret.reveal().strip()
    if not text:
        raise Misconfigured(f"the {what} is empty")
    return Secret(text)


def check_events(patterns: Iterable[str]) -> tuple[str, ...]:
    """A selection of event types in the stored form.

    Raises:
        Misconfigured: a pattern covers none of the event types.
    """
    try:
        return contract.check_patterns(patterns)
    except ValueError as error:
        raise Misconfigured(str(error)) from None


def check_rename(rename: Mapping[str, str]) -> dict[str, str]:
    """Names for Amplitude by Nami's event type.

    Raises:
        Misconfigured: a type is unknown, or Amplitude does not accept a name.
    """
    for old, name in rename.items():
        if old not in contract.event_type_names():
            raise Misconfigured(f"cannot rename {old!r}: it is not one of the event types")
        if not name.strip():
            raise Misconfigured(f"cannot rename {old!r} to an empty name")
        if name.startswith(("[Amplitude]", "$")):
            raise Misconfigured(
                f"cannot rename {old!r} to {name!r}: Amplitude reserves names that begin with '[Amplitude]' or '$'"
            )
    return dict(rename)


def check_fields(exclude: Iterable[str], hashed: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The payload fields to exclude and to hash, in order.

    Raises:
        Misconfigured: a field has no name, cannot be hidden, or is named for both.
    """
    never, hashes = tuple(sorted(set(exclude))), tuple(sorted(set(hashed)))
    for name in (*never, *hashes):
        if not name.strip() or "\0" in name:
            raise Misconfigured("a payload field to exclude or hash must have a name")
        if name in contract.NEVER_HIDDEN:
            raise Misconfigured(f"the field {name!r} cannot be excluded or hashed: it identifies the event or its user")
    if both := set(never) & set(hashes):
        raise Misconfigured(f"the field {min(both)!r} cannot be both excluded and hashed")
    if len(never) + len(hashes) > _MOST_FIELDS:
        raise Misconfigured(f"at most {_MOST_FIELDS} payload fields can be excluded or hashed")
    return never, hashes


def check_fees(fees: Mapping[str, float]) -> dict[str, float]:
    """The store's share of a price by ``event_platform``, in lower case.

    Raises:
        Misconfigured: a share is not from 0 to 1, or names no platform.
    """
    for platform, share in fees.items():
        if not platform.strip():
            raise Misconfigured("a store fee needs an event_platform: write PLATFORM=SHARE, such as apple=0.15")
        if not 0 <= share <= 1:
            raise Misconfigured(f"the store fee of {platform!r} must be a share from 0 to 1, such as 0.15")
    return {platform.strip().lower(): float(share) for platform, share in sorted(fees.items())}


def check_endpoint(endpoint: str, *, allow_custom: bool, destination: str = DEFAULT) -> str:
    """The URL of an endpoint of a destination: a short name that it knows, such as ``us``, or an allowed URL.

    A URL of another host needs ``allow_custom`` where the destination has addresses of its own.

    Raises:
        Misconfigured: it is not allowed; the message says why.
    """
    target = destination_of(destination)
    if endpoint in target.endpoints:
        return target.endpoints[endpoint]
    if endpoint in target.endpoints.values():
        return endpoint
    names = ", ".join(f"'{name}'" for name in target.endpoints)
    named = f"{names}, or " if names else ""
    # Before it is parsed: the parser drops line ends and tabs without a word.
    if any(not character.isprintable() or character.isspace() for character in endpoint) or "\\" in endpoint:
        raise Misconfigured("the endpoint must be a URL without spaces, line ends, tabs or backslashes")
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise Misconfigured(f"the endpoint must be {named}a URL") from None
    if parts.username is not None or parts.password is not None:
        raise Misconfigured("the endpoint must not hold a user name or password")
    if parts.scheme not in ("http", "https") or not host:
        raise Misconfigured(f"the endpoint must be {named}a URL such as https://host{_example_path(target.endpoints)}")
    if not _is_host(host):
        raise Misconfigured(f"the endpoint's host {host!r} is not a valid host name: a part of it is empty or too long")
    if names and not allow_custom:
        raise Misconfigured(
            f"{host} does not belong to {target.title}: give --allow-custom-endpoint to send events there"
        )
    if parts.scheme == "http" and not _is_loopback(host):
        raise Misconfigured(f"plain http is only allowed for loopback addresses: use https for {host}")
    return endpoint


def check_destination(name: str, *, has_secret_key: bool) -> str:
    """The name of a destination as it is.

    Raises:
        Misconfigured: there is none of that name, or it has no use for a secret key that is given.
    """
    target = destination_of(name)
    if has_secret_key and not any(field.name == "secret_key" for field in target.fields):
        raise Misconfigured(f"{target.title} has no secret key")
    return name


def _example_path(endpoints: Mapping[str, str]) -> str:
    return next((urlsplit(url).path for url in endpoints.values()), "/events")


def _is_host(host: str) -> bool:
    if ":" in host:  # an IPv6 address, which the parser has checked
        return True
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split("."))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_quota(quota: int | None) -> int | None:
    """A quota in events a month, as Amplitude has it.

    Raises:
        Misconfigured: it is none.
    """
    if quota is not None and not 0 < quota < MOST_QUOTA:
        raise Misconfigured("a quota is a number of events a month, such as 10000000")
    return quota
