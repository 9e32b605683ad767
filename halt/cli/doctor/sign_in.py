"""Checks the provider of sign-ins by OpenID Connect."""

from __future__ import annotations

from halt.clock import now
from halt.config.settings import Config
from halt.doctor.report import Report, milliseconds
from halt.people.oidc.attempt import ProviderFault


def check_sign_in(report: Report, config: Config) -> None:
    """Check that the provider describes itself and publishes its keys, if there is one."""
    if not config.oidc_issuer:
        return
    from halt.people.oidc.provider import Provider  # noqa: PLC0415 - its libraries are for it alone

    provider, began = Provider(config), now()
    try:
        provider.check()
    except ProviderFault as fault:
        remedy = "Correct HALT_OIDC_ISSUER, or start the provider: nobody can sign in without it."
        report.fail("sign-in", fault.message, remedy)
    else:
        report.ok("sign-in", f"{provider.host} answers ({milliseconds(now() - began)})")
    finally:
        provider.close()
