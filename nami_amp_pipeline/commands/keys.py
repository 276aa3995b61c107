"""``nami-amp keys``: the keys that the stored API keys are encrypted with."""

from __future__ import annotations

import click

from nami_amp_pipeline.commands.base import Invocation


@click.group()
def keys() -> None:
    """Manage the keys that encrypt the stored API keys.

    They are those of NAMI_AMP_ENCRYPTION_KEY (several separated by commas, the newest first) or, without that, those of
    a file in NAMI_AMP_HOME (one a line). The newest encrypts, all decrypt.
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

    Keys of a file: a new one is made first. Keys of NAMI_AMP_ENCRYPTION_KEY: put the new one before the old one, as in
    NEW,OLD, wherever the pipeline runs, before you run this. It can be stopped and run again at any time; runs need not
    be stopped for it.
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
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def forget(invocation: Invocation, yes: bool) -> None:
    """Remove older keys from the key file, once no stored API key needs them.

    Backups of the store from before the rotation need them still: they can not be restored afterwards.
    """
    import sys

    from nami_amp_pipeline.errors import Misconfigured

    if not yes:
        if not sys.stdin.isatty():
            raise Misconfigured("give --yes to remove the older keys, which older backups need")
        click.confirm("Remove the older keys, which older backups need?", abort=True)
    click.echo(f"{invocation.operations.forget_keys()} older keys removed.")
