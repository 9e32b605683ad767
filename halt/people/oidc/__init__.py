"""Sign-in by OpenID Connect (HALT_OIDC_ISSUER).

Only `attempt` is imported everywhere. The libraries that the other modules import take 11 MB, so
`halt.app` and `halt.cli.doctor` import those where HALT_OIDC_ISSUER is set, and nowhere else.
"""
