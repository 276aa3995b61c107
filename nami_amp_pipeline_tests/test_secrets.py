"""Secrets: encrypted at rest, shown by nothing, with a key that is made once and readable by its owner only."""

from __future__ import annotations

import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.secrets import Cipher, Secret


def test_a_secret_comes_back_as_it_was(tmp_path: Path) -> None:
    cipher = Cipher(None, tmp_path / "home" / "key")
    token = cipher.encrypt(Secret("clear täxt"))
    assert "clear" not in token
    assert cipher.decrypt(token).reveal() == "clear täxt"
    assert Cipher(None, tmp_path / "home" / "key").decrypt(token).reveal() == "clear täxt"


def test_the_key_file_is_its_owners_alone(tmp_path: Path) -> None:
    Cipher(None, tmp_path / "key").encrypt(Secret("x"))
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_a_key_of_the_environment_leaves_no_file(tmp_path: Path) -> None:
    cipher = Cipher(Fernet.generate_key().decode(), tmp_path / "key")
    assert cipher.decrypt(cipher.encrypt(Secret("x"))).reveal() == "x"
    assert not (tmp_path / "key").exists()


def test_several_that_begin_at_once_agree_on_one_key(tmp_path: Path) -> None:
    def encrypt(number: int) -> str:
        return Cipher(None, tmp_path / "key").encrypt(Secret(str(number)))

    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(encrypt, range(32)))
    cipher = Cipher(None, tmp_path / "key")
    assert [cipher.decrypt(token).reveal() for token in tokens] == [str(number) for number in range(32)]


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret("clear")
    assert "clear" not in f"{secret} {secret!r} {[secret]}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_another_key_is_said_plainly(tmp_path: Path) -> None:
    token = Cipher(None, tmp_path / "a").encrypt(Secret("x"))
    with pytest.raises(Misconfigured, match="another key"):
        Cipher(Fernet.generate_key().decode(), tmp_path / "a").decrypt(token)


def test_a_lost_key_file_is_not_replaced_when_reading(tmp_path: Path) -> None:
    token = Cipher(None, tmp_path / "key").encrypt(Secret("x"))
    (tmp_path / "key").unlink()
    with pytest.raises(Misconfigured, match="is missing"):
        Cipher(None, tmp_path / "key").decrypt(token)
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("key", ["short", "x" * 44])
def test_what_is_no_key_is_said_without_showing_it(tmp_path: Path, key: str) -> None:
    with pytest.raises(Misconfigured, match="NAMI_AMP_ENCRYPTION_KEY must be a Fernet key") as caught:
        Cipher(key, tmp_path / "key").encrypt(Secret("x"))
    assert key not in str(caught.value)


def test_a_file_in_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(Misconfigured, match=r"cannot (read|write)"):
        Cipher(None, tmp_path / "home" / "key").encrypt(Secret("x"))
