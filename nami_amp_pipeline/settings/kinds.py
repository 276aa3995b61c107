"""What a setting can be: kinds of values with their checks, and how a field of the settings is made."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from nami_amp_pipeline.storage.database_address import with_quoted_password

STORE_SCHEMES: Final = ("sqlite", "postgresql")


def _is_warehouse(scheme: str) -> bool:
    from nami_amp_pipeline import warehouse  # late, for those who never ask for one

    return warehouse.is_known(scheme)


def _database(is_known: Callable[[str], bool]) -> AfterValidator:
    def check(text: str) -> str:
        scheme, separator, rest = text.partition("://")
        scheme = "postgresql" if scheme == "postgres" else scheme
        if not separator or not is_known(scheme) or not rest.strip("/") or "\0" in text:
            raise ValueError("not an address of a database")
        return f"{scheme}://{with_quoted_password(rest) if scheme == 'postgresql' else rest}"

    return AfterValidator(check)


def networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Addresses and networks, separated by commas.

    Raises:
        ValueError: one is none.
    """
    return [ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip()]


def _web_address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or (parts.port or 1) < 0:
        raise ValueError("not a web address")
    return text.rstrip("/")


def contact(text: str) -> None:
    """Looks whether people can be led there from a page.

    Raises:
        ValueError: it is no ``mailto:`` or ``https:`` address.
    """
    parts = urlsplit(text)
    is_mail = parts.scheme == "mailto" and "@" in parts.path
    if not text.isprintable() or " " in text or not (is_mail or (parts.scheme == "https" and parts.hostname)):
        raise ValueError("not an address of a contact")


def _object_storage(text: str) -> str:
    if not text:
        return text
    parts = urlsplit(text)
    is_plain = not (parts.query or parts.fragment or "@" in parts.netloc or ":" in parts.netloc)
    if parts.scheme not in ("s3", "gs", "az") or not parts.netloc or not is_plain or "\0" in text:
        raise ValueError("not an object storage")
    return text.rstrip("/")


def _name(text: str) -> str:
    if "\0" in text:
        raise ValueError("not a name")
    return text


def checked(check: Callable[[str], object]) -> AfterValidator:
    """A text that a function takes, or an empty one."""

    def both(text: str) -> str:
        if text:
            check(text)
        return text

    return AfterValidator(both)


def setting(
    default: Any, means: str, *, unit: str = "", expected: str = "", shown: str = "", secret: bool = False, **more: Any
) -> Any:
    """A field of :class:`Settings`.

    Args:
        default: the value if nothing is set, or a function that computes it from the earlier settings.
        means: what it sets, for people.
        unit: of a number.
        expected: what it must be, if type, unit and bounds do not say it.
        shown: the default for the table, if it is not a plain value.
        secret: whether it stays out of every text.
        more: as pydantic's ``Field`` has it.
    """
    made = {"default_factory": default} if callable(default) else {"default": default}
    extra: dict[str, Any] = {"unit": unit, "expected": expected, "shown": shown}
    return Field(**made, description=means, repr=not secret, json_schema_extra=extra, **more)


DataUrl = Annotated[str, AfterValidator(_object_storage)]
Days = Annotated[float, Field(gt=0, le=36_500)]
Natural = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
WarehouseUrl = Annotated[str, _database(_is_warehouse)]
StoreUrl = Annotated[str, _database(lambda scheme: scheme in STORE_SCHEMES)]
WebAddress = Annotated[str, AfterValidator(_web_address)]
Name = Annotated[str, AfterValidator(_name)]
