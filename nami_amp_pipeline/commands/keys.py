"""``nami-amp keys``: the keys that the stored API keys are encrypted with."""

from __future__ import annotations

import click

from nami_amp_pipeline.commands.base import Invocation
from nami_amp_pipeline.commands.options import confirm, yes_option


@click.group()
def keys() -> None:
    """Manage the keys that encrypt the stored API keys.

    They come from NAMI_AMP_ENCRYPTION_KEY (separated by commas, the newest first) or, if it is not set, from a file in
    NAMI_AMP_HOME (one per line). The newest key encrypts; all keys decrypt.
    """


@keys.command()
def generate() -> None:
    """Print a new key for NAMI_AMP_ENCRYPTION_KEY; it is not stored."""
    from cryptography.fernet import Fernet

    click.echo(Fernet.generate_key().decode())


@keys.command()
@click.pass_obj
def rotate(invocation: Invocation) -> None:
    """Encrypt all stored API keys with the newest key.

    Keys in a file: this command makes a new key first. Keys in NAMI_AMP_ENCRYPTION_KEY: before you run it, put the new
    key before the old one, as in NEW,OLD, wherever the pipeline runs. You can stop it and run it again at any time;
    runs may continue meanwhile.
    """
    done = invocation.operations.rotate_keys()
    click.echo(f"{done.encrypted} stored keys were encrypted again, {done.current} had the newest key already.")
    if done.older and done.key_file:
        click.echo(
            f"Older keys stay in {done.key_file}, for backups of the store: 'nami-amp keys forget' removes them."
        )
    elif done.older:
        click.echo(
            "You can now drop the old keys from NAMI_AMP_ENCRYPTION_KEY. Keep them if you may restore an older backup."
        )


@keys.command()
@yes_option
@click.pass_obj
def forget(invocation: Invocation, yes: bool) -> None:
    """Remove older keys from the key file, once no stored API key needs them.

    Backups of the store from before the rotation still need these keys: you cannot use them afterwards.
    """
    confirm("remove the older keys, which older backups need", yes=yes)
    click.echo(f"{invocation.operations.forget_keys()} older keys removed.")
