"""Encryption of API keys at rest (Fernet: AES-128-CBC with HMAC)."""

from __future__ import annotations

import hmac
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

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
        raise TypeError("a secret must not be serialised")


class Cipher:
    """Encrypts with the newest key, decrypts with all keys; they come from the environment or a file.

    Args:
        keys: Fernet keys separated by commas (``NAMI_AMP_ENCRYPTION_KEY``), the newest first; without any, ``key_file``
            is used.
        key_file: one key a line, the newest first; made on first use, readable by its owner only.
    """

    def __init__(self, keys: str | None, key_file: Path) -> None:
        self._keys = split_keys(keys or "")
        self.key_file = key_file
        # A process that began before the keys were rotated may have read tokens of the key that went since.
        self._known = [] if self._keys else _valid_lines(key_file)

    @property
    def uses_file(self) -> bool:
        """Whether the keys come from the file."""
        return not self._keys

    def encrypt(self, secret: Secret) -> str:
        """The secret as a token for the store."""
        return self._fernets(create=True)[0].encrypt(secret.reveal().encode()).decode()

    def decrypt(self, token: str) -> Secret:
        """The secret behind a token.

        Raises:
            Misconfigured: none of the keys made the token.
        """
        try:
            return Secret(MultiFernet(self._fernets(create=False)).decrypt(token).decode())
        except InvalidToken:
            raise Misconfigured(
                "the stored API keys were encrypted with another key: set NAMI_AMP_ENCRYPTION_KEY to that key, or "
                f"restore {self.key_file}"
            ) from None

    def is_current(self, token: str) -> bool:
        """Whether a token was made with the newest key.

        Raises:
            Misconfigured: the keys cannot be read.
        """
        try:
            self._fernets(create=False)[0].decrypt(token)
        except InvalidToken:
            return False
        return True

    def fingerprint(self, text: str, purpose: str) -> str:
        """Tells two texts apart without saying anything of either: an HMAC under the newest key.

        A plain hash would let anybody try texts against it; this one can be made only where the key is.

        Args:
            text: the text.
            purpose: what it is for: fingerprints for different purposes have nothing in common.
        """
        self._fernets(create=True)
        key = (self._keys or self._read_key_file(create=False))[0]
        own = hmac.digest(key.encode(), f"nami-amp fingerprint of {purpose}".encode(), "sha256")
        return hmac.digest(own, text.encode(), "sha256").hex()

    def older_keys(self) -> int:
        """How many keys there are besides the newest."""
        return len(self._keys or self._read_key_file(create=True)) - 1

    def add_key_to_file(self) -> None:
        """Puts a new key before those of the file: from now on it encrypts, and the others still decrypt."""
        self._write([Fernet.generate_key().decode(), *self._read_key_file(create=True)])

    def forget_older_keys_of_file(self) -> None:
        """Drops all keys of the file but the newest; secrets under the older keys become unreadable."""
        self._write(self._read_key_file(create=False)[:1])
        self._known = []

    def _fernets(self, *, create: bool) -> list[Fernet]:
        keys = self._keys or self._read_key_file(create=create)
        try:
            return [Fernet(key) for key in dict.fromkeys([*keys, *self._known])]
        except ValueError:
            where = "NAMI_AMP_ENCRYPTION_KEY" if self._keys else str(self.key_file)
            raise Misconfigured(f"{where} must be a Fernet key: 32 bytes in URL-safe base64 (44 characters)") from None

    def _read_key_file(self, *, create: bool) -> list[str]:
        keys = _lines(self.key_file)
        if keys:
            return keys
        if keys is not None:
            raise Misconfigured(f"{self.key_file} is empty: restore it, or set NAMI_AMP_ENCRYPTION_KEY")
        if not create:
            raise Misconfigured(
                f"{self.key_file} is missing, and the stored API keys cannot be decrypted without it: restore it, or "
                "set "
                "NAMI_AMP_ENCRYPTION_KEY"
            )
        try:
            self.key_file.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and linked, so that two processes on a first run agree on one whole key.
            aside = self._write_aside([Fernet.generate_key().decode()])
            try:
                os.link(aside, self.key_file)
            except FileExistsError:
                pass
            finally:
                aside.unlink()
        except OSError as error:
            raise Misconfigured(f"cannot write {self.key_file}: {error.strerror}") from None
        return self._read_key_file(create=False)

    def _write(self, keys: Sequence[str]) -> None:
        try:
            self._write_aside(keys).replace(self.key_file)
            folder = os.open(self.key_file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # no token may be of a key that a power cut takes away
            finally:
                os.close(folder)
        except OSError as error:
            raise Misconfigured(f"cannot write {self.key_file}: {error.strerror}") from None

    def _write_aside(self, keys: Sequence[str]) -> Path:
        aside = self.key_file.with_name(f"{self.key_file.name}.{uuid.uuid4().hex}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(keys))
            file.flush()
            os.fsync(file.fileno())
        return aside


def split_keys(text: str) -> list[str]:
    """The keys of ``NAMI_AMP_ENCRYPTION_KEY``, the newest first."""
    return [key.strip() for key in text.split(",") if key.strip()]


def _lines(file: Path) -> list[str] | None:
    """The keys of a file; None where there is no file."""
    try:
        return file.read_text().split()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Misconfigured(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Misconfigured(f"{file} must be a Fernet key: 32 bytes in URL-safe base64 (44 characters)") from None


def _valid_lines(file: Path) -> list[str]:
    """The keys of a file, as far as it can be read now; whoever needs a key reports the error."""
    try:
        lines = _lines(file) or []
        for line in lines:
            Fernet(line)
    except (Misconfigured, ValueError):
        return []
    return lines
