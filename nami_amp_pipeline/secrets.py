"""Encryption of API keys at rest (Fernet: AES-128-CBC with HMAC)."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from nami_amp_pipeline.errors import Misconfigured


class Secret:
    """A clear text that shows itself only when asked for with :meth:`reveal`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The clear text; never to be logged or stored."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('…')"

    __str__ = __repr__

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a secret is not to be serialised")


class Cipher:
    """Encrypts and decrypts with the key of the environment, or with one kept in a file.

    Args:
        key: a Fernet key (``NAMI_AMP_ENCRYPTION_KEY``); without it ``key_file`` is used.
        key_file: made on first use, readable by its owner only.
    """

    def __init__(self, key: str | None, key_file: Path) -> None:
        self._key = key
        self._key_file = key_file

    def encrypt(self, secret: Secret) -> str:
        """The secret as a token for the store."""
        return self._fernet(create=True).encrypt(secret.reveal().encode()).decode()

    def decrypt(self, token: str) -> Secret:
        """The secret behind a token.

        Raises:
            Misconfigured: the key is not the one that the token was made with.
        """
        try:
            return Secret(self._fernet(create=False).decrypt(token).decode())
        except InvalidToken:
            raise Misconfigured(
                "the stored API keys were encrypted with another key: set NAMI_AMP_ENCRYPTION_KEY to that one, "
                f"or restore {self._key_file}"
            ) from None

    def _fernet(self, *, create: bool) -> Fernet:
        key = self._key or self._read_key_file(create=create)
        try:
            return Fernet(key)
        except ValueError:
            where = "NAMI_AMP_ENCRYPTION_KEY" if self._key else str(self._key_file)
            raise Misconfigured(f"{where} must be a Fernet key: 32 bytes in URL-safe base64 (44 characters)") from None

    def _read_key_file(self, *, create: bool) -> str:
        try:
            return self._key_file.read_text().strip()
        except FileNotFoundError:
            if not create:
                raise Misconfigured(
                    f"{self._key_file} is missing, and with it the key of the stored API keys: restore it, or set "
                    "NAMI_AMP_ENCRYPTION_KEY"
                ) from None
        except OSError as error:
            raise Misconfigured(f"cannot read {self._key_file}: {error.strerror}") from None
        try:
            self._key_file.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and linked, so that two processes on a first run agree on one whole key.
            aside = self._key_file.with_name(f"{self._key_file.name}.{uuid.uuid4().hex}")
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(Fernet.generate_key())
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(aside, self._key_file)
            except FileExistsError:
                pass
            finally:
                aside.unlink()
            return self._key_file.read_text().strip()
        except OSError as error:
            raise Misconfigured(f"cannot write {self._key_file}: {error.strerror}") from None
