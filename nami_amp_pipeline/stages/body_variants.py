"""Variants of an event's content; integrations with the same wishes share one body."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import duckdb

from nami_amp_pipeline import contract
from nami_amp_pipeline.errors import Blocked, Misconfigured
from nami_amp_pipeline.secrets import Cipher
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.storage.duckdb_engine import literal

HASHES_OF_AN_ARRAY: Final = (contract.ARRAY_CHARACTERS - 1) // (64 + 3)
"""The number of hashes that fit into an array before Amplitude truncates it."""

_NOT_HASHED: Final = ("amount", "currency", "quantity")
"""Amplitude expects a number or a currency there, so only the event property is sent as a hash."""


@dataclass(frozen=True)
class Variant:
    """The settings that the content of a body depends on.

    Attributes:
        exclude: payload fields that are never sent.
        hashed: payload fields that are sent as hashes.
        salt: of the hashes; empty if there are none.
        revenue: which amount is the price.
        fees: the store's share by ``event_platform``, if not the default; empty unless the price is net.
    """

    exclude: frozenset[str] = frozenset()
    hashed: frozenset[str] = frozenset()
    salt: str = field(default="", repr=False)
    revenue: contract.RevenueKind = "gross"
    fees: tuple[tuple[str, float], ...] = ()

    @property
    def hides(self) -> bool:
        """Whether any field is left out or hashed."""
        return bool(self.exclude or self.hashed)

    def column(self, field_name: str, text: str) -> str:
        """SQL of a payload field, as JSON text, where it becomes a field of the event itself.

        Args:
            field_name: of the payload.
            text: SQL of its JSON text.
        """
        is_hidden = field_name in self.exclude or (field_name in self.hashed and field_name in _NOT_HASHED)
        if is_hidden or (field_name == "amount" and self.revenue == "none"):
            return "NULL::VARCHAR"
        return f"hashed({text})" if field_name in self.hashed else text

    def hash_of(self, value: object) -> str:
        """The hash of a JSON value: of a text's characters, or of the JSON text of anything else."""
        clear = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256((self.salt + clear).encode()).hexdigest()

    def redacted(self, payload: str | None) -> str | None:
        """A payload without its hidden fields; None if it is not a JSON object, whose fields are unknown."""
        if payload is None or not self.hides:
            return payload
        try:
            fields = json.loads(payload)
        except (ValueError, RecursionError):  # what nests too deep is no JSON to Python
            return None
        if not isinstance(fields, dict):
            return None
        return json.dumps(
            {
                name: self.hash_of(value) if name in self.hashed else value
                for name, value in fields.items()
                if name not in self.exclude
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )

    def create_macros(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Creates the macros of the settings that ``prepare_1_bodies.sql`` names."""
        connection.execute("SET VARIABLE salt = ?", [self.salt])
        device = "device"
        if "device_id" in self.exclude:
            device = "NULL::VARCHAR"
        elif "device_id" in self.hashed:
            device = "hash_of(device)"
        price, gross = "amount", "NULL::VARCHAR"
        if self.revenue == "net":
            fees = "".join(f" WHEN {literal(platform)} THEN {share}" for platform, share in self.fees)
            share = f"CASE lower(as_text(platform)){fees} ELSE {contract.STORE_FEE} END" if fees else contract.STORE_FEE
            # To a millionth: what binary fractions add behind that is no money.
            price, gross = f"to_json(round(amount::DOUBLE * (1 - {share}), 6))", "amount"
        for macro, body in (
            ("shown_device(device)", device),
            ("price_of(amount, platform)", price),
            ("gross_of(amount)", gross),
            ("shown_user_properties(properties)", self._user_properties()),
        ):
            connection.execute(f"CREATE OR REPLACE TEMP MACRO {macro} AS {body}")

    def _user_properties(self) -> str:
        """SQL of a snapshot's JSON text without the hidden fields."""
        patch = []
        for prop in contract.PROPERTIES:
            name, path = prop.name, literal(f"$.{prop.name}")
            if prop.names_any(self.exclude):  # hiding a field hides what is made of it too
                patch.append(f"{literal(name)}, NULL")
            elif not prop.names_any(self.hashed):
                continue
            elif prop.kind == "texts":
                texts = f"(properties -> {path})::VARCHAR[]"
                hashes = f"list_sort(list_transform({texts}, lambda text: hash_of(text)))[1:{HASHES_OF_AN_ARRAY}]"
                patch.append(f"{literal(name)}, {hashes}")
            else:
                patch.append(f"{literal(name)}, hash_of(properties ->> {path})")
        if not patch:
            return "properties"
        # CASE, as JSON functions fail of the rows that have none.
        patched = f"json_merge_patch(properties, json_object({', '.join(patch)}))::VARCHAR"
        return f"CASE WHEN properties IS NOT NULL THEN {patched} END"


PLAIN: Final = Variant()
"""The variant of most integrations: everything, unchanged."""


@dataclass(frozen=True)
class Variants:
    """The variants that some integrations need, and the variant of each.

    Attributes:
        distinct: each once.
        number_of: the index in ``distinct``, by integration id.
        reads_environment: whether an integration treats events of a store's sandbox differently.
    """

    distinct: Sequence[Variant]
    number_of: Mapping[int, int]
    reads_environment: bool

    def of(self, integration_id: int) -> Variant:
        """The variant of an integration."""
        return self.distinct[self.number_of[integration_id]]


def variants_of(integrations: Sequence[Integration], cipher: Cipher) -> Variants:
    """The variants of some integrations.

    Raises:
        Blocked: the salt of one cannot be decrypted.
    """
    wanted = {integration.id: _variant_of(integration, cipher) for integration in integrations}
    distinct = list(dict.fromkeys(wanted.values()))
    numbers = {variant: number for number, variant in enumerate(distinct)}
    return Variants(
        distinct,
        {integration_id: numbers[variant] for integration_id, variant in wanted.items()},
        any(integration.sandbox != "send" for integration in integrations),
    )


def _variant_of(integration: Integration, cipher: Cipher) -> Variant:
    if not (integration.exclude or integration.hashed) and integration.revenue == "gross":
        return PLAIN
    salt = ""
    if integration.hashed:
        try:
            if integration.hash_salt is None:
                raise Misconfigured("the salt is missing")
            salt = cipher.decrypt(integration.hash_salt).reveal()
        except Misconfigured as error:
            raise Blocked(f"{integration.key}: cannot hash its fields: {error}") from None
    fees = tuple(sorted(integration.store_fees.items())) if integration.revenue == "net" else ()
    return Variant(frozenset(integration.exclude), frozenset(integration.hashed), salt, integration.revenue, fees)
